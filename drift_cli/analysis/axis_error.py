"""The axis is an estimate: how far would a difference between conditions move, had it been made from other personas?

Personas are drawn again with replacement within the assistant's side and within the others', the axis is made from their means as before, scaled to unit norm,
and the run's stored residual means are projected on it. The SD of a difference over these axes is the axis's part of its standard error; the interval that
carries it has half-width √(half² + (z SD)²). A side with one persona is taken as it is, and so are the questions that the personas were asked: the axis file
has their means only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.measures import least_turns, weights
from drift_cli.analysis.results import Comparison, Measure
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.axis import Axis, project_each
from drift_cli.segments import Part
from drift_cli.store.axes import read_axis

if TYPE_CHECKING:
    from drift_cli.store.run import Run

DRAWS = 200
MOST = 2e10
"""Multiplications that are done without being asked for: some seconds of one core."""


@dataclass(frozen=True, kw_only=True)
class AxisError:
    """What the axis's own uncertainty adds to one difference from the baseline."""

    condition: str
    transcript: str
    temperature: float
    measure: str
    sd: float
    """Of the difference over resampled axes."""
    low: float
    high: float
    """The interval with sampling noise and the axis's uncertainty."""
    personas: int


def axis_errors(run: Run, table: RunTable, study: Study, draws: int = DRAWS) -> tuple[AxisError, ...]:
    """Of every comparison of mean and change with the baseline.

    Empty where the axis does not know its personas, where its layer is not stored, where both sides have but one persona, or where it would take long.
    """
    entry = choose_axis(run.manifest, table.axis, run.paths.run_id)
    if entry.layer not in run.manifest.layers or not run.paths.axis(entry.name).exists():
        return ()
    axis = read_axis(run.paths, entry)
    if axis.means is None or table.projections.size * axis.width * draws > MOST:
        return ()
    vectors = resampled(axis, entry.layer, draws, study.options.seed)
    if vectors is None:
        return ()
    seen = table if study.options.turns is None else table.window(*study.options.turns)
    means = _turn_means(run, seen, entry.layer, vectors)
    return tuple(_errors(seen, study, means, len(axis.personas)))


def resampled(axis: Axis, layer: int, draws: int, seed: int) -> FloatArray | None:
    """Axes (draws, width) from personas drawn again within each side, unit norm; None where there is nothing to draw from."""
    assert axis.means is not None
    values = axis.means[:, axis.layers.index(layer)].astype(np.float64)
    sides = np.array([persona in axis.assistants for persona in axis.personas])
    if min(sides.sum(), (~sides).sum()) < 1 or len(sides) < 3:
        return None
    rng = np.random.default_rng((seed, 3, layer))
    made = []
    for _ in range(draws):
        ends = [values[side][rng.integers(0, side.sum(), side.sum())].mean(axis=0) for side in (sides, ~sides)]
        made.append(ends[0] - ends[1])
    vectors = np.stack(made)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _turn_means(run: Run, table: RunTable, layer: int, vectors: FloatArray) -> FloatArray:
    """Mean projection (draws, cells, T) of each cell's rollouts at each turn; NaN where none has it."""
    from drift_cli.store.reader import read_residual_layer

    stored, measured = run.manifest.layers, table.segment or Part.ANSWER
    cells, turns = len(table.cells), table.projections.shape[1]
    total, count = np.zeros((len(vectors), cells, turns)), np.zeros((cells, turns))
    for row, state in enumerate(run.states()):
        there = np.isfinite(table.projections[row])
        if there.any():
            means = read_residual_layer(run.paths, state.rollout, stored.index(layer), len(stored), vectors.shape[1], measured)
            part = means[table.first - 1 :][:turns]
            there = there[: len(part)]
            total[:, table.cell_of[row], : len(part)][:, there] += project_each(part[there], vectors)
            count[table.cell_of[row], : len(part)][there] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _errors(table: RunTable, study: Study, means: FloatArray, personas: int) -> Iterator[AxisError]:
    place = {(cell.condition, cell.transcript, cell.temperature): index for index, cell in enumerate(table.cells)}
    for row in (*study.comparisons, *study.drift):
        if row.measure not in (Measure.MEAN, Measure.CHANGE) or row.b != study.baseline or row.low is None or row.high is None:
            continue
        if row.transcript is None or row.temperature is None or row.difference is None:
            continue
        a, b = (means[:, place[name, row.transcript, row.temperature]] for name in (row.a, row.b))
        sd = plain(_spread(a - b, table.first, row.measure))
        if sd is not None:
            yield _carried(row, sd, personas)


def _spread(difference: FloatArray, first: int, measure: str) -> float:
    """SD over axes of the measure of `difference` (draws, T)."""
    counts = np.logical_and.reduce(np.isfinite(difference), axis=0)
    if counts.sum() < least_turns(measure):
        return float("nan")
    turns = (first + np.arange(difference.shape[1], dtype=np.float64))[counts]
    weight = weights(measure, turns)
    assert weight is not None  # mean and change are linear
    return float((difference[:, counts] @ weight).std(ddof=1))


def _carried(row: Comparison, sd: float, personas: int) -> AxisError:
    assert row.low is not None
    assert row.high is not None
    assert row.transcript is not None
    assert row.temperature is not None
    middle, half = (row.low + row.high) / 2, (row.high - row.low) / 2
    wide = float(np.hypot(half, stats.norm.ppf((1 + row.level) / 2) * sd))
    return AxisError(
        condition=row.a,
        transcript=row.transcript,
        temperature=row.temperature,
        measure=row.measure,
        sd=sd,
        low=middle - wide,
        high=middle + wide,
        personas=personas,
    )
