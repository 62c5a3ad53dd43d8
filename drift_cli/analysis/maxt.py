"""One family of tests, and the simultaneous bands that go with it: sign flips of residuals within each condition. Arrays in, arrays out.

A condition ("cell") is a matrix of rollouts × columns (turns, or measures of whole rollouts); a contrast is the difference of two cells' column means, or
one cell's mean alone. All contrasts × columns are one family.

For each draw, every rollout gets a sign, the same for all its columns. A cell's residuals (rollout less the column's mean, times √(n / (n - 1))) times
these signs give means m* and, computed again from the flipped residuals, variances v*. With t* = (m*_a - m*_b) / √(v*_a / n_a + v*_b / n_b):

- p of a contrast's column: (1 + number of draws whose largest |t*| over the family reaches |t|) / (1 + draws). Single-step max-T (Westfall & Young 1993).
- critical: the value that |t| must exceed for p ≤ 1 - level. Estimate ± critical standard errors is a band that holds the whole family together; it leaves
  out 0 exactly where p ≤ 1 - level, as both come from the same draws.

Signs are flipped within a condition, so spreads may differ between conditions and numbers of rollouts too. Permuting rollouts between conditions, which the
first version did, takes equal spreads for granted: at SDs of 2 : 1 with 8 and 32 rollouts it finds something in 11 % of experiments without a difference.
(Flipped residuals: the wild bootstrap with Rademacher weights; Wu 1986, Liu 1988, Davidson & Flachaire 2008.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.table import FloatArray

LEAST_JOINT = 4
"""Rollouts of a condition that a column must have. With 3, flipped residuals repeat one another, and 11 % of true nulls are rejected."""
_TINY = 1e-300
"""Where a flipped variance is 0: t* is then 0 for a mean of 0, and beyond everything for another."""
CHUNK = 1 << 20
"""Numbers of one array of a chunk of draws. The draws do not depend on it."""
_TIE = 1e-9
"""Statistics that differ relatively by less are equal: sums come out differently rounded in another order."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One condition's rollouts: `values` (n, E, K) of E experiments at once, NaN where a rollout lacks a column; `signs` (n,) says which of the stream's
    signs each rollout gets, and `stream` which stream (paired samples share both across cells)."""

    values: FloatArray
    stream: int
    signs: NDArray[np.intp]

    @classmethod
    def of(cls, values: FloatArray, stream: int) -> Rows:
        """A cell with signs of its own; `values` (n, E, K)."""
        return cls(values, stream, np.arange(len(values)))


@dataclass(frozen=True, eq=False)
class Joint:
    """What E experiments of C contrasts × K columns give."""

    statistic: FloatArray
    """(E, C, K); NaN where the contrast's column is not in the family."""
    p: FloatArray
    """(E, C, K), NaN as above."""
    critical: FloatArray
    """(E,); NaN where nothing is in the family."""
    draws: int

    def p_error(self) -> FloatArray:
        """Monte Carlo standard error of `p`."""
        error: FloatArray = np.sqrt(self.p * (1 - self.p) / (self.draws + 1))
        return error


