"""What could make a difference beside the thing that is compared: the replies' length, their position, what is there at the first turn already.

- Length: log of (words + 1). Its correlation with the projection is pooled over conditions × turns, each around its own mean, so that neither the script nor
  the condition makes it. The adjusted difference takes away the pooled slope times the difference in length, turn by turn; its interval is the delete-one
  jackknife's over rollouts (Efron 1982), slope and all, with n + m - 2 degrees of freedom. Where a condition works by making replies longer or shorter,
  the adjusted difference leaves that part of its effect out.
- Position: words that the rollout's earlier replies had, likewise within condition and turn.
- At the first turn: how much of the difference of means is there before the conversation has gone anywhere: a prompt's presence, not drift.
- Common noise: the correlation of sample s with sample s over the two conditions, and what pairing would gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from drift_cli.analysis.measures import Sample, matched, sample
from drift_cli.analysis.results import Measure
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.spec import Cell

LEAST = 4
"""Rollouts a side that a correlation or an adjustment needs."""


@dataclass(frozen=True, kw_only=True)
class Confounds:
    """Of one condition's difference from the baseline, in one transcript and temperature; None where it cannot be computed."""

    a: str
    b: str
    transcript: str
    temperature: float
    first: float | None
    """The difference at the first turn."""
    adjusted: float | None
    """The difference of means at equal length."""
    adjusted_low: float | None
    adjusted_high: float | None
    longer: float | None
    """Mean words of a reply of a, over that of b."""
    r: float | None
    """Of paired rollout means, where the samples shared their noise."""
    gain: float | None
    """Variance of the difference without pairing, over that with it."""


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Of one transcript and temperature, within conditions and turns."""

    transcript: str
    temperature: float
    length: float | None
    position: float | None
    replies: int


@dataclass(frozen=True, eq=False)
class _Cell:
    """A cell's projections and reply lengths, (n, T) each, NaN where missing."""

    y: FloatArray
    length: FloatArray
    position: FloatArray


def correlations(table: RunTable, group: Group) -> Correlations:
    """r of the projection with length and position."""
    cells = [_read(table, cell) for cell in _cells(table, group)]
    known = [cell for cell in cells if cell is not None]
    return Correlations(
        transcript=group.transcript,
        temperature=group.temperature,
        length=_correlation([(cell.y, cell.length) for cell in known]),
        position=_correlation([(cell.y[:, 1:], cell.position[:, 1:]) for cell in known]),
        replies=sum(int(np.isfinite(cell.y).sum()) for cell in known),
    )


def confounds(table: RunTable, group: Group, baseline: str, level: float) -> tuple[Confounds, ...]:
    """Every condition's difference from the baseline."""
    cells = _cells(table, group)
    base = next((cell for cell in cells if cell.condition == baseline), None)
    if base is None:
        return ()
    read = {cell: _read(table, cell) for cell in cells}
    pooled = _slope_parts([found for found in read.values() if found is not None])
    return tuple(_of(table, cell, base, read, pooled, level) for cell in cells if cell is not base)


def _of(table: RunTable, a: Cell, b: Cell, read: dict[Cell, _Cell | None], pooled: tuple[float, float], level: float) -> Confounds:
    x, y = sample(table, a), sample(table, b)
    counts = x.counts & y.counts
    first = plain(x.turn_means[counts][0] - y.turn_means[counts][0]) if counts.any() else None
    of_a, of_b = read[a], read[b]
    found = None if of_a is None or of_b is None else _adjusted(of_a, of_b, pooled, counts, level)
    longer = None if of_a is None or of_b is None else _ratio(of_a, of_b)
    r, gain = _shared(sample(table, a, merge=False), sample(table, b, merge=False)) if table.common_noise else (None, None)
    return Confounds(
        a=a.condition,
        b=b.condition,
        transcript=a.transcript,
        temperature=a.temperature,
        first=first,
        adjusted=found and found[0],
        adjusted_low=found and found[1],
        adjusted_high=found and found[2],
        longer=longer,
        r=r,
        gain=gain,
    )


def _cells(table: RunTable, group: Group) -> list[Cell]:
    return [cell for cell in table.cells if (cell.transcript, cell.temperature) == group]


