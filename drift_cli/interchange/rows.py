"""A run as rows, one to a turn, for whatever is written out of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.segments import measured
from drift_cli.analysis.table import load
from drift_cli.segments import Part, Segment, SegmentKind, spans
from drift_cli.spec import Finish, Rollout, Turn

if TYPE_CHECKING:
    from drift_cli.store.log import RolloutRecord
    from drift_cli.store.manifest import AxisEntry
    from drift_cli.store.run import Run


@dataclass(frozen=True)
class Row:
    """One user turn, and its reply if it has one. What the run does not know is None."""

    rollout: Rollout
    turn: int
    user: str | None
    reply: str | None
    """None where the rollout ended here: out of context, or without a prompt from the chat template."""
    finish: str
    prompt_length: int | None
    reply_tokens: int | None
    """Ids as sampled, the end-of-turn token included."""
    projections: tuple[float | None, ...]
    """In the order of the axes asked for."""
    residual: NDArray[np.float32] | None
    """(layers, width) of the part that is measured, where asked for and stored."""
    reasoning: str | None = None
    """Its text; `reply` is the answer's, where the run's replies have segments."""
    tokens: tuple[int | None, int | None] = (None, None)
    """Of the answer and of the reasoning, without the markup around them and the end-of-turn token; None where they are not known."""


def axes_of(run: Run, names: Sequence[str] | None) -> tuple[AxisEntry, ...]:
    """The run's axes of these names; all for None. `StoreError` names the choices."""
    if names is None:
        return (*run.manifest.axes, *run.manifest.measured)
    return tuple(choose_axis(run.manifest, name, run.paths.run_id) for name in dict.fromkeys(names))


def rows(run: Run, axes: Sequence[AxisEntry], *, residuals: bool = False, part: Part = Part.ANSWER) -> Iterator[Row]:
    """Every committed turn, cells in the manifest's order, then by sample and turn; the turn before which a rollout ended early is a row without a reply.

    Projections and residual means are of `part`, where replies have segments.
    """
    part = measured(run.manifest, part) or Part.ANSWER
    read = axes if part is not Part.ANSWER else [entry for entry in axes if entry not in run.manifest.axes]
    later = {entry.name: load(run, entry.name, part).projections for entry in read}
    ends = run.manifest.model.end_ids if run.manifest.model is not None else ()
    for place, state in enumerate(run.states()):
        if state.done == 0 and state.end is None:
            continue
        record = run.record(state.rollout, residuals=residuals)
        script = run.manifest.transcripts[state.rollout.cell.transcript]
        for turn in record.turns:
            found = {name: float(projections[place, turn.index - 1]) for name, projections in later.items()}
            known = {name: None if math.isnan(value) else value for name, value in found.items()}
            yield _row(record, turn, turn.user if turn.user is not None else script.asked(turn.index), axes, known, part, ends)
        if record.end is not None and record.end.finish is not Finish.COMPLETE:
            nothing = (None,) * len(axes)
            end = record.end
            yield Row(state.rollout, end.turn, script.asked(end.turn), None, end.finish.value, end.prompt_length, None, nothing, None)


def _row(
    record: RolloutRecord,
    turn: Turn,
    user: str | None,
    axes: Sequence[AxisEntry],
    later: Mapping[str, float | None],
    part: Part,
    ends: Collection[int],
) -> Row:
    """A turn's row; `later` are projections that are not in its line, or are of another part than those."""
    values: dict[str, Any] = {**turn.projections, **later}
    return Row(
        rollout=record.rollout,
        turn=turn.index,
        user=user,
        reply=turn.text,
        finish=turn.finish.value,
        prompt_length=turn.prompt_length,
        reply_tokens=None if turn.ids is None else len(turn.ids),
        projections=tuple(values.get(entry.name) for entry in axes),
        residual=turn.mean(part),
        reasoning=turn.reasoning,
        tokens=_tokens(turn, ends),
    )


def _tokens(turn: Turn, ends: Collection[int]) -> tuple[int | None, int | None]:
    """Tokens of a reply's answer and of its reasoning; the whole of a reply without segments is its answer."""
    if turn.ids is None:
        return None, None
    whole = (Segment(SegmentKind.ANSWER, 0, len(turn.ids) - (turn.ids[-1:] != () and turn.ids[-1] in ends)),)
    found = turn.segments or whole
    answer, reasoning = (sum(stop - start for start, stop in spans(found, part)) for part in (Part.ANSWER, Part.REASONING))
    return answer, reasoning
