"""What is drawn of a run: one curve per condition in each panel, ready in arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.summary import Moments, moments
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.figures.palette import LineStyle, styles


@dataclass(frozen=True, eq=False)
class Curve:
    """One condition in one panel. x is (T,), values (n, T), suspect (n, T); rows are rollouts that have a turn."""

    condition: str
    look: LineStyle
    x: FloatArray
    values: FloatArray
    suspect: NDArray[np.bool_]
    early: int
    """Rollouts that lack some of the transcript's turns."""
    moments: Moments

    @property
    def banded(self) -> NDArray[np.bool_]:
        """(T,): turns with an interval."""
        return np.isfinite(self.moments.low)


class Isolated(NamedTuple):
    """A line's points that have no neighbour to be joined with."""

    x: FloatArray
    y: FloatArray


def curves(table: RunTable, group: Group, level: float) -> Iterator[Curve]:
    """What to draw in a group's panel, in the order of conditions."""
    turns = table.length(group.transcript)
    looks = styles(table.conditions)
    cells = [cell for cell in table.cells if (cell.transcript, cell.temperature) == group]
    for index, cell in enumerate(cells):
        rows = table.rows(cell) & (table.turns > 0)
        values = table.projections[rows][:, :turns]
        x = np.arange(1.0, turns + 1)
        if turns == 1:
            # Points above one another cannot be told apart: side by side.
            x = x + 0.08 * (index - (len(cells) - 1) / 2)
        yield Curve(
            condition=cell.condition,
            look=looks[cell.condition],
            x=x,
            values=values,
            suspect=table.flags.suspect[rows][:, :turns],
            early=int(table.early[rows].sum()),
            moments=moments(values, level=level),
        )


def isolated(x: FloatArray, y: FloatArray) -> Isolated:
    """The points of a line (T,) whose neighbours are missing."""
    there = np.pad(np.isfinite(y), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]
    return Isolated(x[alone], y[alone])
