"""Resampled t statistics of many columns at once: permuted labels, flipped signs, bootstrapped rollouts. Arrays in, arrays out.

Rollouts are rows, and a whole row is permuted, flipped or drawn together, so that what its turns share stays together; columns are turns, or anything else
that was measured of the same number of rollouts. One resampling is one row of a matrix, and sums over the resampled rollouts are matrix products: that is
why this is not left to `scipy.stats.permutation_test` and `bootstrap`, with whose p values and distributions it is compared in the tests.

Where there are no more distinct resamplings than were asked for, all of them are used, and p values are exact. Otherwise p = (1 + number of resampled
statistics at least as large) / (1 + resamples): Phipson & Smyth 2010 (Stat. Appl. Genet. Mol. Biol. 9:39).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from math import comb

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.table import FloatArray

CHUNK = 1 << 16
"""Numbers in one resampled array: few enough to stay in the processor's cache, enough to keep the products fast."""
_TIE = 1e-9
"""Statistics that differ relatively by less are equal: sums come out differently rounded in another order."""
_EXACT_SIGNS = 1 << 15
"""Sign flips are enumerated up to here whatever `resamples` says: the products are that cheap."""


@dataclass(frozen=True, eq=False)
class Resamplings:
    """Rows of `matrix` (B, n) are resamplings; `exact` when they are all there are, the observed one among them."""

    matrix: FloatArray
    exact: bool

    def p(self, at_least: NDArray[np.int64]) -> FloatArray:
        """p values from how many resampled statistics are at least as large as the observed one."""
        count = len(self.matrix)
        return np.asarray(at_least / count if self.exact else (at_least + 1.0) / (count + 1.0), dtype=np.float64)


@lru_cache(maxsize=8)
def labels(n: int, m: int, resamples: int, seed: int) -> Resamplings:
    """Ways to call n of n + m rollouts the first group: rows of ones and zeros (B, n + m)."""
    exact = comb(n + m, n) <= resamples
    if exact:
        chosen = np.array(list(combinations(range(n + m), n)), dtype=np.intp)
    else:
        rng = np.random.default_rng((seed, 0, n, m))
        chosen = rng.permuted(np.tile(np.arange(n + m), (resamples, 1)), axis=1)[:, :n]
    matrix = np.zeros((len(chosen), n + m))
    np.put_along_axis(matrix, chosen, 1.0, axis=1)
    return Resamplings(matrix, exact)


@lru_cache(maxsize=8)
def signs(n: int, resamples: int, seed: int) -> Resamplings:
    """Ways to give n rollouts a sign: rows of 1 and -1 (B, n)."""
    if 2**n <= max(resamples, _EXACT_SIGNS):
        return Resamplings(np.array(list(product((1.0, -1.0), repeat=n))), exact=True)
    rng = np.random.default_rng((seed, 1, n))
    return Resamplings(rng.choice((-1.0, 1.0), size=(resamples, n)), exact=False)


@lru_cache(maxsize=8)
def draws(n: int, resamples: int, seed: int, side: int) -> FloatArray:
    """How often each of n rollouts is drawn in n draws with replacement (B, n); the sides, 0 and 1, draw independently of each other."""
    rng = np.random.default_rng((seed, 2, side, n))
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def welch_t(values: FloatArray, first: FloatArray) -> FloatArray:
    """Welch's t (B, K) of the columns of `values` (N, K), NaN where missing, for each labelling `first` (B, N). 0 with fewer than two on a side."""
    has = np.isfinite(values)
    x = _centred(values, has)
    total, squares = first @ x, first @ x**2
    of_all = (x**2).sum(axis=0)
    if has.all():
        n, m = first[0].sum(), len(values) - first[0].sum()
        return (
            _ratio(total * (1 / n + 1 / m), _error(n, total, squares) + _error(m, total, of_all - squares)) if min(n, m) > 1 else 0 * total
        )
    n = first @ has.astype(np.float64)
    m = has.sum(axis=0) - n
    difference = total / np.maximum(n, 1) + total / np.maximum(m, 1)
    return np.where((n >= 2) & (m >= 2), _ratio(difference, _error(n, total, squares) + _error(m, total, of_all - squares)), 0.0)


def one_sample_t(values: FloatArray, sign: FloatArray) -> FloatArray:
    """Student's t (B, K) of the columns of `values` (n, K), NaN where missing, after each flip of signs (B, n). 0 with fewer than two."""
    has = np.isfinite(values)
    x = np.where(has, values, 0.0)
    n, squares = has.sum(axis=0), (x**2).sum(axis=0)
    total = sign @ x
    return np.where(n >= 2, _ratio(total / np.maximum(n, 1), _error(n, total, squares)), 0.0)


def bootstrap_t(a: FloatArray, b: FloatArray, weights_a: FloatArray, weights_b: FloatArray) -> FloatArray:
    """Studentized deviation (B, K) of the resampled difference of means of `a` (n, K) and `b` (m, K) from the observed one."""
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    total_a, total_b = weights_a @ x, weights_b @ y
    error = _error(len(x), total_a, weights_a @ x**2) + _error(len(y), total_b, weights_b @ y**2)
    return _ratio(total_a / len(x) - total_b / len(y), error)


def chunks(width: int, count: int, least: int = 16) -> Iterator[slice]:
    """Slices over `count` rows (or columns) of `width` numbers such that one slice has about `CHUNK` numbers, and at least `least` rows."""
    step = max(least, CHUNK // max(width, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def at_least(statistics: FloatArray, observed: FloatArray) -> NDArray[np.int64]:
    """How many of the absolute `statistics` (B, K) reach the absolute `observed` (K,), ties up to rounding included."""
    reached: NDArray[np.int64] = (np.abs(statistics) >= np.abs(observed) * (1 - _TIE)).sum(axis=0)
    return reached


def _centred(values: FloatArray, has: NDArray[np.bool_]) -> FloatArray:
    """Values less their column's mean, 0 where missing: sums of squares then lose no digits to a large mean."""
    n = np.maximum(has.sum(axis=0), 1)
    filled = np.where(has, values, 0.0)
    return np.where(has, filled - filled.sum(axis=0) / n, 0.0)


def _error(n: int | FloatArray | NDArray[np.int64], total: FloatArray, squares: FloatArray) -> FloatArray:
    """Squared standard error of a mean from the number, sum (up to sign) and sum of squares of its observations."""
    error: FloatArray = total * total
    error /= -np.maximum(n, 1)
    error += squares
    error /= np.maximum(n * (n - 1), 1)
    return np.maximum(error, 0.0, out=error)


def _ratio(difference: FloatArray, error: FloatArray) -> FloatArray:
    """difference / √error; infinite where only the error is 0, 0 where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: FloatArray = difference / np.sqrt(error, out=error)
    ratio[np.isnan(ratio)] = 0.0
    return ratio
