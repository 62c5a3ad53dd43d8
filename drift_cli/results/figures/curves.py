"""What is drawn of a run: one curve per condition in each panel, ready in arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.results import Options
from drift_cli.analysis.summary import LEVEL, moments
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.analysis.turns import band
from drift_cli.results.figures.palette import LineStyle, Style


class Interval(NamedTuple):
    """Bounds of the mean at each turn, (T,) each; NaN where there are none."""

    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Bands:
    """How intervals of a mean curve are made, from rollouts (n, T), and how they are labelled."""

    label: str
    of: Callable[[FloatArray], Interval]


def pointwise(level: float = LEVEL, why: str = "") -> Bands:
    """The t interval of each turn by itself."""

    def of(values: FloatArray) -> Interval:
        found = moments(values, level=level)
        return Interval(found.low, found.high)

    return Bands(f"{100 * level:g} % band of the mean, pointwise{why}", of)


def simultaneous(table: RunTable, level: float = LEVEL, seed: int = 0) -> Bands:
    """The band that holds a mean's whole curve with the level's probability; pointwise, and labelled so, where some cell has too few rollouts for one."""
    options = Options(level=level, seed=seed)
    for cell in table.cells:
        values = table.projections[table.rows(cell)]
        if np.isfinite(moments(values).low).any() and band(values, options).critical is None:
            return pointwise(level, " (too few rollouts for all turns together)")

    def of(values: FloatArray) -> Interval:
        found = band(values, options)
        return Interval(found.low, found.high)

    return Bands(f"{100 * level:g} % band of the mean, all turns", of)


@dataclass(frozen=True, eq=False)
class Curve:
    """One condition in one panel. x is (T,), values (n, T), suspect and length (n, T); rows are rollouts that have a turn."""

    condition: str
    look: LineStyle
    x: FloatArray
    values: FloatArray
    suspect: NDArray[np.bool_]
    early: int
    """Rollouts that lack some of the transcript's turns."""
    mean: FloatArray
    """(T,); NaN where no rollout has the turn."""
    interval: Interval

    @property
    def banded(self) -> NDArray[np.bool_]:
        """(T,): turns with an interval."""
        return np.isfinite(self.interval.low)


class Isolated(NamedTuple):
    """A line's points that have no neighbour to be joined with."""

    x: FloatArray
    y: FloatArray


def curves(table: RunTable, group: Group, bands: Bands, style: Style) -> Iterator[Curve]:
    """What to draw in a group's panel, in the order of conditions."""
    turns = table.length(group.transcript)
    looks = style.each(table.conditions)
    cells = [cell for cell in table.cells if (cell.transcript, cell.temperature) == group]
    for index, cell in enumerate(cells):
        rows = table.rows(cell) & (table.turns > 0)
        values = table.projections[rows][:, :turns]
        yield Curve(
            condition=cell.condition,
            look=looks[cell.condition],
            x=beside(turns, index, len(cells)),
            values=values,
            suspect=table.flags.suspect[rows][:, :turns],
            early=int(table.early[rows].sum()),
            mean=moments(values).mean,
            interval=bands.of(values),
        )


def beside(turns: int, index: int, curves_: int) -> FloatArray:
    """Where a curve's turns (T,) are drawn: at 1 … T; where there is but one turn, curves stand side by side, as points above one another merge."""
    x = np.arange(1.0, turns + 1)
    return x if turns > 1 else x + 0.08 * (index - (curves_ - 1) / 2)


def isolated(x: FloatArray, y: FloatArray) -> Isolated:
    """The points of a line (T,) whose neighbours are missing."""
    there = np.pad(np.isfinite(y), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]
    return Isolated(x[alone], y[alone])
