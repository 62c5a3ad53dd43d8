"""The same replies read under another prompt: how much of a difference between two conditions is there without a word changed?

A condition's prompt stands in the conversation that the model reads, so it moves the residual stream whatever the replies say. Each rollout of a condition is
read once more under the prompt of the condition it is compared with, and each of that condition's rollouts under its own prompt; `analysis/presence.py`
splits the difference by these. A rollout costs one prefill for each prompt. Only conditions of one transcript and temperature are compared, so that the user
turns are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.chat import Conversation, scripted
from drift_cli.chat.replay import replay, user_turns
from drift_cli.engine.passages import Reply, passages
from drift_cli.errors import StoreError, UsageError
from drift_cli.spec import Part, Rollout, spans
from drift_cli.store.swapped import Swapped, read_swapped, write_swapped

if TYPE_CHECKING:
    from drift_cli.chat import Chat
    from drift_cli.models import LoadedModel
    from drift_cli.spec import Condition, Turn
    from drift_cli.store.manifest import Manifest
    from drift_cli.store.reader import RolloutRecord
    from drift_cli.store.run import Run

MOST_ROUNDING = 0.2
"""Of a residual mean's norm. Rounding in bfloat16 is a few per cent, in float32 a millionth; another model or layer is off by about 1."""


@dataclass(frozen=True)
class Reading:
    """A rollout whose replies are to be read under the prompt of another condition."""

    rollout: Rollout
    prompt: str


@dataclass(frozen=True)
class Read:
    """What one call of `measure_run` did."""

    readings: int
    """Measured now."""
    known: int
    """Had been measured already."""
    beyond: int
    """Replies that do not fit the context under the other prompt."""
    difference: float
    """The largest relative distance between a residual mean that is stored and the same reply read again under its own prompt, on one rollout: rounding."""
    interrupted: bool


def readings(run: Run, against: str | None = None) -> list[Reading]:
    """What a comparison of every condition with `against` (None: the run's first) needs, of rollouts that have a turn. Raises `UsageError`."""
    manifest = run.manifest
    if manifest.model is None or not manifest.layers:
        raise UsageError(
            f"run {run.paths.run_id} was imported: its model cannot be asked",
            mend="Only runs made with `drift generate` can be read again.",
        )
    if against is not None and against not in manifest.conditions:
        raise UsageError(f"condition {against!r} is not in this run", mend=f"It has: {', '.join(manifest.conditions)}.")
    baseline = against or _first(manifest)
    places: dict[tuple[str, float], set[str]] = {}
    for plan in manifest.cells:
        places.setdefault((plan.cell.transcript, plan.cell.temperature), set()).add(plan.cell.condition)
    found = []
    for state in run.states():
        cell = state.rollout.cell
        here = places[cell.transcript, cell.temperature]
        if not state.done or baseline not in here:
            continue
        if cell.condition != baseline:
            found.append(Reading(state.rollout, baseline))
        else:
            found += [Reading(state.rollout, name) for name in manifest.conditions if name in here and name != baseline]
    return found


def missing(run: Run) -> list[Reading]:
    """Of the readings that a comparison with the run's first condition needs, those that are not on disk; none for a run that cannot be read again."""
    if run.manifest.model is None or not run.manifest.layers:
        return []
    return [
        one
        for one in readings(run)
        if read_swapped(run.paths, run.manifest, one.rollout, one.prompt, run.record(one.rollout).turns) is None
    ]


def _first(manifest: Manifest) -> str:
    """The condition that others are compared with unless another is named: that of the first cell, as in `analysis.study`."""
    return manifest.cells[0].cell.condition if manifest.cells else ""


