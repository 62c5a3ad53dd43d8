"""`drift demo`: everything on the built-in model, in minutes."""

from __future__ import annotations

import typer

from drift_cli.commands.options import DisplayOption, StoreOption, make_display, open_store
from drift_cli.display import Mode


def demo(store: StoreOption = None, display: DisplayOption = Mode.AUTO) -> None:
    """Run everything on the built-in model, in minutes.

    Three conditions, statistics, a picture. Stop it with Ctrl-C and run it again: it goes on where it stopped.

    Example: drift demo
    """
    from drift_cli.commands.plot import draw
    from drift_cli.commands.stats import stats
    from drift_cli.commands.work import Work
    from drift_cli.results.pictures import Picture
    from drift_cli.settings.config import preset_settings

    shown = make_display(display)
    run = Work(shown, open_store(store), same_replies=True).start(preset_settings("demo"))
    assert run is not None
    stats(run.paths.run_id, per_turn=False, store=store, display=display)
    for path in draw(Picture(run), ["trajectory"], None, ("png", "svg"), shown):
        shown.result({}, f"picture: {path}")
    shown.result({}, "next: drift runs show, or point the same commands at a real model: drift init --preset smollm2")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)
