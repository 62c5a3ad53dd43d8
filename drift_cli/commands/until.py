"""`drift generate --until-half-width`: add rollouts in place until the interval is as narrow as asked, by an interval that allows for it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from drift_cli.commands.work import Work
    from drift_cli.settings.settings import Settings
    from drift_cli.store.run import Run

_GROWTH = (1.25, 2.0)
"""By how much rollouts grow at least and at most from one look to the next."""


def until(work: Work, settings: Settings, width: float | None, most: int | None, *, dry_run: bool) -> None:
    """Extend the run that the settings name until its always-valid intervals are ± `width` or narrower, at most to `most` rollouts a cell.

    Without a width the run is made once, as the settings say.
    """
    if width is None:
        if most is not None:
            raise UsageError("--max-samples goes with --until-half-width", mend="Without it, --samples says how many rollouts there are.")
        work.start(settings, dry_run=dry_run)
        return
    if most is None:
        raise UsageError("--until-half-width needs --max-samples", mend="Say how many rollouts per cell there may be at most.")
    if not (math.isfinite(width) and width > 0):
        raise UsageError(f"--until-half-width is {width:g}", mend="Give a positive number, in the axis's units.")
    if work.plan is not None:
        raise UsageError("--until-half-width and --plan were both given", mend="A plan says itself when there are looks.")
    samples = min(settings.samples, most)
    work = replace(work, rule=f"half-width {width:g}")
    while True:
        run = work.start(settings.changed("flag --until-half-width", samples=samples), dry_run=dry_run)
        if run is None:
            return
        if run.manifest.plan is not None:
            raise UsageError(f"run {run.paths.run_id} has a plan, which says when there are looks", mend="Leave --until-half-width out.")
        half, have = _widest(run, work.rule), max(plan.samples for plan in run.manifest.cells)
        said = "no comparison has an interval" if half is None else f"the widest always-valid interval is ± {half:.3g}"
        if half is not None and half <= width:
            work.display.note(f"{said}, at most ± {width:g} was asked for: done with {have} rollouts per cell")
            return
        if have >= most:
            work.display.note(
                f"{said}, and there are {have} rollouts per cell, as many as --max-samples allows: ± {width:g} is not reached"
            )
            return
        samples = _next(have, half, width, most)
        work.display.note(f"{said} with {have} rollouts per cell: going on to {samples}")


def _next(have: int, half: float | None, width: float, most: int) -> int:
    """How many rollouts to look at next: as many as the width needs if nothing else changes, within bounds."""
    wanted = _GROWTH[1] if half is None else (half / width) ** 2
    return min(most, max(have + 1, math.ceil(have * min(max(wanted, _GROWTH[0]), _GROWTH[1]))))


def _widest(run: Run, rule: str | None) -> float | None:
    """Half the widest always-valid interval of the primary comparisons; None where one has none. Looking at it is recorded."""
    from drift_cli.analysis.looks import record
    from drift_cli.analysis.results import Options
    from drift_cli.analysis.table import load
    from drift_cli.results.judged import judge, usual

    table = load(run)
    options = usual(run, table, Options())
    found = judge(run, table, options, rule=rule).answer.looked
    record(run, table, options, "generate", rule)
    assert found is not None
    halves = [
        None if one.always_high is None or one.always_low is None else (one.always_high - one.always_low) / 2 for _, one in found.standings
    ]
    if not halves or len(halves) < len(table.conditions) - 1:
        return None
    known = [half for half in halves if half is not None]
    return max(known) if len(known) == len(halves) else None
