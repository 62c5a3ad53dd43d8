"""`drift init`: a drift.toml to edit."""

from __future__ import annotations

from typing import Annotated

import typer

from drift_cli.commands.flags import grouped
from drift_cli.commands.options import Output
from drift_cli.errors import DriftError
from drift_cli.settings.config import CONFIG_FILE, home, preset_text
from drift_cli.settings.settings import PRESETS


@grouped
def init(
    preset: Annotated[
        str, typer.Option(help=f"The experiment to begin with: {', '.join(PRESETS)}.", autocompletion=lambda: list(PRESETS))
    ] = "demo",
    force: Annotated[bool, typer.Option("--force", help="Replace a drift.toml that is there.")] = False,
    *,
    shown_as: Output,
) -> None:
    """Write a drift.toml to edit.

    `drift generate` reads it from then on.

    Example: drift init --preset smollm2
    """
    from drift_cli.files import atomic_write

    path = home() / CONFIG_FILE
    text = preset_text(preset)
    if path.exists() and not force:
        raise DriftError(f"{path} exists already", mend="Edit it, or replace it with --force.")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode())
    then = "drift generate --dry-run" if preset == "demo" else "drift axis build   drift generate --axis NAME --dry-run"
    shown_as.show().result({"file": str(path), "preset": preset}, f"{path} written; edit it, then: {then}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)
