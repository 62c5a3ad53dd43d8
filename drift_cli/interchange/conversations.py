"""A run's conversations as other tools read them: system messages stand where the condition's placement puts them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from drift_cli.chat import messages
from drift_cli.files import atomic_write, create_folder
from drift_cli.interchange.rows import Row, rows
from drift_cli.spec import Condition

if TYPE_CHECKING:
    from drift_cli.store.run import Run


def export_assistant_axis(run: Run, folder: Path) -> list[Path]:
    """Write one assistant-axis file to each rollout that has a reply, as `<transcript>/<condition>/T<temperature>/<sample>.json`.

    A file holds `model`, `turns` (replies) and `conversation` (messages; a reply's reasoning is its message's `reasoning_content`). A turn without a reply is
    left out.
    """
    made = []
    for rollout, group in groupby((row for row in rows(run, ()) if row.reply is not None), key=lambda row: row.rollout):
        turns, cell = list(group), rollout.cell
        value = {
            "model": run.manifest.spec.model,
            "turns": len(turns),
            "conversation": _with_reasoning(conversation(turns, run.manifest.conditions[cell.condition]), turns),
        }
        path = folder / run.paths.rollout(rollout).relative_to(run.paths.rollouts_root).with_suffix(".json")
        create_folder(path.parent)
        atomic_write(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        made.append(path)
    return made


def conversation(turns: Sequence[Row], condition: Condition) -> list[dict[str, str]]:
    """The messages of turns that have a reply; none for none, even where the prompt comes first."""
    return messages([row.user or "" for row in turns], [row.reply or "" for row in turns], condition) if turns else []


def _with_reasoning(made: list[dict[str, str]], turns: Sequence[Row]) -> list[dict[str, str]]:
    """The same messages, each reply's reasoning beside its answer."""
    reasoning = iter([row.reasoning for row in turns])
    return [
        message if message["role"] != "assistant" or (text := next(reasoning)) is None else {**message, "reasoning_content": text}
        for message in made
    ]
