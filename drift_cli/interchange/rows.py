"""A run as rows, one to a turn, for whatever is written out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.table import load
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
    user: str
    reply: str | None
    """None where the rollout ended here for want of context."""
    finish: str
    prompt_length: int | None
    reply_tokens: int | None
    """Ids as sampled, the end-of-turn token included."""
    projections: tuple[float | None, ...]
    """In the order of the axes asked for."""
    residual: NDArray[np.float32] | None
    """(layers, width), where asked for and stored."""


def axes_of(run: Run, names: Sequence[str] | None) -> tuple[AxisEntry, ...]:
    """The run's axes of these names; all for None. `StoreError` names the choices."""
    if names is None:
        return (*run.manifest.axes, *run.manifest.measured)
    return tuple(choose_axis(run.manifest, name, run.paths.run_id) for name in dict.fromkeys(names))


def rows(run: Run, axes: Sequence[AxisEntry], *, residuals: bool = False) -> Iterator[Row]:
    """Every committed turn, cells in the manifest's order, then by sample and turn; a turn that did not fit the context is a row without a reply."""
    later = {entry.name: load(run, entry.name).projections for entry in axes if entry not in run.manifest.axes}
    for place, state in enumerate(run.states()):
        if state.done == 0 and state.end is None:
            continue
        record = run.record(state.rollout, residuals=residuals)
        users = run.manifest.transcripts[state.rollout.cell.transcript].users
        for turn in record.turns:
            measured = {name: float(projections[place, turn.index - 1]) for name, projections in later.items()}
            yield _row(record, turn, users[turn.index - 1], axes, measured)
        if record.end is not None and record.end.finish is Finish.CONTEXT:
            nothing = (None,) * len(axes)
            end = record.end
            yield Row(state.rollout, end.turn, users[end.turn - 1], None, end.finish.value, end.prompt_length, None, nothing, None)


def _row(record: RolloutRecord, turn: Turn, user: str, axes: Sequence[AxisEntry], measured: dict[str, float]) -> Row:
    values: dict[str, Any] = {**turn.projections, **measured}
    return Row(
        rollout=record.rollout,
        turn=turn.index,
        user=user,
        reply=turn.text,
        finish=turn.finish.value,
        prompt_length=turn.prompt_length,
        reply_tokens=None if turn.ids is None else len(turn.ids),
        projections=tuple(values.get(entry.name) for entry in axes),
        residual=turn.residual,
    )
