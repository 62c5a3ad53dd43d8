"""What a report says, gathered from a run: a document of plain JSON values for the page's script.

Numbers are those of `analysis/`; what is missing is null. Texts are as the run has them: making them harmless is the page's work. Of events, the time, the
kind and the details are kept, not the machine; of settings that are paths, the last part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from drift_cli import __version__
from drift_cli.analysis.flags import Flag
from drift_cli.analysis.segments import of_words
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.analysis.tokens import Traces
from drift_cli.display import Table
from drift_cli.names import brief
from drift_cli.results.figures.curves import Bands, curves
from drift_cli.results.figures.palette import DARK, PAPER
from drift_cli.results.report.verdict import Sentence
from drift_cli.segments import Part
from drift_cli.spec import Cell, Finish, Rollout, Turn
from drift_cli.store.traces import TokenTrace

if TYPE_CHECKING:
    from drift_cli.store.reader import RolloutRecord
    from drift_cli.store.run import Run

FLAGS = {
    Flag.EMPTY: "empty reply",
    Flag.REPEATED: "repeats itself",
    Flag.RECITING: "recites the system prompt",
    Flag.CONTEXT: "out of context",
    Flag.TEMPLATE: "no prompt from the chat template",
}
"""A reply cut at the length limit has that as its finish reason."""
SEGMENT_FLAGS = {Flag.NO_ANSWER: "no answer within the limit", Flag.REASONING_CUT: "reasoning cut at the limit"}
"""Of runs whose replies have segments. Such replies are not suspect: they lack what is measured, or part of it."""
FINISH = {Finish.STOP: "ended by itself", Finish.LENGTH: "cut at the length limit"}
_QUANTUM = 100
"""Steps of a token's colour from the middle of the scale to its end."""


@dataclass(frozen=True)
class Contents:
    """Everything a report is made from."""

    run: Run
    table: RunTable
    bands: Bands
    traces: Traces
    references: Mapping[str, FloatArray]
    """By transcript, (T,) with NaN."""
    verdict: Sequence[Sentence]
    tables: Sequence[Table]
    folded: Sequence[Table] = ()
    """Tables that most readers will not want to see at once."""


def document(contents: Contents) -> dict[str, Any]:
    """The report as JSON values."""
    run, table, traces = contents.run, contents.table, contents.traces
    layer, of = "" if table.layer is None else f", layer {table.layer}", of_words(table.segment)
    flags = _flags(table)
    return {
        "run": table.run_id,
        "axis": table.axis,
        **({} if table.segment is None else {"segment": table.segment.value}),
        "of": of,
        "quantity": table.quantity,
        "subtitle": f"{run.manifest.spec.model}, {table.quantity}{layer}; drift {__version__}",
        "caption": f"Mean {table.quantity}{layer} over rollouts; {contents.bands.label}. Crosses: flagged replies.",
        "verdict": [{"text": sentence.text, "caution": sentence.caution} for sentence in contents.verdict],
        "facts": list(_facts(run, table)),
        "conditions": list(_conditions(run, table)),
        "groups": [_group(contents, group) for group in table.groups],
        "scale": {"middle": traces.middle, "half": traces.half, "half_reply": _half_reply(table, traces.middle)},
        "traced": bool(traces.of),
        "suspect": [flag.value for flag in FLAGS],
        "flags": {flag.value: said for flag, said in flags.items()},
        "finish": {finish.value: said for finish, said in FINISH.items()},
        "tables": [asdict(shown) for shown in contents.tables],
        "folded": [asdict(shown) for shown in contents.folded],
        "manifest": _shareable(orjson.loads(run.manifest.to_json())),
        "events": [_event(event) for event in run.events()],
    }


def _flags(table: RunTable) -> dict[Flag, str]:
    return FLAGS if table.segment is None else FLAGS | SEGMENT_FLAGS


def _facts(run: Run, table: RunTable) -> Iterator[tuple[str, str]]:
    spec, model = run.manifest.spec, run.manifest.model
    yield "run", table.run_id
    yield "model", f"{spec.model} ({brief(spec.revision)}, {spec.dtype})"
    if model is not None and model.quantization:
        yield "quantization", model.quantization
    if model is not None and spec.adapter:
        yield "adapter", f"{model.adapter} ({brief(spec.adapter)}), merged into the weights"
    if model is not None and model.note:
        yield "note", model.note
    for entry in (*run.manifest.axes, *run.manifest.measured):
        if entry.name == table.axis and entry.note:
            yield "axis", entry.note
    if table.caution is not None:
        yield "axis of another model", table.caution
    sampling = spec.sampling
    yield (
        "sampling",
        f"top-p {sampling.top_p:g}, top-k {sampling.top_k}, min-p {sampling.min_p:g}, up to {spec.max_new_tokens} tokens, seed {spec.seed}",
    )
    if table.segment is not None:
        yield "measured", f"{table.segment.words} (drift report --segment answer, reasoning or all)"
    yield "rollouts", f"{int((table.turns > 0).sum())} of {len(table.sample)} begun, {int(table.turns.sum())} replies"
    if run.manifest.imported is not None:
        yield "imported from", run.manifest.imported.source


