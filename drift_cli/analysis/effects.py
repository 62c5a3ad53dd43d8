"""Standardized effects with intervals, and equivalence. Arrays `a` (n, K) and `b` (m, K): K comparisons at once, everything finite and not constant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from drift_cli.analysis.table import FloatArray

LEAST_DF = 1.5
"""Degrees of freedom from which on there is an effect: with fewer the correction alone more than doubles it."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Hedges' g with its interval, each (K,); NaN where it cannot be computed."""

    g: FloatArray
    low: FloatArray
    high: FloatArray


def hedges_g(a: FloatArray, b: FloatArray, level: float) -> Effects:
    """Difference of means over √((s_a² + s_b²) / 2), the average of both variances, times the small-sample correction (Hedges 1981, eq. 6e).

    Neither side's spread is assumed to be the other's, so that g goes with Welch's test. The correction has the degrees of freedom of the average variance
    (Delacre, Lakens, Ley, Liu & Leys 2021). The interval inverts the noncentral t distribution of Welch's t with Welch's degrees of freedom (Shieh 2013),
    scaled to the standardizer; its ends are of the population effect and not corrected.
    """
    n, m = len(a), len(b)
    v, w = a.var(axis=0, ddof=1), b.var(axis=0, ddof=1)
    variance, error = (v + w) / 2, v / n + w / m
    df = error**2 / ((v / n) ** 2 / (n - 1) + (w / m) ** 2 / (m - 1))
    average_df = (v + w) ** 2 / (v**2 / (n - 1) + w**2 / (m - 1))
    return _interval((a.mean(axis=0) - b.mean(axis=0)) / np.sqrt(variance), np.sqrt(error / variance), df, average_df, level)


def hedges_g_paired(a: FloatArray, b: FloatArray, level: float) -> Effects:
    """The same effect (in SDs of the rollouts, not of the differences, so that it can be set beside unpaired ones) of paired rows.

    The interval is Algina & Keselman's (2003): noncentral t of the paired statistic, scaled. The correction has 2 (n - 1) / (1 + r²) degrees of freedom
    (Cousineau & Goulet-Pelletier 2021).
    """
    n = len(a)
    variance = (a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / 2
    r = ((a - a.mean(axis=0)) * (b - b.mean(axis=0))).sum(axis=0) / (n - 1) / variance
    d = (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt(variance)
    scale = np.sqrt((a - b).var(axis=0, ddof=1) / n / variance)
    return _interval(d, scale, np.full(d.shape, n - 1.0), 2 * (n - 1) / (1 + r**2), level)


def _interval(d: FloatArray, scale: FloatArray, df: FloatArray, correction_df: FloatArray, level: float) -> Effects:
    """Effects `d`, where d / scale has a noncentral t distribution with `df` degrees of freedom around the true d / scale."""
    possible = df >= LEAST_DF
    safe = np.where(possible, df, LEAST_DF)
    t, tail = d / scale, (1 - level) / 2
    g = small_sample_correction(np.maximum(correction_df, LEAST_DF)) * d
    low, high = (special.nctdtrinc(safe, share, t) * scale for share in (1 - tail, tail))
    return Effects(*(np.where(possible, found, np.nan) for found in (g, low, high)))


def small_sample_correction(df: FloatArray) -> FloatArray:
    """J(df) = Γ(df/2) / (√(df/2) Γ((df - 1)/2)) (Hedges 1981)."""
    correction: FloatArray = np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2) - np.log(df / 2) / 2)
    return correction


def equivalence(a: FloatArray, b: FloatArray, margin: float) -> FloatArray:
    """p (K,) of two one-sided Welch tests against ± `margin` (Schuirmann 1987; `statsmodels.stats.weightstats.ttost_ind`)."""
    from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

    p, *_ = CompareMeans(DescrStatsW(a), DescrStatsW(b)).ttost_ind(-margin, margin, usevar="unequal")
    return np.atleast_1d(np.asarray(p, dtype=np.float64))


def equivalence_paired(a: FloatArray, b: FloatArray, margin: float) -> FloatArray:
    """p (K,) of two one-sided paired t tests against ± `margin` (`statsmodels.stats.weightstats`)."""
    from statsmodels.stats.weightstats import DescrStatsW

    p, *_ = DescrStatsW(a - b).ttost_mean(-margin, margin)
    return np.atleast_1d(np.asarray(p, dtype=np.float64))
