"""Turn by turn: two conditions at every turn, and bands that hold all turns together.

Pointwise, a turn has Welch's t (for `paired`, the paired t). Its adjusted p and its band come from the secondary family (`family.py`), which all pairs and
turns of a study belong to: difference ± c standard errors, c being the value that the largest |t*| of the family reaches in 5 % of draws. The band of a
condition's own mean curve holds the turns of that curve.

A turn is tested where both conditions have two rollouts with it, and belongs to the family where they have `maxt.LEAST_JOINT`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from drift_cli.analysis.compare import Pair, differences
from drift_cli.analysis.family import Adjusted, Family, Member
from drift_cli.analysis.maxt import LEAST_JOINT, Rows, joint, standard_errors
from drift_cli.analysis.measures import lacking_note, matched
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


def pointwise(pairs: Sequence[Pair], options: Options) -> list[list[Difference]]:
    """Each pair at every turn by itself."""
    plainly = replace(options, test=Test.PAIRED if options.test is Test.PAIRED else Test.WELCH, equivalence=None)
    columns = [column for pair in pairs for column in _columns(pair, options)]
    results = iter(differences(columns, plainly))
    return [[next(results) for _ in pair[0].turns] for pair in pairs]


def assemble(place: int, pair: Pair, results: Sequence[Difference], found: Family, gate: float | None, options: Options) -> PairTurns:
    """One pair's turns with what the family says of them; `place` is the pair's in the family."""
    first, second = (sample.cell for sample in pair)
    adjusted = [found.adjusted.get(Member(place, column), Adjusted(None)) for column in range(len(results))]
    halves = [None if found.critical is None else plain(found.critical * error) for error in _errors(pair, options)]
    turns = tuple(_turn(*row) for row in zip(pair[0].turns, results, adjusted, halves, strict=True))
    few = any(turn.p is not None and turn.p_adjusted is None for turn in turns)
    said = f"Fewer than {LEAST_JOINT} rollouts of a condition have some turns: these have neither an adjusted p nor a simultaneous band."
    return PairTurns(
        a=first.condition,
        b=second.condition,
        transcript=first.transcript,
        temperature=first.temperature,
        level=options.level,
        correction=options.correction,
        turns=turns,
        critical=found.critical if any(turn.band_low is not None for turn in turns) else None,
        method=method(options),
        note=" ".join(filter(None, (said if few else None, lacking_note(*pair)))) or None,
        gate=gate,
    )


def band(values: FloatArray, options: Options) -> Band:
    """The simultaneous band of one condition's mean curve: `values` (n, T), NaN where missing."""
    per = moments(values)
    there = values[np.isfinite(values).any(axis=1)]
    if not np.isfinite(per.low).any():
        return Band(per.mean, per.low, per.high, None, "No turn has two different rollouts.")
    found = joint([Rows.of(there[:, None, :], 0)], [(0, None)], options.level, options.resamples, options.seed)
    critical = plain(found.critical[0])
    error = np.where(np.isfinite(found.statistic[0, 0]), per.sem, np.nan)
    half = np.full(len(error), np.nan) if critical is None else critical * error
    note = f"Fewer than {LEAST_JOINT} rollouts: there is no simultaneous band." if critical is None else None
    return Band(per.mean, per.mean - half, per.mean + half, critical, note)


def _columns(pair: Pair, options: Options) -> Iterator[tuple[FloatArray, FloatArray]]:
    """What is compared at each turn: the rollouts that have it, or, for `paired`, the samples of which both have it."""
    a, b = matched(*pair) if options.test is Test.PAIRED else pair
    for x, y in zip(a.values.T, b.values.T, strict=True):
        yield x[np.isfinite(x)], y[np.isfinite(y)]


def _errors(pair: Pair, options: Options) -> FloatArray:
    """Standard error of each turn's difference (T,); NaN where it is not in the family."""
    if options.test is Test.PAIRED:
        a, b = matched(*pair)
        parts = [a.values - b.values]
    else:
        parts = [sample.values for sample in pair]
    squared = np.sum([standard_errors(part) for part in parts], axis=0)
    enough = np.logical_and.reduce([np.isfinite(part).sum(axis=0) >= LEAST_JOINT for part in parts])
    return np.asarray(np.sqrt(np.where(enough, squared, np.nan)))


def _turn(turn: float, result: Difference, adjusted: Adjusted, half: float | None) -> TurnComparison:
    d, half = result.difference, half if result.p is not None else None
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
        p_adjusted=adjusted.p,
        p_error=adjusted.error,
        note=result.note,
    )


def method(options: Options) -> str:
    """What was done, for under a table."""
    flipped = "pairs' differences" if options.test is Test.PAIRED else "residuals within each condition"
    test = "paired t" if options.test is Test.PAIRED else "Welch's t"
    family = "all pairs, turns and secondary measures"
    adjustment = {
        Correction.MAXT: f"p adjusted by max-T over {family}",
        Correction.HOLM: f"p adjusted by Holm over {family}",
        Correction.BH: f"p adjusted by Benjamini-Hochberg over {family} (false discovery rate)",
        Correction.NONE: "p not adjusted for the number of tests",
    }[options.correction]
    drawn = f"sign flips of {flipped}, {options.resamples} draws, seed {options.seed}"
    return f"{test} per turn; {adjustment}; {percent(options.level)} bands simultaneous over the same family ({drawn})"
