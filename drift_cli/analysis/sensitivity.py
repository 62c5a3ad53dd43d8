"""How a difference moves over the layers around the one that is measured at: the third of the model's layers whose middle that one is.

At each stored layer of that third which the axis has, the difference from the baseline on rollout means is computed anew, and its words' part where the
same replies were read under both prompts. Residual norms grow with depth, so differences are in persona units (the other personas 0, the assistant's 1, at
that layer), or, where the axis does not know its personas, in SDs of rollout means. The layer itself is fixed before the data, by the plan or by the axis's own
rule; this says how much hangs on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.spec import Cell, Part
from drift_cli.store.axes import read_axis

if TYPE_CHECKING:
    from drift_cli.axis import Axis
    from drift_cli.store.run import Run

MOST = 2e8
"""Numbers that are read without being asked for: a second or two."""


@dataclass(frozen=True, kw_only=True)
class LayerMoves:
    """One condition's difference from the baseline at every layer of the third."""

    condition: str
    transcript: str
    temperature: float
    layer: int
    """The one that is measured at."""
    layers: tuple[int, ...]
    """Ascending, the one above among them."""
    values: tuple[float | None, ...]
    """At each of them."""
    words: bool
    """Whether these are of the words' part alone."""
    units: str
    """`persona units` or `SDs`."""

    @property
    def here(self) -> float | None:
        """At the layer that is measured at."""
        return self.values[self.layers.index(self.layer)]

    @property
    def span(self) -> tuple[float, float] | None:
        """The least and the largest; None where nothing is known."""
        known = [value for value in self.values if value is not None]
        return (min(known), max(known)) if known else None


def third(layer: int, blocks: int) -> range:
    """The layers from a sixth of the blocks below to a sixth above."""
    reach = max(round(blocks / 6), 1)
    return range(max(layer - reach, 1), min(layer + reach, blocks) + 1)


def layer_moves(run: Run, table: RunTable, baseline: str, turns: tuple[int, int] | None = None) -> tuple[LayerMoves, ...]:
    """Of every condition; empty where the run stores no other layer of the third, or where reading them would take long."""
    manifest = run.manifest
    if manifest.model is None or len(manifest.layers) < 2 or len(table.conditions) < 2:
        return ()
    entry = choose_axis(manifest, table.axis, run.paths.run_id)
    if entry.layer not in manifest.layers or not run.paths.axis(entry.name).exists():
        return ()
    axis = read_axis(run.paths, entry)
    wanted = [layer for layer in third(entry.layer, manifest.model.layers) if layer in manifest.layers and layer in axis.layers]
    size = table.projections.size * len(manifest.layers) * manifest.model.width
    if len(wanted) < 2 or entry.layer not in wanted or size > MOST:
        return ()
    directions = np.stack([axis.at(layer) for layer in wanted]).astype(np.float64)
    own, under = _load(run, table, baseline, [manifest.layers.index(layer) for layer in wanted], directions)
    if turns is not None:
        part = slice(turns[0] - table.first, turns[1] - table.first + 1)
        own, under = own[:, :, part], {name: values[:, :, part] for name, values in under.items()}
    scale, units = _scale(axis, wanted, own, table)
    return tuple(
        _moves(table, baseline, cell, own, under, scale, units, (entry.layer, wanted)) for cell in table.cells if cell.condition != baseline
    )


def _load(
    run: Run, table: RunTable, baseline: str, rows: Sequence[int], directions: FloatArray
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Projections (R, L, T) of the replies under their own prompt, and under those that they are compared with, by prompt."""
    from drift_cli.store.swapped import read_swapped

    shape = (len(table.sample), len(rows), table.projections.shape[1])
    own, under = np.full(shape, np.nan), {name: np.full(shape, np.nan) for name in table.conditions}
    read = run.paths.swapped_root.exists()
    for place, state in enumerate(run.states()):
        if not state.done:
            continue
        turns = run.record(state.rollout, residuals=True).turns
        for turn in turns:
            mean = turn.mean(table.segment or Part.ANSWER)
            if mean is not None and np.isfinite(table.projections[place, turn.index - 1]):
                own[place, :, turn.index - 1] = np.einsum("lw,lw->l", mean[rows].astype(np.float64), directions)
        mine = state.rollout.cell.condition
        for prompt in (table.conditions if mine == baseline else (baseline,)) if read and table.segment in (None, Part.ANSWER) else ():
            found = None if prompt == mine else read_swapped(run.paths, run.manifest, state.rollout, prompt, turns)
            for turn_index, mean in (found.means if found is not None else {}).items():
                under[prompt][place, :, turn_index - 1] = np.einsum("lw,lw->l", mean[rows].astype(np.float64), directions)
    return own, under


def _scale(axis: Axis, layers: Sequence[int], own: FloatArray, table: RunTable) -> tuple[FloatArray, str]:
    """What differences are divided by at each layer (L,), and what they are in then."""
    if axis.means is not None:
        sides = np.array([persona in axis.assistants for persona in axis.personas])
        if sides.any() and not sides.all():
            places = [axis.layers.index(layer) for layer in layers]
            projected = np.einsum("plw,lw->pl", axis.means[:, places].astype(np.float64), np.stack([axis.at(layer) for layer in layers]))
            return projected[sides].mean(axis=0) - projected[~sides].mean(axis=0), "persona units"
    squares, freedom = np.zeros(own.shape[1]), 0
    for cell in table.cells:
        values = own[table.rows(cell)]
        means = values[np.isfinite(values).any(axis=(1, 2))]
        each = np.nanmean(means, axis=2) if len(means) else np.empty((0, own.shape[1]))
        squares += ((each - each.mean(axis=0)) ** 2).sum(axis=0) if len(each) else 0.0
        freedom += max(len(each) - 1, 0)
    return np.sqrt(squares / max(freedom, 1)), "SDs"


def _moves(
    table: RunTable,
    baseline: str,
    cell: Cell,
    own: FloatArray,
    under: dict[str, FloatArray],
    scale: FloatArray,
    units: str,
    at: tuple[int, Sequence[int]],
) -> LayerMoves:
    base = Cell(cell.transcript, baseline, cell.temperature)
    mine, others = table.rows(cell), table.rows(base)
    a, b = own[mine], own[others]
    swapped = under[baseline][mine], under[cell.condition][others]
    words = all(np.isfinite(values).any() for values in swapped)
    if words:
        a, b = (a + swapped[0]) / 2, (b + swapped[1]) / 2
    values = np.full(len(at[1]), np.nan)
    if len(a) and len(b):
        counts = np.isfinite(a[:, 0]).any(axis=0) & np.isfinite(b[:, 0]).any(axis=0)
        if counts.any():
            gap = np.nanmean(a[:, :, counts], axis=0).mean(axis=1) - np.nanmean(b[:, :, counts], axis=0).mean(axis=1)
            values = np.divide(gap, scale, out=values, where=np.abs(scale) > 1e-12)
    return LayerMoves(
        condition=cell.condition,
        transcript=cell.transcript,
        temperature=cell.temperature,
        layer=at[0],
        layers=tuple(at[1]),
        values=tuple(plain(value) for value in values),
        words=words,
        units=units,
    )
