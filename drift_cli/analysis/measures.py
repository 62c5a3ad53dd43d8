"""Drift's own measures of a rollout, and what becomes of rollouts that lack turns. (`measure.py` has the registry, which others add to.)

Each of them is a linear function Σ_t w_t y_t of a rollout's projections y over the T turns that count:

- *mean*: over the turns.
- *change*: mean of the later turns minus the first: how far the rollout went from its own start. Differences of it are differences of differences.
- *slope*: per turn, ordinary least squares on the turn's number.
- *area*: sum over the turns of y - y(first turn): the change times T - 1, so it has the change's test in other units.
- *thirds*: mean of the last third of the turns minus mean of the first third (floor(T / 3) turns each).

Rollouts that lack turns (ended early, unfinished, or a reply left out) cannot simply be averaged over what they have: turns differ far more than rollouts
do. A condition's measure is Σ_t w_t m_t, where m_t is the mean of the n_t rollouts that have turn t; two conditions' difference is then the same weights on
the per-turn differences. A rollout's observation is its part in that estimate (its influence):

    z_i = Σ_t w_t m_t + Σ_{t that i has} w_t (n / n_t) c_t (y_it - m_t),   c_t = √(n_t (n - 1) / (n (n_t - 1)))

Their mean is the estimate, their variance over n its squared standard error, with rollouts as the units; c_t makes a turn's share of it unbiased. For
rollouts with all turns z_i is the measure itself. It is right where turns are missing independently of what would have been said; `dropout.py` bounds what
they may hide where they are not. A turn counts where both conditions have it in two rollouts (in one, where a condition has but one).

An added measure that is no linear function has no such influence: rollouts that lack a turn that counts are left out of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.measure import RolloutMeasure, find_rollout_measure, register_own, rollout_measures
from drift_cli.analysis.results import Measure
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.spec import Cell


def _change(turns: FloatArray) -> FloatArray:
    found = np.full(len(turns), 1 / (len(turns) - 1))
    found[0] = -1.0
    return found


def _slope(turns: FloatArray) -> FloatArray:
    centred = turns - turns.mean()
    return np.asarray(centred / (centred**2).sum())


def _thirds(turns: FloatArray) -> FloatArray:
    found, third = np.zeros(len(turns)), len(turns) // 3
    found[:third], found[-third:] = -1 / third, 1 / third
    return found


register_own(
    (
        RolloutMeasure(Measure.MEAN, "mean", 1, lambda turns: np.full(len(turns), 1 / len(turns))),
        RolloutMeasure(Measure.CHANGE, "change from the first turn", 2, _change),
        RolloutMeasure(Measure.SLOPE, "slope per turn", 2, _slope),
        RolloutMeasure(Measure.AREA, "area from the first turn", 2, lambda turns: _change(turns) * (len(turns) - 1)),
        RolloutMeasure(Measure.THIRDS, "last third − first third", 3, _thirds),
    )
)


def least_turns(measure: str) -> int:
    """How many turns a measure needs."""
    return find_rollout_measure(measure).least


class _Own(dict[str, FloatArray]):
    """A sample's observations (n,) by measure, over the turns that the cell itself has; each is taken when it is first asked for."""

    def __init__(self, of: Sample) -> None:
        super().__init__()
        self._of = of

    def __missing__(self, measure: str) -> FloatArray:
        self[measure] = found = take(measure, self._of, self._of.counts)
        return found


@dataclass(frozen=True, eq=False)
class Sample:
    """A cell's rollouts: values (n, T) with NaN where a turn is missing, sample indices (n,), the turns' numbers (T,)."""

    cell: Cell
    values: FloatArray
    samples: NDArray[np.int64]
    turns: FloatArray
    unmerged: Sample | None = None
    """Where copies are one observation, the sample with each of them."""
    place: NDArray[np.intp] | None = None
    """(n,) of `unmerged`: which observation here each rollout is part of."""

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
    def counts(self) -> NDArray[np.bool_]:
        """(T,): turns that two rollouts have (one, where the cell has but one)."""
        counts: NDArray[np.bool_] = self.has.sum(axis=0) >= max(min(2, self.started), 1)
        return counts

    @cached_property
    def turn_means(self) -> FloatArray:
        """(T,); NaN where no rollout has the turn."""
        n = self.has.sum(axis=0)
        total = np.where(self.has, self.values, 0.0).sum(axis=0)
        means: FloatArray = np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
        return means

    @cached_property
    def own(self) -> dict[str, FloatArray]:
        """Each measure's observations (n,) over the turns that the cell itself has, taken when asked for."""
        return _Own(self)

    def begun(self) -> Sample:
        """The rollouts that have a turn."""
        rows = self.has.any(axis=1)
        return replace(self, values=self.values[rows], samples=self.samples[rows], unmerged=None, place=None)


def sample(table: RunTable, cell: Cell, *, merge: bool = True) -> Sample:
    """The cell's rollouts on the turns of its transcript; with `merge`, rollouts that are word for word the same as one observation."""
    rows = table.rows(cell)
    values = table.projections[rows][:, : table.length(cell.transcript)]
    found = Sample(cell, values, table.sample[rows], table.first + np.arange(values.shape[1], dtype=np.float64))
    return found if table.replies is None or not merge else merged(found, table.replies.copies(rows))


