"""Rollouts that break: how often, when, and whether they come back. A rollout that leaves for good makes a condition's rollouts a mixture, of which means and
their tests say little: where few break deeply under one condition and many a little under the other, tests of means reject 17 % of true nulls at 16 rollouts.

The rule: a rollout is broken from the turn on after which every reply that it has projects below the threshold, if these are `LEAST_STAY` replies or more. The
threshold is the midpoint between the assistant personas and the others, or one that is given. A rollout that was below for as many replies in a row and came
back has recovered.

- difference of the shares that break: Newcombe's hybrid score interval (1998, Stat. Med. 17:873, method 10), Boschloo's exact test (1970; `scipy.stats`).
- time to break: Kaplan-Meier median and the log-rank test (`statsmodels.duration`); a rollout that ended before it broke is censored there.
- bimodality: a warning where rollout means fall into two groups (share of the sum of squares between the two sides of the best split) or one lies far out
  (Grubbs 1969), each beyond what 1 % of normal samples show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from drift_cli.analysis.compare import adjust
from drift_cli.analysis.measures import Sample
from drift_cli.analysis.results import Correction, Measure
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import FloatArray

LEAST_STAY = 2
MOST_EXACT = 40
"""Comparisons that have Boschloo's test: it takes a tenth of a second each."""
_LEAST_MODES = 8


@dataclass(frozen=True, kw_only=True)
class Breaks:
    """One condition, and its difference from the baseline; the baseline's own has none."""

    condition: str
    transcript: str
    temperature: float
    threshold: float
    n: int
    broken: int
    recovered: int
    median: float | None
    """Kaplan-Meier median of the turn at which rollouts break; None where fewer than half do."""
    difference: float | None = None
    """Of the shares that break, condition less baseline."""
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Boschloo's."""
    p_adjusted: float | None = None
    """By Holm over the conditions of this table."""
    p_logrank: float | None = None


@dataclass(frozen=True, eq=False)
class _Times:
    """Of each begun rollout (n,): the turn at which it broke or was last seen, whether it broke, whether it recovered."""

    at: FloatArray
    broke: NDArray[np.bool_]
    recovered: NDArray[np.bool_]


def breaks(samples: Sequence[Sample], baseline: str, threshold: float, level: float) -> tuple[Breaks, ...]:
    """Every condition of one transcript and temperature, the baseline first."""
    base = next((of for of in samples if of.cell.condition == baseline), None)
    known = None if base is None else _times(base, threshold)
    others = [of for of in samples if of is not base]
    rows = [_row(of, threshold, known, level, exact=len(others) <= MOST_EXACT) for of in others]
    rows = [replace(row, p_adjusted=p) for row, p in zip(rows, adjust([row.p for row in rows], Correction.HOLM), strict=True)]
    return (*(() if base is None else (_row(base, threshold, None, level, exact=False),)), *rows)


def newcombe(x: int, n: int, y: int, m: int, level: float) -> tuple[float, float]:
    """Interval of x / n - y / m from Wilson's intervals of the two shares."""
    (l1, u1), (l2, u2) = _wilson(x, n, level), _wilson(y, m, level)
    p, q = x / n, y / m
    return p - q - float(np.hypot(p - l1, u2 - q)), p - q + float(np.hypot(u1 - p, q - l2))


def bimodal(values: FloatArray) -> bool:
    """Whether observations (n,) fall into two groups or have one far out, beyond 1 % of normal samples each; False for fewer than 8."""
    x = np.sort(values[np.isfinite(values)])
    n, spread = len(x), float(((x - x.mean()) ** 2).sum()) if len(x) else 0.0
    if n < _LEAST_MODES or spread <= 1e-24:
        return False
    k, total = np.arange(1, n), np.cumsum(x)
    between = k * (n - k) / n * (total[:-1] / k - (total[-1] - total[:-1]) / (n - k)) ** 2
    # 2 / π is what the halves of a normal distribution give; .87 / √n was simulated (40,000 samples of 8 to 128).
    split = between.max() / spread > 2 / np.pi + 0.87 / np.sqrt(n)
    t = float(stats.t.ppf(1 - 0.01 / (2 * n), n - 2))
    grubbs = (n - 1) / np.sqrt(n) * np.sqrt(t**2 / (n - 2 + t**2))
    return bool(split or np.abs(x - x.mean()).max() / np.sqrt(spread / (n - 1)) > grubbs)


def two_groups(of: Sample) -> bool:
    """`bimodal` of the rollouts' means."""
    return bimodal(of.own[Measure.MEAN])


def _times(of: Sample, threshold: float) -> _Times:
    at, broke, recovered = [], [], []
    for row in of.values[of.has.any(axis=1)]:
        places = np.flatnonzero(np.isfinite(row))
        below = row[places] < threshold
        stays = len(below) if below.all() else int(np.argmax(~below[::-1]))
        broken = stays >= LEAST_STAY
        broke.append(broken)
        at.append(of.turns[places[len(below) - stays]] if broken else of.turns[places[-1]])
        recovered.append(_longest(below[: len(below) - stays]) >= LEAST_STAY)
    return _Times(np.array(at, dtype=np.float64), np.array(broke, dtype=np.bool_), np.array(recovered, dtype=np.bool_))


def _longest(below: NDArray[np.bool_]) -> int:
    """The longest run of True."""
    longest = run = 0
    for one in below:
        run = run + 1 if one else 0
        longest = max(longest, run)
    return longest


def _row(of: Sample, threshold: float, base: _Times | None, level: float, *, exact: bool) -> Breaks:
    times = _times(of, threshold)
    n, broken = len(times.at), int(times.broke.sum())
    row = Breaks(
        condition=of.cell.condition,
        transcript=of.cell.transcript,
        temperature=of.cell.temperature,
        threshold=threshold,
        n=n,
        broken=broken,
        recovered=int(times.recovered.sum()),
        median=_median(times) if n else None,
    )
    if base is None or not n or not len(base.at):
        return row
    m, other = len(base.at), int(base.broke.sum())
    low, high = newcombe(broken, n, other, m, level)
    share, p = broken / n - other / m, None
    if exact and 0 < broken + other < n + m:
        p = plain(min(float(stats.boschloo_exact([[broken, other], [n - broken, m - other]]).pvalue), 1.0))
    return replace(row, difference=share, low=low, high=high, p=p, p_logrank=_logrank(times, base))


def _median(times: _Times) -> float | None:
    if not times.broke.any():
        return None
    from statsmodels.duration.survfunc import SurvfuncRight

    curve = SurvfuncRight(times.at, times.broke.astype(int))
    half = np.flatnonzero(np.asarray(curve.surv_prob) <= 0.5 + 1e-12)
    return plain(float(curve.surv_times[half[0]])) if len(half) else None


def _logrank(a: _Times, b: _Times) -> float | None:
    if not (a.broke.any() or b.broke.any()):
        return None
    from statsmodels.duration.survfunc import survdiff

    time, status = np.concatenate([a.at, b.at]), np.concatenate([a.broke, b.broke]).astype(int)
    with np.errstate(divide="ignore", invalid="ignore"):
        _, p = survdiff(time, status, np.repeat([0, 1], [len(a.at), len(b.at)]))
    return plain(p)


def _wilson(x: int, n: int, level: float) -> tuple[float, float]:
    found = stats.binomtest(x, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
