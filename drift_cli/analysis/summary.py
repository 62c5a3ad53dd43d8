"""Means of a run's cells, over all turns and turn by turn, with standard errors and t intervals.

Over all turns, each rollout counts as one observation: its mean over the turns; where rollouts lack turns, the cell's mean is the mean of its turn means and
a rollout counts by its influence on it (`measures.py` has the rule). A cell's mean is the mean of those, its SD their standard deviation, its SEM
that SD / sqrt(n rollouts). Turn by turn, the observations are the rollouts that have the turn.

`ddof` is what the sum of squares is divided by, n - ddof, in SD and SEM: 1, the sample SD, is the default. The first experiment of this kind (003b)
printed SD with ddof 0, over the 16 rollout means in its summary (.0378 for its baseline; over all 288 replies it would have been .0496) and over the
16 rollouts in its turns. The t interval always stands on the sample SD, as the t distribution demands.

Nothing here is ever NaN: what cannot be computed is None, and a `note` says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from drift_cli.analysis import segments
from drift_cli.analysis.flags import FlagCounts
from drift_cli.analysis.measures import sample
from drift_cli.analysis.results import Measure
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.spec import Cell

LEVEL = 0.95
_CONSTANT = 1e-12
"""Relative spread below which values are one and the same number, up to rounding in float64."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and spread down the columns of an array (n, T), each (T,); NaN where it cannot be computed."""

    n: NDArray[np.int64]
    mean: FloatArray
    sd: FloatArray
    """From two observations on; 0 where all are equal."""
    sem: FloatArray
    low: FloatArray
    high: FloatArray
    """The t interval of the mean, pointwise; NaN from fewer than two observations and where all are equal."""


@dataclass(frozen=True)
class TurnSummary:
    """One turn of a cell. `n` rollouts have it."""

    turn: int
    """1 for the first."""
    n: int
    mean: float | None
    sd: float | None
    sem: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CellSummary:
    """One cell: its rollouts' means over turns, and its turns."""

    transcript: str
    condition: str
    temperature: float
    planned: int
    """Rollouts in the run's plan."""
    n: int
    """Rollouts with at least one turn: the observations."""
    early: int
    """Of these, rollouts without all turns: ended early, unfinished, or with replies left out."""
    replies: int
    mean: float | None
    """Of the rollout means."""
    grand_mean: float | None
    """Of all replies: the same, unless rollouts ended early."""
    sd: float | None
    sem: float | None
    low: float | None
    high: float | None
    flagged: FlagCounts
    turns: tuple[TurnSummary, ...]
    note: str | None = None


@dataclass(frozen=True)
class Summary:
    """All cells of a run on one axis; `dataclasses.asdict` gives plain JSON."""

    run_id: str
    axis: str
    layer: int | None
    level: float
    ddof: int
    method: str
    scope: str
    cells: tuple[CellSummary, ...]
    measure: str | None = None
    """In words, what was measured of replies in place of projections."""


def summarize(table: RunTable, *, ddof: int = 1, level: float = LEVEL) -> Summary:
    """Summarize every cell of the table, in its order."""
    method = (
        f"means over rollouts; SEM = SD (ddof {ddof}) of the rollout means / √n; "
        f"{100 * level:g} % t interval of the mean, from the sample SD, pointwise per turn"
    )
    cells = tuple(_summarize_cell(table, cell, ddof, level) for cell in table.cells)
    return Summary(table.run_id, table.axis, table.layer, level, ddof, method, scope(table), cells, table.measure)


def scope(table: RunTable) -> str:
    """The sentence that says what the table's numbers can be generalized to, after one on what is measured of replies that have segments."""
    said = segments.sentence(table.segment) + _scope(table)
    return said if table.caution is None else f"{said} {table.caution}"


def _scope(table: RunTable) -> str:
    transcripts = tuple(dict.fromkeys(cell.transcript for cell in table.cells))
    if len(transcripts) == 1:
        return f"One transcript ({transcripts[0]}): intervals and p values cover sampling noise on this script only, not other scripts."
    return f"{len(transcripts)} transcripts, each by itself: intervals and p values cover sampling noise on that script only, not other scripts."