@dataclass(frozen=True, eq=False)
class _Ready:
    """A cell with sums that no sign changes: residuals (n, E·K) with 0 where missing, n (E·K), Σ residual² (E·K)."""

    cell: Rows
    residuals: FloatArray
    n: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, cell: Rows) -> _Ready:
        flat = cell.values.reshape(len(cell.values), -1)
        has = np.isfinite(flat)
        n = has.sum(axis=0).astype(np.float64)
        mean = np.where(has, flat, 0.0).sum(axis=0) / np.maximum(n, 1)
        residuals = np.where(has, flat - mean, 0.0) * np.sqrt(n / np.maximum(n - 1, 1))
        return cls(cell, residuals, n, (residuals**2).sum(axis=0))

    def moments(self, signs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """m* and its squared standard error (B, E·K), for `signs` (B, all of the stream)."""
        total = signs[:, self.cell.signs] @ self.residuals
        mean = total / np.maximum(self.n, 1)
        error = np.maximum(self.squares - total * mean, 0.0) / np.maximum(self.n * (self.n - 1), 1)
        return mean, error


def joint(
    cells: Sequence[Rows],
    contrasts: Sequence[tuple[int, int | None]],
    level: float,
    draws: int,
    seed: int,
    wanted: NDArray[np.bool_] | None = None,
) -> Joint:
    """The family of `contrasts` (a, b) of cells by index, b None for a's own mean, and of the columns in `wanted` (C, K; None: all).

    Columns with under `LEAST_JOINT` rollouts a side, or without any spread, are not in the family.
    """
    count, columns = cells[0].values.shape[1:]
    ready = [_Ready.of(cell) for cell in cells]
    left = np.array([a for a, _ in contrasts], dtype=np.intp)
    right = np.array([-1 if b is None else b for _, b in contrasts], dtype=np.intp)
    statistic = _observed(cells, left, right).reshape(len(contrasts), count, columns)
    if wanted is not None:
        statistic = np.where(wanted[:, None, :], statistic, np.nan)
    largest = _largest(ready, left, right, np.isfinite(statistic), draws, seed)
    ranked = np.sort(largest, axis=0)
    p = np.full(statistic.shape, np.nan)
    for e in range(count):
        there = np.isfinite(statistic[:, e])
        reached = draws - np.searchsorted(ranked[:, e], np.abs(statistic[:, e][there]) * (1 - _TIE), side="left")
        p[:, e][there] = (1.0 + reached) / (1.0 + draws)
    rank = floor((1 - level) * (draws + 1) + 1e-6)
    critical = ranked[draws - rank] if rank >= 1 else np.full(count, np.nan)
    critical = np.where(np.isfinite(statistic).any(axis=(0, 2)), critical, np.nan)
    return Joint(np.moveaxis(statistic, 1, 0), np.moveaxis(p, 1, 0), critical, draws)


def standard_errors(values: FloatArray) -> FloatArray:
    """Squared standard errors of the column means of `values` (n, …), NaN where missing: NaN for fewer than two."""
    has = np.isfinite(values)
    n = has.sum(axis=0)
    mean = np.where(has, values, 0.0).sum(axis=0) / np.maximum(n, 1)
    squares = (np.where(has, values - mean, 0.0) ** 2).sum(axis=0)
    error: FloatArray = np.asarray(squares / np.maximum(n * (n - 1), 1), dtype=np.float64)
    error[n < 2] = np.nan
    return np.asarray(error, dtype=np.float64)


def _observed(cells: Sequence[Rows], left: NDArray[np.intp], right: NDArray[np.intp]) -> FloatArray:
    """t (C, E, K) of the contrasts, NaN where not in the family."""
    means, errors = [], []
    for cell in cells:
        has = np.isfinite(cell.values)
        n = has.sum(axis=0)
        mean = np.where(has, cell.values, 0.0).sum(axis=0) / np.maximum(n, 1)
        size = np.abs(np.where(has, cell.values, 0.0)).max(axis=0, initial=0.0)
        error = standard_errors(cell.values)
        flat = error <= (1e-12 * size) ** 2
        means.append(np.where(n >= LEAST_JOINT, mean, np.nan))
        errors.append(np.where(flat, 0.0, error))
    means.append(np.zeros_like(means[0]))
    errors.append(np.zeros_like(errors[0]))
    found = []
    for a, b in zip(left, right, strict=True):
        error = errors[a] + errors[b]
        # A side without any spread has no residuals to flip.
        possible = (errors[a] > 0) & ((errors[b] > 0) if b >= 0 else True)
        found.append(np.where(possible, (means[a] - means[b]) / np.sqrt(np.where(possible, error, 1.0)), np.nan))
    return np.stack(found)


def _largest(
    ready: Sequence[_Ready], left: NDArray[np.intp], right: NDArray[np.intp], there: NDArray[np.bool_], draws: int, seed: int
) -> FloatArray:
    """The largest |t*| (draws, E) over the family's contrasts and columns, those of `there` (C, E, K)."""
    count, columns = there.shape[1:]
    size = {r.cell.stream: 0 for r in ready}
    for r in ready:
        size[r.cell.stream] = max(size[r.cell.stream], int(r.cell.signs.max(initial=-1)) + 1)
    streams = {stream: np.random.Generator(np.random.PCG64((seed, 1, stream))) for stream in size}
    mask = there.reshape(len(left), count * columns)
    masked = bool((~there).any())
    largest = np.zeros((draws, count))
    for rows in _chunks(len(ready) * count * columns, draws):
        length = rows.stop - rows.start
        signs = {stream: _signs(rng, length, size[stream]) for stream, rng in streams.items()}
        means, errors = zip(*(r.moments(signs[r.cell.stream]) for r in ready), strict=True)
        for place, (a, b) in enumerate(zip(left, right, strict=True)):
            difference, error = (means[a], errors[a]) if b < 0 else (means[a] - means[b], errors[a] + errors[b])
            with np.errstate(over="ignore"):
                squared = difference * difference / np.maximum(error, _TINY)
            if masked:
                squared *= mask[place]
            np.maximum(largest[rows], squared.reshape(length, count, columns).max(axis=2), out=largest[rows])
    root: FloatArray = np.sqrt(largest)
    return root


def _signs(rng: np.random.Generator, draws: int, size: int) -> FloatArray:
    """Random signs (draws, size): the stream's next bits, whole 32-bit words for each draw, so that they do not depend on the chunks."""
    words = max(-(-size // 32), 1) * 4
    bits = np.unpackbits(np.frombuffer(rng.bytes(draws * words), dtype=np.uint8).reshape(draws, words), axis=1)[:, :size]
    signs: FloatArray = np.where(bits == 1, 1.0, -1.0).astype(np.float64)
    return signs


def _chunks(width: int, count: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(width, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
