"""`drift resume`: go on with an unfinished run, from its manifest alone."""

from __future__ import annotations

import typer

from drift_cli.commands.flags import MOVED, Flags, with_settings
from drift_cli.commands.options import Common, DryRunOption, RunArgument, SameRepliesOption


@with_settings("device", "batch", "engine", "model", "adapter", **MOVED)
def resume(
    flags: Flags,
    run: RunArgument = None,
    *,
    same_replies: SameRepliesOption = True,
    dry_run: DryRunOption = False,
    common: Common,
) -> None:
    """Go on with an unfinished run.

    The newest, or the one named. Nothing but its folder and its model is needed.

    Example: drift resume demo-1a2b3c4d
    """
    from drift_cli.commands.work import Work
    from drift_cli.running.experiment import settings_of

    found = common.open(run)
    settings = settings_of(found.manifest).given(flags)
    Work(common.show(), common.folder(), same_replies=same_replies).go_on(found, settings, dry_run=dry_run)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(resume)
