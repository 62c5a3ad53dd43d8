"""Tests of two conditions on arrays of observations: numbers in, numbers out. An observation is a rollout.

All take `a` (n, K) and `b` (m, K): K comparisons at once, of groups of the same sizes, everything finite and not constant.

- `welch`: Welch's t test and interval (Welch 1947; `scipy.stats.ttest_ind(equal_var=False)`). The default: right whatever the variances.
- `permutation`: Welch's t, against itself after permuting the rollouts of both conditions, and against itself after flipping the signs of residuals within
  each (`maxt.py`). The first is exact where the conditions do not differ at all, but at unequal spreads and numbers it rejects 6.3 % and its interval covers
  92.6 %; the second holds there. The larger p and the wider interval are taken.
- `bootstrap`: rollouts are drawn with replacement within each condition; the interval is difference ± c standard errors, where c is the resampled
  quantile of |t*| (symmetric bootstrap-t: Hall 1988, Efron & Tibshirani 1993 ch. 12.5), p the share of |t*| that reach |t|. Not the percentile interval,
  which is too narrow: with 16 a side it covers 92 % for a nominal 95 %.
- `paired`: Student's t of the differences between sample s of one condition and sample s of the other (`scipy.stats.ttest_rel`), and the sign-flip
  permutation of the same differences. Right where samples share their random numbers, and only there.

What these do on simulated drifts (type I errors, coverage) is checked whenever the project's tests run.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from scipy import stats

from drift_cli.analysis.maxt import LEAST_JOINT, Rows, joint
from drift_cli.analysis.resampling import at_least, bootstrap_t, chunks, draws, labels, one_sample_t, signs, welch_t
from drift_cli.analysis.table import FloatArray

LEAST_BOOTSTRAP = 8
"""Rollouts a side. Of fewer, resamples repeat each other so often that their standard errors mean little."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """K comparisons; every array is (K,). What a test does not have is NaN."""

    difference: FloatArray
    low: FloatArray
    high: FloatArray
    p: FloatArray
    statistic: FloatArray
    df: FloatArray
    r: FloatArray
    gain: FloatArray
    p_flip: FloatArray
    p_error: FloatArray
    """Monte Carlo standard error of a p that was resampled at random."""


def welch(a: FloatArray, b: FloatArray, level: float) -> Estimates:
    """Welch's t test and interval."""
    test = stats.ttest_ind(a, b, axis=0, equal_var=False)
    low, high = test.confidence_interval(level)
    return _estimates(a, b, low=low, high=high, p=test.pvalue, statistic=test.statistic, df=test.df)


def bootstrap(a: FloatArray, b: FloatArray, level: float, resamples: int, seed: int) -> Estimates:
    """Symmetric bootstrap-t; the same numbers for the same seed, whatever else is compared."""
    drawn = draws(len(a), resamples, seed, 0), draws(len(b), resamples, seed, 1)
    statistic, critical, reached = welch_statistic(a, b), np.empty(a.shape[1]), np.empty(a.shape[1], dtype=np.int64)
    for part in chunks(resamples, a.shape[1]):
        found = np.abs(bootstrap_t(a[:, part], b[:, part], *drawn))
        critical[part] = np.quantile(found, level, axis=0, method="higher")
        reached[part] = at_least(found, statistic[part])
    half = critical * standard_error(a, b)
    difference = a.mean(axis=0) - b.mean(axis=0)
    p = (reached + 1) / (resamples + 1)
    return _estimates(
        a, b, low=difference - half, high=difference + half, p=p, p_error=monte_carlo_error(p, resamples), statistic=statistic
    )


def permutation(a: FloatArray, b: FloatArray, level: float, resamples: int, seed: int) -> Estimates:
    """Permutation of whole rollouts (all of them where they are no more than `resamples`) and sign flips: the larger p, the wider interval."""
    ways = labels(len(a), len(b), resamples, seed)
    statistic, critical, reached = welch_statistic(a, b), np.empty(a.shape[1]), np.empty(a.shape[1], dtype=np.int64)
    for part in chunks(len(ways.matrix), a.shape[1]):
        reached[part] = at_least(welch_t(np.concatenate([a[:, part], b[:, part]]), ways.matrix), statistic[part])
        deviations = np.concatenate([a[:, part] - a[:, part].mean(axis=0), b[:, part] - b[:, part].mean(axis=0)])
        critical[part] = np.quantile(np.abs(welch_t(deviations, ways.matrix)), level, axis=0, method="higher")
    p, error = ways.p(reached), np.full(a.shape[1], np.nan)
    if not ways.exact:
        error = monte_carlo_error(p, len(ways.matrix))
    if min(len(a), len(b)) >= LEAST_JOINT:
        flipped = joint([Rows.of(a[:, :, None], 0), Rows.of(b[:, :, None], 1)], [(0, 1)], level, resamples, seed)
        wider = flipped.p[:, 0, 0] > p
        p, error = np.where(wider, flipped.p[:, 0, 0], p), np.where(wider, flipped.p_error()[:, 0, 0], error)
        critical = np.fmax(critical, flipped.critical)
    half = critical * standard_error(a, b)
    difference = a.mean(axis=0) - b.mean(axis=0)
    return _estimates(a, b, low=difference - half, high=difference + half, p=p, p_error=error, statistic=statistic)


def paired(a: FloatArray, b: FloatArray, level: float, resamples: int, seed: int) -> Estimates:
    """Paired t test of the rows of `a` and `b` (n, K), the sign-flip test of the same pairs, and what pairing gained."""
    test = stats.ttest_rel(a, b, axis=0)
    low, high = test.confidence_interval(level)
    ways = signs(len(a), resamples, seed)
    reached = np.empty(a.shape[1], dtype=np.int64)
    for part in chunks(len(ways.matrix), a.shape[1]):
        pairs = a[:, part] - b[:, part]
        reached[part] = at_least(one_sample_t(pairs, ways.matrix), one_sample_t(pairs, np.ones((1, len(a))))[0])
    return _estimates(
        a,
        b,
        low=low,
        high=high,
        p=test.pvalue,
        statistic=test.statistic,
        df=test.df,
        r=stats.pearsonr(a, b, axis=0).statistic,
        gain=(a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / (a - b).var(axis=0, ddof=1),
        p_flip=ways.p(reached),
    )


def smallest_p(n: int, m: int) -> float:
    """The smallest two-sided p that permuting n and m rollouts can give: swapping equal groups gives the same |t|."""
    return (2 if n == m else 1) / comb(n + m, n)


def monte_carlo_error(p: FloatArray, draws: int) -> FloatArray:
    """Standard error of a p that `draws` random resamplings gave."""
    error: FloatArray = np.sqrt(p * (1 - p) / (draws + 1))
    return error


def welch_statistic(a: FloatArray, b: FloatArray) -> FloatArray:
    """Welch's t (K,)."""
    statistic: FloatArray = (a.mean(axis=0) - b.mean(axis=0)) / standard_error(a, b)
    return statistic


def standard_error(a: FloatArray, b: FloatArray) -> FloatArray:
    """Of the difference of means (K,), without assuming equal variances."""
    error: FloatArray = np.sqrt(a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b))
    return error


def _estimates(a: FloatArray, b: FloatArray, **known: Any) -> Estimates:
    unknown = dict.fromkeys(("low", "high", "p", "statistic", "df", "r", "gain", "p_flip", "p_error"), np.nan)
    numbers = {name: np.broadcast_to(np.asarray(value, dtype=np.float64), a.shape[1:]) for name, value in {**unknown, **known}.items()}
    return Estimates(difference=a.mean(axis=0) - b.mean(axis=0), **numbers)