def merged(of: Sample, first: NDArray[np.intp]) -> Sample:
    """The sample with copies as one observation; `first` (n,) says of each rollout which it is a copy of.

    Means stay those of all rollouts: of K distinct ones at a turn, the one with w_k copies among n becomes m + (K w_k / n) (y_k - m), m being the mean of
    all n. The mean of these K numbers is m, and their variance over K is that of clusters: copies add no evidence.
    """
    kept, place = np.unique(first, return_inverse=True)
    if len(kept) == len(first):
        return of
    has = of.has.astype(np.float64)
    copies, total = np.zeros((len(kept), of.values.shape[1])), np.zeros((len(kept), of.values.shape[1]))
    np.add.at(copies, place, has)
    np.add.at(total, place, np.where(of.has, of.values, 0.0))
    there = copies > 0
    own = np.divide(total, copies, out=np.full(total.shape, np.nan), where=there)
    weight = there.sum(axis=0) * copies / np.maximum(has.sum(axis=0), 1)
    values = np.where(there, of.turn_means + weight * (own - of.turn_means), np.nan)
    return replace(of, values=values, samples=of.samples[kept], unmerged=of, place=place)


def both(measure: str, a: Sample, b: Sample) -> tuple[FloatArray, FloatArray]:
    """Observations (n,) of the rollouts of `a` and `b` over the turns that count for both; NaN where a rollout has none of them."""
    if a.complete and b.complete:
        return a.own[measure], b.own[measure]
    counts = a.counts & b.counts
    return take(measure, a, counts), take(measure, b, counts)


def matched(a: Sample, b: Sample) -> tuple[Sample, Sample]:
    """The samples that both have, in the same order, with only the turns that both have: pairs of replies."""
    _, of_a, of_b = np.intersect1d(a.samples, b.samples, return_indices=True)
    there = a.has[of_a] & b.has[of_b]
    some = there.any(axis=1)
    return tuple(  # type: ignore[return-value]
        replace(of, values=np.where(there, of.values[rows], np.nan)[some], samples=of.samples[rows][some], unmerged=None, place=None)
        for of, rows in ((a, of_a), (b, of_b))
    )


def weights(measure: str, turns: FloatArray) -> FloatArray | None:
    """The measure's weights (T,) on the turns that count, by their numbers (T,), at least `least_turns`; None for one that is not linear."""
    found = find_rollout_measure(measure).weights
    return None if found is None else found(turns)


def take(measure: str, of: Sample, counts: NDArray[np.bool_]) -> FloatArray:
    """The measure's observations z (n,) over the turns of `counts` (T,); NaN for rollouts that have none of them, and for all where they are too few."""
    found = np.full(len(of.values), np.nan)
    turns = of.turns[counts]
    if len(turns) < least_turns(measure):
        return found
    weight = weights(measure, turns)
    if weight is None:
        return _taken(find_rollout_measure(measure), of, counts)
    if of.complete:
        found[of.has.any(axis=1)] = of.values[of.has.any(axis=1)][:, counts] @ weight
        return found
    has, means = of.has[:, counts], of.turn_means[counts]
    there = has.any(axis=1)
    n, each = float(there.sum()), has.sum(axis=0).astype(np.float64)
    correction = np.sqrt(np.where(each > 1, each * max(n - 1, 0) / (n * np.maximum(each - 1, 1)), 1.0))
    deviations = np.where(has, of.values[:, counts] - means, 0.0)
    found[there] = (means @ weight) + (deviations @ (weight * n / np.maximum(each, 1) * correction))[there]
    return found


def _taken(measure: RolloutMeasure, of: Sample, counts: NDArray[np.bool_]) -> FloatArray:
    """Observations (n,) of a measure that is not linear: of rollouts with all turns that count. Copies are one observation, as `merged` has them."""
    each = of if of.unmerged is None else of.unmerged
    whole = each.has[:, counts].all(axis=1)
    values = np.full(len(each.values), np.nan)
    values[whole] = measure.take(each.values[whole][:, counts], of.turns[counts])
    if of.place is None:
        return values
    copies = np.bincount(of.place[whole], minlength=len(of.values)).astype(np.float64)
    total = np.bincount(of.place[whole], weights=values[whole], minlength=len(of.values))
    there = copies > 0
    own = np.divide(total, copies, out=np.full(total.shape, np.nan), where=there)
    mean, share = total.sum() / max(copies.sum(), 1.0), there.sum() * copies / max(copies.sum(), 1.0)
    return np.where(there, mean + share * (own - mean), np.nan)


def own(table: RunTable) -> dict[str, FloatArray]:
    """Each measure's observations (R,) of the table's rollouts, by name: what the statistics take of each. Their mean over a condition is its estimate.

    Of a rollout with all turns, its measure; of one that lacks some, its part in the condition's estimate (see above); NaN for one without a turn.
    """
    found = {measure.name: np.full(len(table.sample), np.nan) for measure in rollout_measures()}
    for cell in table.cells:
        of = sample(table, cell, merge=False)
        for measure, values in found.items():
            values[table.rows(cell)] = of.own[measure]
    return found


def lacking_note(*samples: Sample, measure: str = Measure.MEAN) -> str | None:
    """The sentence on rollouts that lack turns and on turns that do not count, or None."""
    how = (
        "each turn is compared between the rollouts that have it."
        if find_rollout_measure(measure).weights is not None
        else "those without a turn that counts are left out."
    )
    return " ".join(_lacking(samples, how)) or None


def _lacking(samples: tuple[Sample, ...], how: str) -> Iterator[str]:
    for found in samples:
        if found.lacking:
            yield (
                f"{found.lacking} of {found.started} rollouts of {found.cell.condition} lack turns (ended early, unfinished, or replies left out); {how}"
            )
    started = [found for found in samples if found.started]
    counts = np.logical_and.reduce([found.counts for found in started]) if started else np.empty(0, dtype=np.bool_)
    if counts.any() and not counts.all():
        left = ", ".join(str(int(turn)) for turn in started[0].turns[~counts])
        yield f"Turns {left} do not count: fewer than two rollouts of a condition have them."