def _read(table: RunTable, cell: Cell) -> _Cell | None:
    """None where the texts are not known."""
    rows = table.rows(cell) & (table.turns > 0)
    if table.replies is None or not rows.any():
        return None
    width = table.length(cell.transcript)
    y, words = table.projections[rows][:, :width], table.replies.words[rows][:, :width].astype(np.float64)
    if (np.isfinite(y) & (words < 0)).any():
        return None
    before = np.concatenate([np.zeros((len(words), 1)), np.cumsum(np.maximum(words, 0.0), axis=1)[:, :-1]], axis=1)
    there = np.isfinite(y)
    return _Cell(y, np.where(there, np.log1p(np.maximum(words, 0.0)), np.nan), np.where(there, before, np.nan))


def _centred(values: FloatArray) -> FloatArray:
    """Around each turn's mean, 0 where missing."""
    has = np.isfinite(values)
    mean = np.where(has, values, 0.0).sum(axis=0) / np.maximum(has.sum(axis=0), 1)
    return np.where(has, values - mean, 0.0)


def _correlation(parts: Sequence[tuple[FloatArray, FloatArray]]) -> float | None:
    sums = np.zeros(3)
    for y, x in parts:
        u, v = _centred(y), _centred(x)
        sums += [(u * v).sum(), (u * u).sum(), (v * v).sum()]
    return plain(sums[0] / np.sqrt(sums[1] * sums[2])) if sums[1] > 0 and sums[2] > 0 else None


def _slope_parts(cells: Sequence[_Cell]) -> tuple[float, float]:
    """Σ uv and Σ v² of projection and length around their turns' means."""
    total = np.zeros(2)
    for cell in cells:
        u, v = _centred(cell.y), _centred(cell.length)
        total += [(u * v).sum(), (v * v).sum()]
    return float(total[0]), float(total[1])


def _adjusted(
    a: _Cell, b: _Cell, pooled: tuple[float, float], counts: NDArray[np.bool_], level: float
) -> tuple[float, float, float] | None:
    """The difference at equal length, and its interval."""
    n, m = len(a.y), len(b.y)
    if min(n, m) < LEAST or not counts.any() or pooled[1] <= 1e-9:
        return None
    slope = pooled[0] / pooled[1]

    def contribution(y: FloatArray, length: FloatArray, at: float | FloatArray) -> FloatArray:
        """Mean over the turns that count of a condition's means (…, T), at a slope (…)."""
        return np.asarray(y[..., counts].mean(axis=-1) - at * length[..., counts].mean(axis=-1))

    y_a, y_b, length_a, length_b = (np.nanmean(values, axis=0) for values in (a.y, b.y, a.length, b.length))
    middle = float(contribution(y_a, length_a, slope) - contribution(y_b, length_b, slope))
    spread = 0.0
    for cell, other, other_length, sign in ((a, y_b, length_b, 1), (b, y_a, length_a, -1)):
        y, length, products = _without_one(cell)
        slopes = (pooled[0] - products[0]) / (pooled[1] - products[1])
        values = sign * (contribution(y, length, slopes) - contribution(other[None], other_length[None], slopes))
        if not np.isfinite(values).all():
            return None
        spread += (len(values) - 1) / len(values) * float(((values - values.mean()) ** 2).sum())
    half = float(stats.t.ppf((1 + level) / 2, n + m - 2)) * spread**0.5
    return middle, middle - half, middle + half


def _without_one(cell: _Cell) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Turn means of projection and length without each rollout, (n, T) each, NaN where none is left; and what it adds to Σ uv and Σ v² (2, n)."""
    has = np.isfinite(cell.y)
    n = has.sum(axis=0)
    u, v = _centred(cell.y), _centred(cell.length)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(has & (n == 1), np.nan, 1 / np.maximum(n - 1, 1))
    means = [np.nanmean(values, axis=0) - left * centred for values, centred in ((cell.y, u), (cell.length, v))]
    share = np.where(n > 1, n / np.maximum(n - 1, 1), 0.0)
    return means[0], means[1], np.stack([(share * u * v).sum(axis=1), (share * v * v).sum(axis=1)])


def _ratio(a: _Cell, b: _Cell) -> float | None:
    of_a, of_b = (float(np.nanmean(np.expm1(cell.length))) for cell in (a, b))
    return plain(of_a / of_b) if of_b > 0 else None


def _shared(a: Sample, b: Sample) -> tuple[float | None, float | None]:
    """r of paired rollout means, and the gain of pairing."""
    x, y = (of.own[Measure.MEAN] for of in matched(a, b))
    if len(x) < LEAST or min(x.std(), y.std(), (x - y).std()) <= 1e-12:
        return None, None
    return plain(float(np.corrcoef(x, y)[0, 1])), plain((x.var(ddof=1) + y.var(ddof=1)) / (x - y).var(ddof=1))