def measure_run(
    run: Run,
    chat: Chat,
    model: LoadedModel,
    wanted: Sequence[Reading],
    *,
    step: Callable[[str], object],
    stop: Callable[[], bool],
) -> Read:
    """Read what has not been read yet; each reading is on disk before the next is begun. `step` is told of every one."""
    measured = known = beyond = 0
    difference: float | None = None
    for reading in wanted:
        if stop():
            return Read(measured, known, beyond, difference or 0.0, interrupted=True)
        record = run.record(reading.rollout, residuals=difference is None)
        there = read_swapped(run.paths, run.manifest, reading.rollout, reading.prompt, record.turns)
        if there is None:
            check_conversation(run, record, chat, model)
            if difference is None:
                difference = _checked(_rounding(run, record, chat, model), record)
            there = read_under(run, record, chat, model, run.manifest.conditions[reading.prompt])
            write_swapped(run.paths, run.manifest, reading.rollout, reading.prompt, record.turns, there)
            measured += 1
        else:
            known += 1
        beyond += len(there.beyond)
        step(f"{reading.rollout} under {reading.prompt}")
    return Read(measured, known, beyond, difference or 0.0, interrupted=False)


def check_conversation(run: Run, record: RolloutRecord, chat: Chat, model: LoadedModel) -> None:
    """Raise `StoreError` where a rollout's conversation is no longer tokenized as it was when its turns were made."""
    talk = _begun(run, record, chat, model, run.manifest.conditions[record.rollout.cell.condition])
    replay(talk, record.turns, str(record.rollout))


def read_under(run: Run, record: RolloutRecord, chat: Chat, model: LoadedModel, condition: Condition) -> Swapped:
    """Residual means of a rollout's replies in the conversation that another condition's prompt makes of the same user turns and replies."""
    from drift_cli.engine.prefill import Prefill
    from drift_cli.engine.rotary import length_threshold

    replies = list(_placed(record.turns, _begun(run, record, chat, model, condition), model.card.context))
    limit = length_threshold(model.card)
    apart = limit is not None and max((len(one.prompt) + len(one.ids) for one in replies), default=0) > limit
    prefill = Prefill(model, list(run.manifest.layers), whole=apart)
    means = dict(prefill.means(passages(replies, apart=apart))) if replies else {}
    return Swapped(means, tuple(turn.index for turn in record.turns if turn.index not in means))


def _placed(turns: Sequence[Turn], talk: Conversation, context: int) -> Iterator[Reply]:
    """The replies that have an answer and fit the context, each in the conversation before it."""
    for turn in turns:
        if talk.end is not None:
            return
        ids = turn.ids or ()
        content = tuple(talk.content(ids))
        parts = spans(turn.segments, Part.ANSWER) if turn.segments else ((0, len(content)),) if content else ()
        if parts and len(talk.prompt) + len(ids) <= context:
            yield Reply(turn.index, talk.prompt, content, tuple(parts))
        talk = talk.after(ids)


def _checked(difference: float, record: RolloutRecord) -> float:
    """The distance, if it can be rounding. Raises `StoreError` otherwise: a difference between prompts would be measured with two instruments."""
    if difference > MOST_ROUNDING:
        raise StoreError(
            f"{record.rollout}: read again under its own prompt, its residual means are {100 * difference:.0f} % of their norm off those stored",
            mend="Another device, dtype or version computes otherwise: use what `drift runs show` lists, or leave the split out.",
        )
    return difference


def _rounding(run: Run, record: RolloutRecord, chat: Chat, model: LoadedModel) -> float:
    """How far a rollout's residual means, read again under its own prompt, are from those stored, as a share of their norm."""
    again = read_under(run, record, chat, model, run.manifest.conditions[record.rollout.cell.condition])
    found = [0.0]
    for turn in record.turns:
        if turn.residual is not None and turn.index in again.means:
            gap = np.linalg.norm(again.means[turn.index] - turn.residual, axis=1) / np.maximum(np.linalg.norm(turn.residual, axis=1), 1e-12)
            found.append(float(gap.max()))
    return max(found)


def _begun(run: Run, record: RolloutRecord, chat: Chat, model: LoadedModel, condition: Condition) -> Conversation:
    """A rollout's user turns under a condition's prompt, before the first reply."""
    users = user_turns(run.manifest.transcripts[record.rollout.cell.transcript], record.turns)
    return scripted(chat, users, condition, model.card.end_ids)
