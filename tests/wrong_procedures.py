"""Procedures that drift offered once and that are wrong: kept so that the simulation check can be seen to fail them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special
from simulation import Array

from drift_cli.analysis.resampling import labels, welch_t


def permuted(values: Array, n: int, level: float, draws: int, seed: int) -> tuple[Array, Array]:
    """p (E, T) and the bands' critical values (E,) of `values` (N, E, T), whose first `n` rows are one condition: rollouts permuted between conditions, for
    one pair alone. Takes equal spreads for granted."""
    matrix = labels(n, len(values) - n, draws, seed).matrix
    observed = np.zeros((1, len(values)))
    observed[0, :n] = 1.0
    centred = np.concatenate([values[:n] - values[:n].mean(axis=0), values[n:] - values[n:].mean(axis=0)])
    p, critical = [], []
    for e in range(values.shape[1]):
        largest = np.abs(welch_t(values[:, e], matrix)).max(axis=1)
        statistic = np.abs(welch_t(values[:, e], observed))[0]
        p.append((1 + (largest[:, None] >= statistic * (1 - 1e-9)).sum(axis=0)) / (1 + len(matrix)))
        critical.append(np.quantile(np.abs(welch_t(centred[:, e], matrix)).max(axis=1), level, method="higher"))
    return np.stack(p), np.array(critical)


def pooled_g(a: Array, b: Array, level: float) -> tuple[Array, Array]:
    """Interval of Hedges' g (K,) in pooled SDs, from the noncentral t with n + m - 2 degrees of freedom. Takes equal spreads for granted."""
    n, m = len(a), len(b)
    df = n + m - 2
    pooled = np.sqrt((((a - a.mean(axis=0)) ** 2).sum(axis=0) + ((b - b.mean(axis=0)) ** 2).sum(axis=0)) / df)
    scale = np.sqrt(1 / n + 1 / m)
    t = (a.mean(axis=0) - b.mean(axis=0)) / pooled / scale
    correction = np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2) - np.log(df / 2) / 2)
    tail = (1 - level) / 2
    low, high = (special.nctdtrinc(float(df), share, t) * scale * correction for share in (1 - tail, tail))
    return low, high


def deviations(a: Array, b: Array) -> tuple[Array, Array]:
    """Observations (n, E) and (m, E) of rollouts that lack turns, by their deviations from the average of both conditions' turn means, on the turns that
    they have. Takes for granted that the difference does not depend on the turn."""
    reference = (np.nanmean(a, axis=0) + np.nanmean(b, axis=0)) / 2
    return tuple(np.nanmean(side - reference, axis=2) + reference.mean(axis=1) for side in (a, b))  # type: ignore[return-value]


def any_turn(p: Array) -> NDArray[np.bool_]:
    """(E,): whether a turn is found."""
    found: NDArray[np.bool_] = (p <= 0.05).any(axis=-1)
    return found
