"""What is taken of each rollout, and what becomes of rollouts that lack turns.

Every measure is a linear function of a rollout's projections y over the T turns that count:

- *mean*: over the turns.
- *slope*: per turn, ordinary least squares on the turn's number.
- *area*: sum over the turns of y - y(first turn), in axis units × turns: how far, and for how long, the rollout was away from where it began.
- *thirds*: mean of the last third of the turns minus mean of the first third (floor(T / 3) turns each).

Rollouts that lack turns (ended early, unfinished, or a reply left out) cannot simply be averaged over what they have: turns differ far more than rollouts
do, so a rollout without the late turns would count as one that stayed put. The rule: two conditions are compared on the turns that both have. There, a
turn's reference is the average of the two conditions' means at that turn; a rollout counts by the measure of its deviations from the reference, on the
turns that it has, plus the measure of the reference over all turns that count. For rollouts with all turns this is the measure itself. It is unbiased
where turns are missing independently of what the reply would have been, and the difference between the conditions does not depend on the turn; a note
counts the rollouts concerned. Slope and area are taken of rollouts that have at least half of the turns (the area also needs the first), thirds of
rollouts with a turn in both thirds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.results import Measure
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.spec import Cell

LEAST_SHARE = 0.5
"""Of the turns: what a rollout must have for its slope or area to count."""
LEAST_TURNS = {Measure.MEAN: 1, Measure.SLOPE: 2, Measure.AREA: 2, Measure.THIRDS: 3}


@dataclass(frozen=True, eq=False)
class Sample:
    """A cell's rollouts: values (n, T) with NaN where a turn is missing, sample indices (n,), the turns' numbers (T,)."""

    cell: Cell
    values: FloatArray
    samples: NDArray[np.int64]
    turns: FloatArray

    @cached_property
    def has(self) -> NDArray[np.bool_]:
        """(n, T)."""
        has: NDArray[np.bool_] = np.isfinite(self.values)
        return has

    @cached_property
    def started(self) -> int:
        """Rollouts with at least one turn."""
        return int(self.has.any(axis=1).sum())

    @cached_property
    def lacking(self) -> int:
        """Rollouts with at least one turn, but not all."""
        return int((self.has.any(axis=1) & ~self.has.all(axis=1)).sum())

    @cached_property
    def complete(self) -> bool:
        """Whether every rollout that has a turn has all."""
        return self.lacking == 0 and self.started > 0

    @cached_property
    def turn_means(self) -> FloatArray:
        """(T,); NaN where no rollout has the turn."""
        return _mean(self.values, self.has, axis=0)

    @cached_property
    def own(self) -> dict[Measure, FloatArray]:
        """Each measure (n,) with the cell's own turn means as the reference."""
        return {measure: take(measure, self, self.turn_means) for measure in Measure}


def sample(table: RunTable, cell: Cell) -> Sample:
    """The cell's rollouts on the turns of its transcript."""
    rows = table.rows(cell)
    values = table.projections[rows][:, : table.length(cell.transcript)]
    return Sample(cell, values, table.sample[rows], table.first + np.arange(values.shape[1], dtype=np.float64))


def both(measure: Measure, a: Sample, b: Sample) -> tuple[FloatArray, FloatArray]:
    """The measure (n,) of the rollouts of `a` and `b`, by the rule above; NaN where a rollout does not have it. Both all NaN without a common turn."""
    if a.complete and b.complete:
        return a.own[measure], b.own[measure]
    reference = (a.turn_means + b.turn_means) / 2
    return take(measure, a, reference), take(measure, b, reference)


def take(measure: Measure, of: Sample, reference: FloatArray) -> FloatArray:
    """The measure (n,) against `reference` (T,), whose NaN are turns that do not count; NaN for rollouts that do not have it."""
    counts = np.isfinite(reference)
    turns, reference = of.turns[counts], reference[counts]
    if len(turns) < LEAST_TURNS[measure]:
        return np.full(len(of.values), np.nan)
    deviations = of.values[:, counts] - reference
    has = np.isfinite(deviations)
    there = np.ones((1, len(turns)), dtype=np.bool_)
    taken: FloatArray = _TAKE[measure](deviations, has, turns) + _TAKE[measure](reference[None, :], there, turns)
    return taken


def _means(y: FloatArray, has: NDArray[np.bool_], _: FloatArray) -> FloatArray:
    return _mean(y, has, axis=1)


def _slope(y: FloatArray, has: NDArray[np.bool_], turns: FloatArray) -> FloatArray:
    centred = np.where(has, turns - _mean(np.broadcast_to(turns, y.shape), has, axis=1)[:, None], 0.0)
    products = (centred * np.where(has, y, 0.0)).sum(axis=1)
    return _quotient(products, (centred**2).sum(axis=1), _enough(has))


def _area(y: FloatArray, has: NDArray[np.bool_], _: FloatArray) -> FloatArray:
    moved = y[:, 1:] - y[:, :1]
    # Summed over the turns it has, scaled to all: the same rule for a rollout that lacks some.
    area = moved.shape[1] * _mean(moved, np.isfinite(moved), axis=1)
    return np.where(_enough(has), area, np.nan)


def _thirds(y: FloatArray, has: NDArray[np.bool_], _: FloatArray) -> FloatArray:
    third = y.shape[1] // 3
    difference: FloatArray = _mean(y[:, -third:], has[:, -third:], axis=1) - _mean(y[:, :third], has[:, :third], axis=1)
    return difference


_TAKE = {Measure.MEAN: _means, Measure.SLOPE: _slope, Measure.AREA: _area, Measure.THIRDS: _thirds}


def _enough(has: NDArray[np.bool_]) -> NDArray[np.bool_]:
    n = has.sum(axis=1)
    enough: NDArray[np.bool_] = (n >= 2) & (n >= LEAST_SHARE * has.shape[1])
    return enough


def _mean(y: FloatArray, has: NDArray[np.bool_], axis: int) -> FloatArray:
    n = has.sum(axis=axis)
    return _quotient(np.where(has, y, 0.0).sum(axis=axis), n, n > 0)


def _quotient(a: FloatArray, b: FloatArray | NDArray[np.int64], where: NDArray[np.bool_]) -> FloatArray:
    """`a / b` where asked, NaN elsewhere, without warnings."""
    quotient: FloatArray = np.divide(a, b, out=np.full(np.shape(a), np.nan), where=where)
    return quotient


def lacking_note(*samples: Sample) -> str | None:
    """The sentence on rollouts that lack turns, or None."""
    return " ".join(_lacking(samples)) or None


def _lacking(samples: tuple[Sample, ...]) -> Iterator[str]:
    for found in samples:
        if found.lacking:
            yield (
                f"{found.lacking} of {found.started} rollouts of {found.cell.condition} lack turns (ended early, unfinished, or replies left out); "
                "they count by their deviations from the turns' means."
            )
