"""What is known of a cell's rollouts and replies that limits what it says: counts of what is unfinished, cut, flagged, repeated, copied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.breaks import two_groups
from drift_cli.analysis.flags import FlagCounts
from drift_cli.analysis.measures import Sample
from drift_cli.analysis.table import RunTable
from drift_cli.spec import Cell


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What is known of a cell's replies and rollouts that limits what it says."""

    planned: int
    begun: int
    complete: int
    early: int
    """Rollouts that ended before their last turn: for want of context, or of a prompt from the chat template."""
    distinct: int
    """Begun rollouts that are not word for word another one."""
    replies: int
    cut: int
    """Replies cut at the length limit."""
    repeated: int
    """Replies that are word for word an earlier one of their rollout."""
    near_empty: int
    template: int
    two_groups: bool
    """Whether rollouts look like two groups, or one lies far out: a warning about tests of means."""
    flagged: FlagCounts


def quality(table: RunTable, cell: Cell, mine: Sample) -> Quality:
    """Count; `mine` are the cell's rollouts with copies merged."""
    rows = table.rows(cell)
    turns, planned = table.turns[rows], table.planned[rows]
    there = np.isfinite(table.projections[rows])
    replies = table.replies

    def count(mask: NDArray[np.bool_]) -> int:
        return int((mask[rows] & there).sum())

    return Quality(
        planned=int(rows.sum()),
        begun=int((turns > 0).sum()),
        complete=int(((turns == planned) & (planned > 0)).sum()),
        early=int((table.flags.context | table.flags.template)[rows].any(axis=1).sum()),
        distinct=mine.started,
        replies=int(there.sum()),
        cut=count(table.flags.length),
        repeated=0 if replies is None else count(replies.repeated),
        near_empty=0 if replies is None else count(replies.near_empty),
        template=0 if replies is None else count(replies.template),
        two_groups=two_groups(mine),
        flagged=table.flags.rows(rows).counts(),
    )
