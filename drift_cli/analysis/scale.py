"""Persona units: 0 is the mean projection of the other personas, 1 that of the assistant personas, at the axis's own layer. Differences in these units can be
compared between layers, axes and models; their midpoint is where a reply is as near the one side as the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.table import RunTable
from drift_cli.store.axes import read_axis

if TYPE_CHECKING:
    from drift_cli.store.run import Run


@dataclass(frozen=True)
class PersonaScale:
    """Mean projections of the two sides, in axis units."""

    others: float
    assistants: float

    @property
    def midpoint(self) -> float:
        """As far from the one side as from the other."""
        return (self.others + self.assistants) / 2

    def units(self, difference: float) -> float:
        """A difference in persona units."""
        return difference / (self.assistants - self.others)


def persona_scale(run: Run, table: RunTable) -> PersonaScale | None:
    """The scale of the table's axis; None where the axis does not know its personas, or the run has no copy of it."""
    entry = choose_axis(run.manifest, table.axis, run.paths.run_id)
    if not run.paths.axis(entry.name).exists():
        return None
    axis = read_axis(run.paths, entry)
    if axis.means is None:
        return None
    sides = np.array([persona in axis.assistants for persona in axis.personas])
    if sides.all() or not sides.any():
        return None
    projected = axis.project(axis.means[:, axis.layers.index(entry.layer)], entry.layer)
    others, assistants = float(projected[~sides].mean()), float(projected[sides].mean())
    return PersonaScale(others, assistants) if assistants > others else None
