"""Turn by turn: tests of all turns together, and bands that hold all turns together.

Turns of a rollout go with one another, and there are many of them: tested one by one at 5 %, some turn of 18 "differs" between equal conditions in 45 % of
experiments. `maxt` permutes whole rollouts between the two conditions and compares each turn's Welch t with the largest |t| over all turns (Westfall &
Young 1993, single-step maxT): the chance of any false turn is at most 5 %, and what the turns share costs no power. `holm` and `bh` adjust Welch's p per
turn (`scipy.stats.false_discovery_control`; Benjamini & Hochberg 1995 bounds the share of false turns among those found, not the chance of any).

Bands are difference ± c standard errors at every turn, c the quantile of the largest |t*| over turns when each condition's deviations from its own turn
means are permuted: a band holds the whole curve of differences with the level's probability. For `paired`, signs of whole pairs are flipped instead.

A turn is tested where both conditions have two rollouts with it. A rollout that lacks a turn is permuted with its gap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.compare import Pair, adjust, differences
from drift_cli.analysis.maxt import errors, joint
from drift_cli.analysis.measures import Sample, lacking_note
from drift_cli.analysis.results import Correction, Difference, Options, PairTurns, Test, TurnComparison
from drift_cli.analysis.summary import moments, percent, plain
from drift_cli.analysis.table import FloatArray


@dataclass(frozen=True, eq=False)
class Band:
    """A simultaneous band, each (T,), NaN where there is none."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    critical: float | None
    """Half its width in standard errors."""
    note: str | None = None


def by_turn(pair: Pair, options: Options) -> PairTurns:
    """Compare two conditions at every turn; paired, if the test that is asked for is."""
    a, b = _values(pair, options)
    pairing = options.test is Test.PAIRED
    plainly = replace(options, test=Test.PAIRED if pairing else Test.WELCH, equivalence=None)
    results = differences([_column(x, y, pairing) for x, y in zip(a.T, b.T, strict=True)], plainly)
    tested = np.array([result.p is not None for result in results], dtype=np.bool_)
    rows = a - b if pairing else np.concatenate([a, b])
    found = _joint(rows, len(a), tested, options) if tested.any() else None
    corrected = _corrected(results, found, tested, options)
    first, second = (sample.cell for sample in pair)
    return PairTurns(
        a=first.condition,
        b=second.condition,
        transcript=first.transcript,
        temperature=first.temperature,
        level=options.level,
        correction=options.correction,
        turns=tuple(
            _turn(*row) for row in zip(pair[0].turns, results, corrected, _halves(errors(rows, len(a)), found, tested), strict=True)
        ),
        critical=None if found is None else found.critical,
        method=method(options),
        note=" ".join(filter(None, (found.note if found else None, lacking_note(*pair)))) or None,
    )


def band(values: FloatArray, options: Options) -> Band:
    """The simultaneous band of one condition's mean curve: `values` (n, T), NaN where missing; signs of whole rollouts' deviations are flipped."""
    per = moments(values)
    error = np.where(np.isfinite(per.low), per.sem, np.nan)
    tested = np.isfinite(error)
    there = values[np.isfinite(values).any(axis=1)]
    if not tested.any():
        return Band(per.mean, per.low, per.high, None, "No turn has two different rollouts.")
    found = _joint(there, len(there), tested, options)
    half = np.full(len(error), np.nan) if found.critical is None else found.critical * error
    return Band(per.mean, per.mean - half, per.mean + half, found.critical, found.note)


@dataclass(frozen=True, eq=False)
class _Joint:
    """The turns taken together: p (T tested,) by max-T, and the band's c."""

    p: FloatArray
    critical: float | None
    note: str | None


def _joint(rows: FloatArray, n: int, tested: NDArray[np.bool_], options: Options) -> _Joint:
    """The tested turns of `rows` (N, T), the first `n` of one condition."""
    found = joint(rows[:, None, tested], n, options.level, options.resamples, options.seed)
    if found.least > 1 - options.level:
        return _Joint(
            found.p[0], None, f"With so few rollouts no resampled p is below {found.least:.3f}, and there is no simultaneous band."
        )
    return _Joint(found.p[0], plain(found.critical[0]), None)


def _values(pair: Pair, options: Options) -> tuple[FloatArray, FloatArray]:
    """Projections of rollouts that have a turn, (n, T) and (m, T); for `paired`, of samples that both have."""
    a, b = pair
    if options.test is Test.PAIRED:
        _, of_a, of_b = np.intersect1d(a.samples, b.samples, return_indices=True)
        both = (a.has[of_a] & b.has[of_b]).any(axis=1)
        return a.values[of_a][both], b.values[of_b][both]
    return _started(a), _started(b)


def _started(sample: Sample) -> FloatArray:
    started: FloatArray = sample.values[sample.has.any(axis=1)]
    return started


def _column(a: FloatArray, b: FloatArray, pairing: bool) -> tuple[FloatArray, FloatArray]:
    if pairing:
        there = np.isfinite(a) & np.isfinite(b)
        return a[there], b[there]
    return a[np.isfinite(a)], b[np.isfinite(b)]


def _corrected(results: list[Difference], found: _Joint | None, tested: NDArray[np.bool_], options: Options) -> list[float | None]:
    if options.correction is Correction.MAXT:
        p = np.full(len(tested), np.nan)
        if found is not None:
            p[tested] = found.p
        return [plain(value) for value in p]
    raw = [result.p for result in results]
    if options.correction is Correction.NONE:
        return raw
    return adjust(raw, options.correction)


def _halves(error: FloatArray, found: _Joint | None, tested: NDArray[np.bool_]) -> list[float | None]:
    """Half the simultaneous band's width at each turn."""
    if found is None or found.critical is None:
        return [None] * len(error)
    return [plain(half) for half in np.where(tested, found.critical * error, np.nan)]


def _turn(turn: float, result: Difference, corrected: float | None, half: float | None) -> TurnComparison:
    d = result.difference
    return TurnComparison(
        turn=int(turn),
        n_a=result.n_a,
        n_b=result.n_b,
        difference=result.difference,
        low=result.low,
        high=result.high,
        band_low=None if d is None or half is None else d - half,
        band_high=None if d is None or half is None else d + half,
        statistic=result.statistic,
        p=result.p,
        p_adjusted=corrected,
        note=result.note,
    )


def method(options: Options) -> str:
    """What was done, for under a table."""
    resampled = "sign flips of whole pairs" if options.test is Test.PAIRED else "permutations of whole rollouts"
    test = "paired t" if options.test is Test.PAIRED else "Welch's t"
    seeded = f"{options.resamples} or all there are, seed {options.seed}"
    adjustment = {
        Correction.MAXT: f"p adjusted by max-T over the turns ({resampled}, {seeded})",
        Correction.HOLM: "p adjusted by Holm over the turns",
        Correction.BH: "p adjusted by Benjamini-Hochberg over the turns (false discovery rate)",
        Correction.NONE: "p not adjusted for the number of turns",
    }[options.correction]
    return f"{test} per turn; {adjustment}; {percent(options.level)} bands simultaneous over turns ({resampled}, {seeded})"
