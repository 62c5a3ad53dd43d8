"""The secondary family: every pair × turn, and every measure of a pair that is not its primary one, tested together with one correction.

Turns of a rollout go with one another, pairs share conditions, and there are many of both: tested one by one at 5 %, some turn of 18 "differs" between two
equal conditions in 45 % of experiments; corrected pair by pair, some turn of some pair of four equal conditions still does in 23 %. Here all of them are one
family (`maxt.py`): the chance of any false finding among them is at most 5 %, and what turns and pairs share costs no power. `holm` and `bh` adjust the
pointwise p of the same family instead.

The area is the change in other units: it takes the change's adjusted p and does not count twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.compare import Pair, adjust
from drift_cli.analysis.maxt import Joint, Rows, joint
from drift_cli.analysis.measures import Sample, matched, take
from drift_cli.analysis.results import Correction, Measure, Options, Test
from drift_cli.analysis.table import FloatArray

COUNTED = (Measure.MEAN, Measure.CHANGE, Measure.SLOPE, Measure.THIRDS)
"""Measures with a test of their own."""


@dataclass(frozen=True)
class Member:
    """One of the family: a pair by its place, and its turn's column or its measure."""

    pair: int
    of: int | str


@dataclass(frozen=True)
class Adjusted:
    """An adjusted p with its Monte Carlo error; None where it is not resampled, and both None for what could not be tested with the others."""

    p: float | None
    error: float | None = None


@dataclass(frozen=True, eq=False)
class Family:
    """What is known of the members together."""

    adjusted: dict[Member, Adjusted]
    critical: float | None
    """Half of the simultaneous bands' width, in standard errors."""


def family(found: Sequence[Pair], raw: dict[Member, float | None], options: Options) -> Family:
    """Adjust the pointwise p in `raw`, None where there is none: its keys are the family."""
    possible = [member for member, p in raw.items() if p is not None]
    if not possible:
        return Family({member: Adjusted(None) for member in raw}, None)
    places = sorted({member.pair for member in possible})
    width = max(len(found[place][0].turns) for place in places)
    cells, contrasts = _cells(found, places, width, options)
    row = {place: index for index, place in enumerate(places)}
    wanted = np.zeros((len(places), width + len(COUNTED)), dtype=np.bool_)
    for member in possible:
        wanted[row[member.pair], _column(member, width)] = True
    drawn = joint(cells, contrasts, options.level, options.resamples, options.seed, wanted)
    critical = float(drawn.critical[0])
    return Family(
        _adjusted(raw, drawn, row, width, options),
        critical if np.isfinite(critical) and options.resamples * (1 - options.level) >= 1 else None,
    )


def _adjusted(raw: dict[Member, float | None], drawn: Joint, row: dict[int, int], width: int, options: Options) -> dict[Member, Adjusted]:
    if options.correction is not Correction.MAXT:
        plainly = list(raw.values())
        corrected = plainly if options.correction is Correction.NONE else adjust(plainly, options.correction)
        return {member: Adjusted(p) for member, p in zip(raw, corrected, strict=True)}
    error = drawn.p_error()[0]
    found = {}
    for member, pointwise in raw.items():
        place = None if pointwise is None else (row[member.pair], _column(member, width))
        p = np.nan if place is None else drawn.p[0][place]
        # A test of rollout means that is more careful than the family's t is never overruled by it.
        found[member] = Adjusted(max(float(p), pointwise or 0.0), float(error[place])) if place and np.isfinite(p) else Adjusted(None)
    return found


def _column(member: Member, width: int) -> int:
    return member.of if isinstance(member.of, int) else width + COUNTED.index(Measure(member.of))


def _cells(found: Sequence[Pair], places: Sequence[int], width: int, options: Options) -> tuple[list[Rows], list[tuple[int, int | None]]]:
    """The cells of these pairs, each once for each set of turns that counts; and the pairs as contrasts of them."""
    streams: dict[object, int] = {}
    cells: list[Rows] = []
    index: dict[object, int] = {}
    contrasts: list[tuple[int, int | None]] = []
    for place in places:
        a, b = found[place]
        if options.test is Test.PAIRED:
            # Samples share their noise, and so their sign, over all conditions of a transcript and temperature.
            stream = streams.setdefault((a.cell.transcript, a.cell.temperature), len(streams))
            left, right = matched(a, b)
            values = _columns(left, left.counts & right.counts, width) - _columns(right, left.counts & right.counts, width)
            cells.append(Rows(values[:, None, :], stream, left.samples.astype(np.intp)))
            contrasts.append((len(cells) - 1, None))
            continue
        counts = a.counts & b.counts
        for of in (a, b):
            key = (of.cell, counts.tobytes())
            if key not in index:
                index[key] = len(cells)
                cells.append(Rows.of(_columns(of.begun(), counts, width)[:, None, :], streams.setdefault(of.cell, len(streams))))
        contrasts.append((index[a.cell, counts.tobytes()], index[b.cell, counts.tobytes()]))
    return cells, contrasts


def _columns(of: Sample, counts: NDArray[np.bool_], width: int) -> FloatArray:
    """(n, width + measures): projections by turn, NaN where missing, then the measures' observations over the turns that count."""
    values = np.full((len(of.values), width + len(COUNTED)), np.nan)
    values[:, : of.values.shape[1]] = of.values
    for place, measure in enumerate(COUNTED):
        values[:, width + place] = take(measure, of, counts)
    return values
