"""Persona units: 0 is the mean projection of the other personas, 1 that of the assistant personas, at the axis's own layer. Differences in these units can be
compared between layers, axes and models; their midpoint is where a reply is as near the one side as the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.table import RunTable

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
    from drift_cli import axes

    entry = choose_axis(run.manifest, table.axis, run.paths.run_id)
    path = run.paths.axis(entry.name)
    if not path.exists():
        return None
    axis = axes.load(path)
    if axis.means is None or entry.layer not in axis.layers:
        return None
    sides = np.array([persona in axis.assistants for persona in axis.personas])
    if sides.all() or not sides.any():
        return None
    projected = axis.means[:, axis.layers.index(entry.layer)].astype(np.float64) @ axis.at(entry.layer).astype(np.float64)
    others, assistants = float(projected[~sides].mean()), float(projected[sides].mean())
    return PersonaScale(others, assistants) if assistants > others else None
