"""One reply of a run by its name, as `--reply` takes it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from drift_cli.spec import Rollout
    from drift_cli.store.run import Run

_REPLY = re.compile(
    r"(?:(?P<transcript>[^/]+)/)?(?P<condition>[^/]+)(?:/T(?P<temperature>[0-9.e+-]+))?/(?P<sample>[0-9]+)/turn-(?P<turn>[0-9]+)"
)


def find_reply(run: Run, text: str) -> tuple[Rollout, int]:
    """The rollout and turn that `[transcript/]condition[/T0.7]/sample/turn-N` names; `UsageError` where there is none, or several."""
    from drift_cli.spec import Rollout

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
