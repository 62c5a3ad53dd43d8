"""How rollouts move: where they stand after the script has pulled, how fast they come back, and where they would settle. Secondary measures.

Turns of one transcript are the same for every condition, so what the script does at a turn, c_t, is common to them: c_t is the mean over conditions of their
means at turn t. What is left, d_it = y_it - c_t, is taken for a mean-reverting process (an AR(1), the discrete Ornstein-Uhlenbeck process) around each
rollout's own level:

    d_i,t+1 - μ_i = φ (d_it - μ_i) + noise

- *after pulls*: the mean of y at the turn behind each pull. A pull is a turn that the transcript marks as one; where it marks none, the turn at which the
  mean over conditions drops most.
- *equilibrium*: μ_i + the mean of c_t. With φ̂ of all conditions together, μ̂_i = mean(d_i,t+1 - φ̂ d_it) / (1 - φ̂) weighs a rollout's own start less than
  its mean does: it is what the level tends to once the start is forgotten.
- *half-life*: turns until half of a deviation is gone, log ½ / log φ̂, of a condition's mean φ̂; conditions are compared on φ itself. φ̂_i is each rollout's
  own regression of deviations from the condition's turn means, corrected for its bias of -(1 + 3 φ) / n in n transitions (Kendall 1954); where all rollouts
  are taken together the bias is -(1 + φ) / n (Nickell 1981).

Rollouts that lack turns are left out here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from drift_cli.analysis.compare import adjust, differences
from drift_cli.analysis.results import Correction, Difference, Options, Test
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.spec import Cell

LEAST_TURNS = 6
"""Of fewer, φ means nothing."""
LEAST_ROLLOUTS = 8


class Dynamic(StrEnum):
    """What is taken of how rollouts move."""

    AFTER_PULLS = "after pulls"
    EQUILIBRIUM = "equilibrium"
    PHI = "phi"


@dataclass(frozen=True, kw_only=True)
class Movement:
    """One condition on one of these, and its difference from the baseline."""

    condition: str
    transcript: str
    temperature: float
    measure: Dynamic
    n: int
    value: float | None
    low: float | None
    high: float | None
    half_life: float | None
    """Of φ only, in turns; None where φ is not between 0 and 1."""
    difference: Difference | None
    p_adjusted: float | None
    """By Holm over the conditions and measures of this table."""
    pulls: tuple[int, ...]
    """The turns that count as pulls, 1 for the first."""
    marked: bool
    """Whether the transcript marks them."""


def movements(table: RunTable, baseline: str, options: Options, pulls: Mapping[str, Sequence[int]] | None = None) -> tuple[Movement, ...]:
    """Every condition on every measure. `pulls` are the turns that transcripts mark, by name. Empty where rollouts are too few or too short."""
    seen = table if options.turns is None else table.window(*options.turns)
    options = Options(test=Test.WELCH if options.test is Test.MIXED else options.test, level=options.level, seed=options.seed)
    found = [row for group in seen.groups for row in _group(seen, group, baseline, options, (pulls or {}).get(group.transcript, ()))]
    corrected = adjust([None if row.difference is None else row.difference.p for row in found], Correction.HOLM)
    return tuple(Movement(**{**vars(row), "p_adjusted": p}) for row, p in zip(found, corrected, strict=True))


@dataclass(frozen=True, eq=False)
class _Cell:
    """A cell's complete rollouts."""

    cell: Cell
    values: FloatArray
    """(n, T)."""
    samples: FloatArray


def _group(table: RunTable, group: Group, baseline: str, options: Options, marked: Sequence[int]) -> Iterator[Movement]:
    width = table.length(group.transcript)
    cells = [_complete(table, cell, width) for cell in table.cells if (cell.transcript, cell.temperature) == group]
    cells = [cell for cell in cells if len(cell.values) >= LEAST_ROLLOUTS]
    if width < LEAST_TURNS or not cells:
        return
    script = np.mean([cell.values.mean(axis=0) for cell in cells], axis=0)
    turns = _pulls(script, marked, table.first)
    phi = persistence([cell.values - cell.values.mean(axis=0) for cell in cells])
    observed: dict[Dynamic, list[FloatArray]] = {
        Dynamic.AFTER_PULLS: [_after(cell.values, turns, table.first) for cell in cells],
        Dynamic.EQUILIBRIUM: [settled(cell.values - script, phi) + script.mean() for cell in cells],
        Dynamic.PHI: [persistences(cell.values - cell.values.mean(axis=0)) for cell in cells],
    }
    base = next((place for place, cell in enumerate(cells) if cell.cell.condition == baseline), None)
    for measure, values in observed.items():
        for place, cell in enumerate(cells):
            against = None if base is None or place == base else _difference(cells, values, place, base, options)
            yield _named(cell, measure, values[place], against, options.level, (turns, bool(marked)))


