"""`drift resume`: go on with an unfinished run, from its manifest alone."""

from __future__ import annotations

import typer

from drift_cli.commands.options import (
    AdapterPlaceOption,
    BatchOption,
    DeviceOption,
    DisplayOption,
    DryRunOption,
    EngineOption,
    JsonOption,
    ModelPlaceOption,
    RunArgument,
    SameRepliesOption,
    StoreOption,
    make_display,
    open_run,
    open_store,
    with_given,
)
from drift_cli.display import Mode


def resume(
    run: RunArgument = None,
    device: DeviceOption = None,
    batch: BatchOption = None,
    engine: EngineOption = None,
    model: ModelPlaceOption = None,
    adapter: AdapterPlaceOption = None,
    same_replies: SameRepliesOption = True,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Go on with an unfinished run.

    The newest, or the one named. Nothing but its folder and its model is needed.
    """
    from drift_cli.commands.work import Work
    from drift_cli.running.experiment import settings_of

    found = open_run(store, run)
    settings = with_given(settings_of(found.manifest), device=device, batch=batch, engine=engine, model=model, adapter=adapter)
    Work(make_display(display, as_json), open_store(store), same_replies=same_replies).go_on(found, settings, dry_run=dry_run)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(resume)
