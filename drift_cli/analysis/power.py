"""What more rollouts would show: from the variance that a run has, before they are generated.

The difference that a two-sample t test finds with the asked power at n rollouts a side (`statsmodels.stats.power.TTestIndPower`; Cohen 1988), half the
width of its interval, and the n that a half-width needs. The SD is the root mean square of the two conditions' sample SDs. It is an estimate itself: its
own interval (chi-squared, for normal observations) is carried through to the detectable difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from scipy import optimize, stats

from drift_cli.analysis.compare import Pair, pairs
from drift_cli.analysis.measures import both, lacking_note, sample
from drift_cli.analysis.results import Measure, Options
from drift_cli.analysis.summary import constant
from drift_cli.analysis.table import FloatArray, RunTable

SIZES = (16, 32, 64, 128, 256)
MOST = 10_000_000
"""Rollouts a side, beyond which no n is searched for."""


@dataclass(frozen=True)
class AtSize:
    """What n rollouts a side would show."""

    n: int
    detectable: float
    """The difference that is found with the asked power."""
    detectable_low: float
    detectable_high: float
    """The same at the ends of the SD's own interval."""
    half_width: float
    """Of the interval of the difference."""


@dataclass(frozen=True)
class Needed:
    """The n a side that an interval of a given half-width needs; None where it is beyond reach."""

    half_width: float
    n: int | None


@dataclass(frozen=True, kw_only=True)
class Power:
    """One pair of conditions on one measure."""

    a: str
    b: str
    transcript: str
    temperature: float
    measure: str
    n_a: int
    n_b: int
    level: float
    power: float
    sd: float | None = None
    sd_low: float | None = None
    sd_high: float | None = None
    sizes: tuple[AtSize, ...] = ()
    needed: tuple[Needed, ...] = ()
    note: str | None = None


def power(
    table: RunTable,
    options: Options,
    *,
    half_widths: Sequence[float] = (),
    goal: float = 0.8,
    measures: Sequence[str] = (Measure.MEAN, Measure.SLOPE),
) -> tuple[Power, ...]:
    """Each pair's `Power`; without `half_widths`, half of what the run has now."""
    found = pairs([sample(table, cell) for cell in table.cells], options.against)
    return tuple(_of(pair, measure, options, half_widths, goal) for measure in measures for pair in found)


def _of(pair: Pair, measure: str, options: Options, half_widths: Sequence[float], goal: float) -> Power:
    a, b = (values[np.isfinite(values)] for values in both(measure, *pair))
    of = Power(
        a=pair[0].cell.condition,
        b=pair[1].cell.condition,
        transcript=pair[0].cell.transcript,
        temperature=pair[0].cell.temperature,
        measure=measure,
        n_a=len(a),
        n_b=len(b),
        level=options.level,
        power=goal,
    )
    said = lacking_note(*pair)
    if min(len(a), len(b)) < 2 or constant(a[:, None])[0] or constant(b[:, None])[0]:
        return Power(**{**vars(of), "note": "Two different rollouts on each side are needed to know a variance."})
    sd, low, high = _spread(a, b, options.level)
    now = half_width(sd, len(a), options.level) if len(a) == len(b) else half_width(sd, 2 / (1 / len(a) + 1 / len(b)), options.level)
    sizes = sorted({*SIZES, *({len(a)} if len(a) == len(b) else ())})
    at = tuple(_at(n, sd, low, high, options.level, goal) for n in sizes)
    needed = tuple(Needed(width, rollouts_for(width, sd, options.level)) for width in half_widths or (now / 2,))
    return Power(**{**vars(of), "sd": sd, "sd_low": low, "sd_high": high, "sizes": at, "needed": needed, "note": said})


def _spread(a: FloatArray, b: FloatArray, level: float) -> tuple[float, float, float]:
    """The SD of an observation, and its interval."""
    sd, df = sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2), len(a) + len(b) - 2
    low, high = (float(sd * np.sqrt(df / stats.chi2.ppf(share, df))) for share in ((1 + level) / 2, (1 - level) / 2))
    return sd, low, high


def _at(n: int, sd: float, low: float, high: float, level: float, goal: float) -> AtSize:
    effect = detectable_effect(n, level, goal)
    return AtSize(n, effect * sd, effect * low, effect * high, half_width(sd, n, level))


def detectable_effect(n: int, level: float, goal: float) -> float:
    """The difference in SDs that a two-sided two-sample t test finds with probability `goal`, n observations a side."""
    from statsmodels.stats.power import TTestIndPower

    return float(TTestIndPower().solve_power(nobs1=n, alpha=1 - level, power=goal))


def half_width(sd: float, n: float, level: float) -> float:
    """Of the t interval of a difference of two means of n observations each."""
    return float(stats.t.ppf((1 + level) / 2, 2 * n - 2) * sd * sqrt(2 / n))


def rollouts_for(width: float, sd: float, level: float) -> int | None:
    """The smallest n a side whose interval has half the width `width` or less."""
    if half_width(sd, MOST, level) > width:
        return None
    if half_width(sd, 2, level) <= width:
        return 2
    n = optimize.brentq(lambda size: half_width(sd, size, level) - width, 2, MOST, xtol=1e-6)
    return ceil(n - 1e-6)