def _complete(table: RunTable, cell: Cell, width: int) -> _Cell:
    rows = table.rows(cell)
    values = table.projections[rows][:, :width]
    whole = np.isfinite(values).all(axis=1)
    return _Cell(cell, values[whole], table.sample[rows][whole].astype(np.float64))


def _pulls(script: FloatArray, marked: Sequence[int], first: int) -> tuple[int, ...]:
    """The turns that count, each with a turn behind it."""
    last = first + len(script) - 1
    known = tuple(turn for turn in marked if first <= turn < last)
    if known or len(script) < 3:
        return known
    return (int(np.argmin(np.diff(script)[:-1])) + 1 + first,)


def _after(values: FloatArray, turns: Sequence[int], first: int) -> FloatArray:
    if not turns:
        return np.full(len(values), np.nan)
    return np.asarray(values[:, [turn - first + 1 for turn in turns]].mean(axis=1))


def persistence(deviations: Sequence[FloatArray]) -> float:
    """φ of all these rollouts (n, T) together: within-rollout regression of a turn on the one before, its first-order bias taken out."""
    xy, xx = _sums(np.concatenate(list(deviations))).sum(axis=1)
    return _corrected(float(xy), float(xx), deviations[0].shape[1] - 1)


def _sums(d: FloatArray) -> FloatArray:
    """(2, n): Σ xy and Σ xx of each rollout around its own means."""
    x, y = d[:, :-1], d[:, 1:]
    x = x - x.mean(axis=1, keepdims=True)
    return np.stack([(x * (y - y.mean(axis=1, keepdims=True))).sum(axis=1), (x * x).sum(axis=1)])


def _corrected(xy: float, xx: float, transitions: int, slope: int = 1) -> float:
    """φ̂ without its bias of -(1 + slope φ) / n, kept below 1."""
    if xx <= 1e-12:
        return float("nan")
    return min((xy / xx + 1 / transitions) / (1 - slope / transitions), 0.99)


def persistences(d: FloatArray) -> FloatArray:
    """φ̂_i (n,) of each rollout by itself; NaN where it does not move. Their spread is that of n - 1, as all are around turn means of their own."""
    xy, xx = _sums(d)
    found = np.array([_corrected(float(a), float(b), d.shape[1] - 1, 3) for a, b in zip(xy, xx, strict=True)])
    known = np.isfinite(found)
    if known.sum() < 2:
        return found
    middle = found[known].mean()
    return np.asarray(middle + (found - middle) * np.sqrt(known.sum() / (known.sum() - 1)))


def settled(d: FloatArray, phi: float) -> FloatArray:
    """μ̂ (n,): the level around which each rollout moves, for a given φ."""
    if not math.isfinite(phi):
        return np.asarray(d.mean(axis=1))
    return np.asarray((d[:, 1:] - phi * d[:, :-1]).mean(axis=1) / (1 - phi))


def half_life(phi: float | None) -> float | None:
    """Turns until half of a deviation is gone."""
    return math.log(0.5) / math.log(phi) if phi is not None and 0 < phi < 1 else None


def _difference(cells: Sequence[_Cell], values: Sequence[FloatArray], place: int, base: int, options: Options) -> Difference:
    x, y = values[place], values[base]
    if options.test is Test.PAIRED:
        _, mine, theirs = np.intersect1d(cells[place].samples, cells[base].samples, return_indices=True)
        x, y = x[mine], y[theirs]
        both = np.isfinite(x) & np.isfinite(y)
        return differences([(x[both], y[both])], options)[0]
    return differences([(x[np.isfinite(x)], y[np.isfinite(y)])], options)[0]


def _named(
    cell: _Cell, measure: Dynamic, values: FloatArray, difference: Difference | None, level: float, pulls: tuple[tuple[int, ...], bool]
) -> Movement:
    known = values[np.isfinite(values)]
    mean = plain(known.mean()) if len(known) else None
    half = float("nan")
    if len(known) > 1 and known.std() > 1e-12:
        half = float(stats.t.ppf((1 + level) / 2, len(known) - 1) * stats.sem(known))
    return Movement(
        condition=cell.cell.condition,
        transcript=cell.cell.transcript,
        temperature=cell.cell.temperature,
        measure=measure,
        n=len(known),
        value=mean,
        low=None if mean is None else plain(mean - half),
        high=None if mean is None else plain(mean + half),
        half_life=half_life(mean) if measure is Dynamic.PHI else None,
        difference=difference,
        p_adjusted=None,
        pulls=pulls[0],
        marked=pulls[1],
    )
