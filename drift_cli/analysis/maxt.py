"""All turns together: p values by max-T, and the width of simultaneous bands. Arrays in, arrays out.

Values are (N, E, T): N rollouts, whose rows are resampled whole; E experiments at once, each for itself; T turns, NaN where a rollout lacks one. With
`n` < N the first n rollouts are one condition and the others the other, and labels are permuted; with `n` = N the rows are pairs' differences, or one
condition's deviations, and signs are flipped.

- p of a turn: how often the largest |t*| over the experiment's turns reaches that turn's |t| (Westfall & Young 1993, single-step maxT).
- critical: the quantile of the largest |t*| when each condition's deviations from its own means are resampled. Estimate ± critical standard errors at
  every turn is the simultaneous band. (Deviations, because a real difference would make turns look more alike than they are, and the band too narrow.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drift_cli.analysis.resampling import Resamplings, at_least, chunks, labels, one_sample_t, signs, welch_t
from drift_cli.analysis.summary import moments
from drift_cli.analysis.table import FloatArray


@dataclass(frozen=True, eq=False)
class Joint:
    """What E experiments give."""

    p: FloatArray
    """(E, T)."""
    critical: FloatArray
    """(E,)."""
    least: float
    """The smallest p that so many rollouts can give; where it is above 1 - level, the critical values mean nothing."""


def joint(values: FloatArray, n: int, level: float, resamples: int, seed: int) -> Joint:
    """p values and critical values of `values` (N, E, T), the first `n` of whose rows are the first condition."""
    ways = _ways(len(values), n, resamples, seed)
    observed = np.zeros((1, len(values)))
    observed[0, :n] = 1.0
    largest = _largest(values, n, ways.matrix)
    statistic = _statistic(values, n, observed)[0]
    p = np.stack([ways.p(at_least(largest[:, [e]], statistic[e])) for e in range(values.shape[1])])
    critical = np.quantile(_largest(deviations(values, n), n, ways.matrix), level, axis=0, method="higher")
    same = 2 if n == len(values) or 2 * n == len(values) else 1
    return Joint(p, np.asarray(critical), same / len(ways.matrix))


def deviations(values: FloatArray, n: int) -> FloatArray:
    """The rows less the means of their own condition."""
    return np.concatenate([part - _means(part) for part in (values[:n], values[n:]) if len(part)])


def errors(values: FloatArray, n: int) -> FloatArray:
    """Standard errors (T,) of the difference of the conditions' means, for `values` (N, T); of the mean, if there is one condition."""
    squares = [moments(part).sem ** 2 for part in (values[:n], values[n:]) if len(part)]
    error: FloatArray = np.sqrt(np.sum(squares, axis=0)) if squares else np.full(values.shape[1], np.nan)
    return error


def _ways(count: int, n: int, resamples: int, seed: int) -> Resamplings:
    return signs(n, resamples, seed) if n == count else labels(n, count - n, resamples, seed)


def _statistic(values: FloatArray, n: int, matrix: FloatArray) -> FloatArray:
    """t (B, E, T) for each resampling in `matrix` (B, N)."""
    flat = values.reshape(len(values), -1)
    statistic = one_sample_t(flat, matrix) if n == len(values) else welch_t(flat, matrix)
    return statistic.reshape(len(matrix), *values.shape[1:])


def _largest(values: FloatArray, n: int, matrix: FloatArray) -> FloatArray:
    """The largest |t*| over turns (B, E), computed in pieces that fit the processor's cache."""
    count, turns = values.shape[1:]
    largest = np.empty((len(matrix), count))
    for rows in chunks(turns, len(matrix)):
        part = matrix[rows]
        for some in chunks(turns * len(part), count, least=1):
            largest[rows, some] = np.abs(_statistic(values[:, some], n, part)).max(axis=2)
    return largest


def _means(part: FloatArray) -> FloatArray:
    has = np.isfinite(part)
    means: FloatArray = np.where(has, part, 0.0).sum(axis=0) / np.maximum(has.sum(axis=0), 1)
    return means
