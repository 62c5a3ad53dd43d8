"""A run's tables as pandas sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drift_cli.analysis.measures import own
from drift_cli.analysis.table import RunTable
from drift_cli.errors import StoreError
from drift_cli.segments import Part
from drift_cli.store.reader import read_residual_layer

if TYPE_CHECKING:
    from drift_cli.store.run import RolloutState
    from drift_cli.store.run import Run as Stored

KEYS = ("transcript", "condition", "temperature", "sample")
"""What names a rollout of a run."""


class Residuals(NamedTuple):
    """Residual means at one layer."""

    values: NDArray[np.float32]
    """(rows, width) float32, in the model's own units."""
    index: pd.DataFrame
    """Which reply each row is of: transcript, condition, temperature, sample, turn. Its index is 0 … rows - 1."""


def wide(table: RunTable) -> pd.DataFrame:
    """Projections, a row to a rollout and a column to a turn; NaN where a turn is missing."""
    cells = [table.cells[place] for place in table.cell_of]
    rows = [(cell.transcript, cell.condition, cell.temperature, int(sample)) for cell, sample in zip(cells, table.sample, strict=True)]
    turns = pd.Index(table.first + np.arange(table.projections.shape[1]), name="turn")
    return pd.DataFrame(table.projections.copy(), index=pd.MultiIndex.from_tuples(rows, names=KEYS), columns=turns)


def rollouts(run: Stored, table: RunTable | None) -> pd.DataFrame:
    """A row to a planned rollout: how far it is, and what each measure takes of it where there is a table."""
    made = pd.DataFrame([_state(state) for state in run.states()], columns=[*KEYS, "turns", "planned", "end"])
    if table is not None:
        for name, values in own(table).items():
            made[name] = values
    return made


def _state(state: RolloutState) -> tuple[str, str, float, int, int, int, str]:
    cell, end = state.rollout.cell, state.end
    said = end.finish.value if end is not None else "unfinished" if state.done else "not begun"
    return cell.transcript, cell.condition, cell.temperature, state.rollout.sample, state.done, state.total, said


def residuals(run: Stored, layer: int, part: Part) -> Residuals:
    """Every stored residual mean of a part of the run's replies at a layer. `StoreError` where the layer is not stored, or a file is damaged."""
    stored, model = run.manifest.layers, run.manifest.model
    if layer not in stored or model is None:
        have = ", ".join(map(str, stored)) or "none"
        raise StoreError(
            f"run {run.paths.run_id} stores no residual means of layer {layer} (its layers: {have})",
            mend="Generate a new run with that layer: drift generate --layers all --name NAME",
        )
    blocks, index = [np.empty((0, model.width), dtype=np.float32)], []
    for state in run.states():
        if not state.done:
            continue
        means = read_residual_layer(run.paths, state.rollout, stored.index(layer), len(stored), model.width, part)[: state.done]
        there = np.flatnonzero(np.isfinite(means).all(axis=1))
        cell = state.rollout.cell
        blocks.append(means[there])
        index += [(cell.transcript, cell.condition, cell.temperature, state.rollout.sample, int(turn) + 1) for turn in there]
    return Residuals(np.concatenate(blocks), pd.DataFrame(index, columns=[*KEYS, "turn"]))
