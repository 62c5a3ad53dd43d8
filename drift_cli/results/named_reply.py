"""One reply of a run: by the name that links and options give it, or the one that lies lowest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis.table import RunTable
from drift_cli.errors import UsageError
from drift_cli.spec import Rollout

if TYPE_CHECKING:
    from drift_cli.store.run import Run

_REPLY = re.compile(
    r"(?:(?P<transcript>[^/]+)/)?(?P<condition>[^/]+)(?:/T(?P<temperature>[0-9.e+-]+))?/(?P<sample>[0-9]+)/turn-(?P<turn>[0-9]+)"
)


def find_reply(run: Run, text: str) -> tuple[Rollout, int]:
    """The rollout and turn that `[transcript/]condition[/T0.7]/sample/turn-N` names; `UsageError` where there is none, or several."""
    match = _REPLY.fullmatch(text.removeprefix("#"))
    mend = "Name one as [TRANSCRIPT/]CONDITION[/T0.7]/SAMPLE/turn-N, such as simple/7/turn-12."
    if match is None:
        raise UsageError(f"{text!r} names no reply", mend=mend)
    sample, turn = int(match["sample"]), int(match["turn"])
    found = [
        Rollout(plan.cell, sample)
        for plan in run.manifest.cells
        if plan.cell.condition == match["condition"]
        and match["transcript"] in (None, plan.cell.transcript)
        and (match["temperature"] is None or f"{plan.cell.temperature:g}" == match["temperature"])
        and sample < plan.samples
    ]
    if len(found) != 1:
        many = f"{len(found)} replies: {', '.join(map(str, found))}" if found else "no reply of this run"
        raise UsageError(f"{text!r} names {many}", mend=mend)
    if not 1 <= turn <= len(run.record(found[0]).turns):
        raise UsageError(f"{found[0]} has no turn {turn}", mend=mend)
    return found[0], turn


def lowest(table: RunTable, traced: Sequence[Rollout]) -> tuple[Rollout, int]:
    """The traced reply with the lowest projection."""
    wanted = {(table.cells.index(rollout.cell), rollout.sample): rollout for rollout in traced}
    rows = [row for row in range(len(table.sample)) if (int(table.cell_of[row]), int(table.sample[row])) in wanted]
    values = np.where(np.isfinite(table.projections[rows]), table.projections[rows], np.inf)
    row, column = np.unravel_index(int(values.argmin()), values.shape)
    return wanted[int(table.cell_of[rows[row]]), int(table.sample[rows[row]])], int(column) + 1
