"""Looking at results more than once: what a test may spend at a planned look, and intervals that hold at every look. Numbers in, numbers out.

*Planned looks.* With looks at information fractions t_1 < … < t_K the standardized statistics Z_k are jointly normal with Cov(Z_j, Z_k) = √(t_j / t_k), and
boundaries b_k are found one after the other so that the probability of having crossed one by look k is what a spending function allows: α*(t_k) (Lan & DeMets
1983). The probabilities come from recursive integration of the density of what has not crossed (Armitage, McPherson & Rowe 1969; Jennison & Turnbull 2000,
ch. 19), by Gauss-Legendre quadrature. Spending, one-sided with α/2 at either side: O'Brien-Fleming-like 2 - 2Φ(z_{1-α/4} / √t), Pocock-like
(α/2) log(1 + (e - 1) t).

*Unplanned looks.* The normal mixture of Robbins (1970): with Z the statistic at n rollouts a condition and g = n / M,

    E = (1 + g)^(-1/2) exp(Z² g / (2 (1 + g)))

is an e-value at any look, whatever made one look or go on, and |Z| ≤ √((1 + 1/g) (2 log(1/α) + log(1 + g))) holds at all looks together with probability
1 - α: intervals of that half-width in standard errors hold at every look (a confidence sequence; with estimated variances asymptotically: Waudby-Smith, Arbour,
Sinha, Kennedy & Ramdas 2024). M = `MIXTURE` is the tuning: the mixture gives standardized differences of √(2 / M), about .7 SD, and the interval is narrowest,
relative to the fixed-n one, around 32 rollouts.

Few rollouts: both take t for normal by its significance level (Z = Φ⁻¹(F_t(t)), Jennison & Turnbull ch. 4.4). Type I error and coverage are simulated.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
from scipy import interpolate, optimize, special, stats

from drift_cli.analysis.table import FloatArray

MIXTURE = 4.0
"""Rollouts a condition at which the mixture is as wide as the standard error."""
_NODES = 96
_TAIL = 9.0
"""Standardized units beyond which nothing is left."""


class Spending(StrEnum):
    """How a plan spends its α over the looks."""

    OBRIEN_FLEMING = "obrien-fleming"
    """Hardly anything early; the last look is close to a test without looks."""
    POCOCK = "pocock"
    """About as much at each look."""


def spent(spending: Spending, t: float, alpha: float) -> float:
    """What one side with `alpha` may have spent at information fraction t (Lan & DeMets 1983)."""
    if t <= 0:
        return 0.0
    if t >= 1:
        return alpha
    if spending is Spending.POCOCK:
        return float(alpha * np.log1p((np.e - 1) * t))
    return float(2 * stats.norm.sf(stats.norm.isf(alpha / 2) / np.sqrt(t)))


@lru_cache(maxsize=4096)
def boundaries(fractions: tuple[float, ...], alpha: float, spending: Spending, *, two_sided: bool = True) -> tuple[float, ...]:
    """Standardized boundaries b_k at the looks' information fractions, ascending, the last at most 1.

    Args:
        fractions: of the largest information, of every look so far.
        alpha: the probability of crossing any; two-sided unless told otherwise.
        spending: the spending function.
        two_sided: whether crossing -b_k counts too, with α/2 for each side.
    """
    if any(b <= a for a, b in pairwise((0.0, *fractions))) or fractions[-1] > 1 + 1e-9:
        raise ValueError(f"information fractions {fractions} do not ascend from 0 to at most 1")
    side = alpha / 2 if two_sided else alpha
    found: list[float] = []
    scores: FloatArray = np.zeros(1)
    weights: FloatArray = np.ones(1)  # density times quadrature weight of what has not crossed; scores are B(t) = Z √t
    before, allowed = 0.0, 0.0
    for t in fractions:
        step, root = np.sqrt(t - before), np.sqrt(t)
        now = spent(spending, min(t, 1.0), side)
        wanted = max(now - allowed, 0.0)

        crossing = partial(_crossing, scores=scores, weights=weights, step=step, root=root, allowed=wanted)
        b = _TAIL if crossing(_TAIL) >= 0 else float(optimize.brentq(crossing, 0.0, _TAIL, xtol=1e-10))
        found.append(b)
        low = -b * root if two_sided else -_TAIL * root
        nodes, quadrature = np.polynomial.legendre.leggauss(_NODES)
        points = (b * root - low) / 2 * nodes + (b * root + low) / 2
        density = stats.norm.pdf((points[:, None] - scores) / step) / step @ weights
        scores, weights = points, density * quadrature * (b * root - low) / 2
        before, allowed = t, now
    return tuple(found)


def _crossing(b: float, *, scores: FloatArray, weights: FloatArray, step: float, root: float, allowed: float) -> float:
    """By how much the probability of crossing b now, and never before, is above what is allowed."""
    return float(weights @ stats.norm.sf((b * root - scores) / step)) - allowed


@lru_cache(maxsize=64)
def _last_boundaries(fractions: tuple[float, ...], spending: Spending) -> tuple[FloatArray, FloatArray]:
    """log α and the squared boundary at the last of these looks, on a grid of α from large to small; the square is nearly linear in log α."""
    logs = np.linspace(np.log(0.999), np.log(1e-8), 120)
    return logs, np.array([boundaries(fractions, float(np.exp(log)), spending)[-1] ** 2 for log in logs])


def planned_p(z: float, fractions: tuple[float, ...], spending: Spending) -> float:
    """The smallest α at which a plan's boundary at its last look so far is crossed by z: a p value that the looks are spent for (Jennison & Turnbull 2000,
    ch. 9). From a grid of boundaries, to about a thousandth of its size."""
    logs, squares = _last_boundaries(fractions, spending)
    return float(np.exp(interpolate.PchipInterpolator(squares, logs)(np.clip(z * z, squares[0], squares[-1]))))


def standardized(p: float) -> float:
    """|Z| of a two-sided p."""
    return float(-special.ndtri(max(p, 1e-300) / 2))


def effective(n: int, m: int) -> float:
    """Rollouts a condition: what two unequal numbers are worth."""
    return 2 * n * m / (n + m) if n and m else 0.0


def e_value(z: float, n: float) -> float:
    """Evidence against no difference from z at n rollouts a condition; at most 1 on average under no difference, at any look."""
    g = n / MIXTURE
    return float(np.exp(min(z * z * g / (2 * (1 + g)) - np.log1p(g) / 2, 700.0)))


def always_valid(n: float, alpha: float) -> float:
    """The half-width, in standard errors, of an interval that holds at every look, at n rollouts a condition."""
    g = n / MIXTURE
    return float(np.sqrt((1 + 1 / g) * (2 * np.log(1 / alpha) + np.log1p(g))))


def widened(low: float, high: float, level: float, df: float | None, z: float) -> tuple[float, float]:
    """A t interval of that level with as many standard errors as z means for these degrees of freedom (None: normal)."""
    usual, wide = (1 + level) / 2, float(special.ndtr(-z))
    factor = -special.ndtri(wide) / special.ndtri(usual) if df is None else -special.stdtrit(df, wide) / special.stdtrit(df, usual)
    middle, half = (low + high) / 2, (high - low) / 2
    return float(middle - factor * half), float(middle + factor * half)
