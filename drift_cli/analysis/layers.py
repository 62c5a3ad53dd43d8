"""Projections at every stored layer on an axis that has a direction there: rollouts × layers × turns. What is not on disk is NaN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.axis import project
from drift_cli.errors import StoreError
from drift_cli.segments import Part
from drift_cli.store.axes import read_axis

if TYPE_CHECKING:
    from drift_cli.store.run import Run

LEAST = 2
"""Layers that make a picture by layer."""


class Unavailable(StoreError):
    """The run has nothing of this kind: another way of generating or measuring it would give it."""


@dataclass(frozen=True, eq=False)
class LayerTable:
    """The rollouts (R) and turns (T) of `table`, at L layers."""

    table: RunTable
    layers: tuple[int, ...]
    """`hidden_states` indices, ascending."""
    values: FloatArray
    """(R, L, T), in the axis's units; NaN where a turn or its residual means are missing."""

    def spread(self) -> FloatArray:
        """(L,): the SD of projections over rollouts, pooled over cells and turns; where no cell has two rollouts, the SD over everything.

        Residual norms grow with depth, so differences at different layers can be compared only in units of such a spread.
        """
        squares, freedom = np.zeros(len(self.layers)), np.zeros(len(self.layers))
        for cell in self.table.cells:
            values = self.values[self.table.rows(cell)]
            there = np.isfinite(values)
            n = there.sum(axis=0)
            means = np.where(there, values, 0.0).sum(axis=0) / np.maximum(n, 1)
            squares += (np.where(there, values - means, 0.0) ** 2).sum(axis=(0, 2))
            freedom += np.maximum(n - 1, 0).sum(axis=1)
        within = np.sqrt(squares / np.maximum(freedom, 1))
        overall = np.array([_sd(self.values[:, place]) for place in range(len(self.layers))])
        return np.where((freedom > 0) & (within > 0), within, overall)


def load_layers(run: Run, table: RunTable) -> LayerTable:
    """Project a run's stored residual means on the table's axis at every layer that both have; the rows are the table's.

    Raises `Unavailable` where fewer than two layers are there, with what to do about it, and `DriftError` where a file is damaged.
    """
    if table.measure is not None:
        raise Unavailable(f"{table.measure} is no projection: it has no layers", mend="Draw it without --reply-measure.")
    entry = choose_axis(run.manifest, table.axis, run.paths.run_id)
    stored = run.manifest.layers
    if len(stored) < LEAST:
        raise Unavailable(
            f"run {run.paths.run_id} stored {len(stored) or 'no'} residual layer{'s' * (len(stored) != 1)}: there is no picture by layer",
            mend="Generate with --layers all (it belongs to a new run: give it another --name).",
        )
    axis = read_axis(run.paths, entry)
    layers = tuple(sorted(set(stored) & set(axis.layers)))
    if len(layers) < LEAST:
        raise Unavailable(
            f"axis {axis.name} has {len(axis.layers)} layers, of which run {run.paths.run_id} stored {len(layers)}: there is no picture by layer",
            mend="Use an axis that was built at all layers: drift axis show lists them, drift measure RUN --axis NAME --layer L adds one.",
        )
    directions = np.stack([axis.at(layer) for layer in layers])
    places = [stored.index(layer) for layer in layers]
    values = np.full((len(table.sample), len(layers), table.projections.shape[1]), np.nan)
    for row, state in enumerate(run.states()):
        if state.done:
            for turn in run.record(state.rollout, residuals=True).turns:
                mean = turn.mean(table.segment or Part.ANSWER)
                if mean is not None:
                    values[row, :, turn.index - 1] = project(mean[places], directions)
    return LayerTable(table, layers, values)


def _sd(values: FloatArray) -> float:
    there = values[np.isfinite(values)]
    return float(there.std(ddof=1)) if len(there) > 1 and there.std() > 0 else float("nan")