def moments(values: FloatArray, *, ddof: int = 1, level: float = LEVEL) -> Moments:
    """`Moments` of the columns of `values` (n, T), leaving out what is not finite."""
    there = np.isfinite(values)
    n = there.sum(axis=0)
    mean = _divide(np.where(there, values, 0.0).sum(axis=0), n, n > 0)
    squares = (np.where(there, values - np.where(n > 0, mean, 0.0), 0.0) ** 2).sum(axis=0)
    varies = ~constant(values)
    squares = np.where(varies, squares, 0.0)
    sd = np.sqrt(_divide(squares, n - ddof, n > max(1, ddof)))
    root = np.sqrt(n)
    half = stats.t.ppf((1 + level) / 2, np.maximum(n - 1, 1)) * _divide(np.sqrt(_divide(squares, n - 1, n > 1)), root, n > 1)
    half = np.where(varies, half, np.nan)
    return Moments(n=n, mean=mean, sd=sd, sem=_divide(sd, root, n > 0), low=mean - half, high=mean + half)


def constant(values: FloatArray, scale: FloatArray | float = 0.0) -> NDArray[np.bool_]:
    """(T,): columns of `values` (n, T) whose finite values, if any, are all the same number up to rounding.

    `scale` is the size of the numbers that they were computed from, where that was larger.
    """
    there = np.isfinite(values)
    high = np.where(there, values, -np.inf).max(axis=0, initial=-np.inf)
    low = np.where(there, values, np.inf).min(axis=0, initial=np.inf)
    spread = np.where(high >= low, high, 0.0) - np.where(high >= low, low, 0.0)
    largest = np.abs(np.where(there, values, 0.0)).max(axis=0, initial=0.0)
    same: NDArray[np.bool_] = spread <= _CONSTANT * np.maximum(largest, scale)
    return same


def percent(level: float) -> str:
    """A level for a sentence: `95 %`."""
    return f"{100 * level:g} %"


def plain(number: float | np.floating | np.integer) -> float | None:
    """The number for a table or JSON: None where it is not finite."""
    return float(number) if math.isfinite(number) else None


def _divide(a: FloatArray, b: NDArray[np.int64] | FloatArray, where: NDArray[np.bool_]) -> FloatArray:
    """`a / b` where asked, NaN elsewhere, without warnings."""
    quotient: FloatArray = np.divide(a, b, out=np.full(np.shape(a), np.nan), where=where)
    return quotient


def _summarize_cell(table: RunTable, cell: Cell, ddof: int, level: float) -> CellSummary:
    rows = table.rows(cell)
    values, means = (found := sample(table, cell)).values, found.own[Measure.MEAN]
    over = moments(means[:, None], ddof=ddof, level=level)
    replies = int(np.isfinite(values).sum())
    n, early = int(over.n[0]), int(table.early[rows].sum())
    flags = table.flags.rows(rows)
    notes = (_note(n, early, bool(constant(means[:, None])[0])), segments.lacking_note(table, rows))
    return CellSummary(
        transcript=cell.transcript,
        condition=cell.condition,
        temperature=cell.temperature,
        planned=int(rows.sum()),
        n=n,
        early=early,
        replies=replies,
        mean=plain(over.mean[0]),
        grand_mean=plain(np.nansum(values) / replies) if replies else None,
        sd=plain(over.sd[0]),
        sem=plain(over.sem[0]),
        low=plain(over.low[0]),
        high=plain(over.high[0]),
        flagged=flags.counts() if table.segment is None else flags.segment_counts(int((table.finish[rows] != "").sum())),
        turns=_summarize_turns(values, table.first, ddof, level),
        note=" ".join(filter(None, notes)) or None,
    )


def _summarize_turns(values: FloatArray, first: int, ddof: int, level: float) -> tuple[TurnSummary, ...]:
    per = moments(values, ddof=ddof, level=level)
    columns = zip(per.n, per.mean, per.sd, per.sem, per.low, per.high, strict=True)
    return tuple(TurnSummary(turn, int(n), *map(plain, numbers)) for turn, (n, *numbers) in enumerate(columns, start=first))


def _note(n: int, early: int, same: bool) -> str | None:
    """Why numbers are missing, or cover less than they seem to."""
    if n == 0:
        return "No turn is committed yet."
    sentences = []
    if n == 1:
        sentences.append("One rollout: no standard error and no interval.")
    elif same:
        sentences.append(f"All {n} rollouts have the same mean, so there is no sampling noise to build an interval from.")
    if early:
        sentences.append(
            f"{early} of {n} rollouts lack turns (ended early, unfinished, or replies left out); the mean is that of the turns' means."
        )
    return " ".join(sentences) or None
