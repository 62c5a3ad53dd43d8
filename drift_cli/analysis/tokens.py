"""Token traces of a run with the one colour scale that all its replies share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.table import RunTable
from drift_cli.spec import Rollout
from drift_cli.store.traces import TokenTrace, read_traces

if TYPE_CHECKING:
    from drift_cli.store.run import Run

_PERCENTILE = 98.0
"""Of the distances from the middle at which colours end: single tokens, a reply's first above all, lie far outside."""


@dataclass(frozen=True, eq=False)
class Traces:
    """What is traced of a run on one axis."""

    of: Mapping[Rollout, Mapping[int, TokenTrace]]
    """By rollout and turn; rollouts without traces are left out."""
    middle: float
    """Mean projection of all replies: the palest colour."""
    half: float
    """Distance from it at which colours end."""


def load_traces(run: Run, table: RunTable) -> Traces:
    """Read every trace on the table's axis; there are none of a measure of replies. Raises `StoreError` where one is damaged."""
    found = {}
    if table.measure is None and run.paths.traces_root.is_dir():
        entry = choose_axis(run.manifest, table.axis, run.paths.run_id)
        for state in run.states():
            if state.done and run.paths.traces(state.rollout, entry.name).exists():
                found[state.rollout] = read_traces(run.paths, state.rollout, entry, run.record(state.rollout).turns)
    there = table.projections[np.isfinite(table.projections)]
    middle = float(there.mean()) if len(there) else 0.0
    values = [trace.values for traces in found.values() for trace in traces.values()]
    distances = np.abs(np.concatenate(values) - middle) if values else np.empty(0)
    half = float(np.percentile(distances, _PERCENTILE)) if len(distances) else 0.0
    return Traces(found, middle, half or 1.0)