def _conditions(run: Run, table: RunTable) -> Iterator[dict[str, Any]]:
    light, dark = PAPER.each(table.conditions), DARK.each(table.conditions)
    for name in table.conditions:
        condition = run.manifest.conditions[name]
        yield {
            "name": name,
            "system": condition.system,
            "placement": condition.placement.value,
            "adds": run.manifest.template_adds.get(name),
            "colour": {"light": light[name].color, "dark": dark[name].color},
        }


_ASKED = "This user asks depending on the replies: each reply stands below what it answers."
"""In place of a user turn that each rollout has its own of."""


def _group(contents: Contents, group: Group) -> dict[str, Any]:
    table, script = contents.table, contents.run.manifest.transcripts[group.transcript]
    drawn = {curve.condition: curve for curve in curves(table, group, contents.bands, PAPER)}
    line = contents.references.get(group.transcript)
    cells = []
    for cell in table.cells:
        if (cell.transcript, cell.temperature) == group:
            curve = drawn[cell.condition]
            cells.append(
                {
                    "condition": cell.condition,
                    "mean": numbers(curve.mean),
                    "low": numbers(curve.interval.low),
                    "high": numbers(curve.interval.high),
                    "n": np.isfinite(curve.values).sum(axis=0).tolist(),
                    "rollouts": list(_rollouts(contents, cell)),
                }
            )
    return {
        "transcript": group.transcript,
        "temperature": group.temperature,
        "users": list(script.users) if script.user is None else [_ASKED] * script.total,
        "reference": None if line is None else numbers(line),
        "cells": cells,
    }


def _rollouts(contents: Contents, cell: Cell) -> Iterator[dict[str, Any]]:
    table, asked = contents.table, contents.run.manifest.transcripts[cell.transcript].user is not None
    for row in np.flatnonzero(table.rows(cell)):
        rollout = Rollout(cell, int(table.sample[row]))
        record = contents.run.record(rollout)
        if not record.turns and record.end is None:
            continue
        traces = contents.traces.of.get(rollout, {})
        turns = [_turn(table, int(row), turn, traces.get(turn.index), contents.traces, asked=asked) for turn in record.turns]
        end, end_turn = _end(record, int(table.planned[row]))
        yield {"sample": rollout.sample, "end": end, "end_turn": end_turn, "turns": turns}


def _end(record: RolloutRecord, planned: int) -> tuple[str, int | None]:
    """How a rollout ended, in words, and the turn that it lacks first."""
    if record.end is None:
        return f"unfinished: {len(record.turns)} of {planned} turns", len(record.turns) + 1
    if record.end.finish is Finish.CONTEXT:
        return f"out of context before turn {record.end.turn}", record.end.turn
    if record.end.finish is Finish.TEMPLATE:
        return f"no prompt from the chat template for turn {record.end.turn}", record.end.turn
    return "complete", None


def _turn(table: RunTable, row: int, turn: Turn, trace: TokenTrace | None, scale: Traces, *, asked: bool) -> dict[str, Any]:
    column = turn.index - 1
    made: dict[str, Any] = {
        "text": turn.text,
        "finish": turn.finish.value,
        "p": _rounded(table.projections[row, column]),
        "flags": [flag.value for flag in _flags(table) if table.flags.of(flag)[row, column]],
    }
    if asked:
        made["user"] = turn.user
    if trace is not None:
        made |= _coloured(trace, turn, Part.ANSWER, scale)
    if turn.reasoning is not None:
        traced = {} if trace is None else _coloured(trace, turn, Part.REASONING, scale)
        made["reasoning"] = {"text": turn.reasoning, **traced}
    return made


def _coloured(trace: TokenTrace, turn: Turn, part: Part, scale: Traces) -> dict[str, Any]:
    """Of a part's tokens: lengths of their texts, and steps of their colours."""
    pieces, values = trace.of(turn, part)
    return {
        "n": [_utf16(piece) for piece in pieces],
        "v": np.rint((values - scale.middle) / scale.half * _QUANTUM).astype(int).tolist(),
    }


def _utf16(text: str) -> int:
    """Length as the page's script counts it."""
    return len(text) + sum(character > "\uffff" for character in text)


def numbers(values: FloatArray) -> list[float | None]:
    """Values (T,) for JSON, null where there is none."""
    return [_rounded(value) for value in values]


def _rounded(value: float) -> float | None:
    found = plain(value)
    return None if found is None else round(found, 5)


def _half_reply(table: RunTable, middle: float) -> float:
    there = np.abs(table.projections[np.isfinite(table.projections)] - middle)
    return float(np.percentile(there, 98)) if len(there) and there.max() > 0 else 1.0


def _event(event: Mapping[str, Any]) -> list[str]:
    details = {key: value for key, value in event.items() if key not in ("time", "kind", "host", "pid") and value is not None}
    return [str(event.get("time", "")), str(event["kind"]), ", ".join(f"{key}: {value}" for key, value in details.items())]


def _shareable(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest without the folders that settings name: whoever gets the report has no use for them."""
    for setting in manifest.get("settings", {}).values():
        setting["value"] = _last_part(setting["value"])
    return manifest


def _last_part(value: Any) -> Any:
    if isinstance(value, list):
        return [_last_part(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
