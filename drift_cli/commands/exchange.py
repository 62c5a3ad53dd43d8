"""`drift import` and `drift export`: bring runs in, take them out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drift_cli.commands.options import (
    DisplayOption,
    JsonOption,
    RunArgument,
    SegmentOption,
    StoreOption,
    make_display,
    of_segment,
    open_run,
    open_store,
)
from drift_cli.display import Mode
from drift_cli.spec import Part


def _formats() -> list[str]:
    """For the shell's completion."""
    from drift_cli.interchange.exporters import OWN, exporters

    return [*OWN, *exporters()]


def import_(
    files: Annotated[list[Path], typer.Argument(help="Output files of the 003b experiment (JSON with projections and conversations).")],
    name: Annotated[str | None, typer.Option(help="The run's name (default: from the files).")] = None,
    axis_name: Annotated[str, typer.Option(help="What to call the axis that the projections are on.")] = "seed",
    layer: Annotated[int | None, typer.Option(help="The layer they were taken at, where known.")] = None,
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Bring in finished experiments as a run.

    One cell per file; stats, plot and export then work on it like on any run.

    Example: drift import results/003b_baseline.json results/003b_simple.json
    """
    from drift_cli.interchange import import_seed

    run = import_seed(files, open_store(store), name=name, axis_name=axis_name, layer=layer)
    states = run.states()
    turns = sum(state.done for state in states)
    document = {"run": run.paths.run_id, "cells": [str(plan.cell) for plan in run.manifest.cells], "rollouts": len(states), "turns": turns}
    line = f"run {run.paths.run_id}: {len(run.manifest.cells)} cells, {len(states)} rollouts, {turns} turns"
    make_display(display, as_json).result(document, line, f"next: drift stats {run.paths.run_id}   drift plot {run.paths.run_id}")


def export(
    run: RunArgument = None,
    format_: Annotated[
        str,
        typer.Option("--format", help="seed-json, assistant-axis, csv, parquet, or one that a package adds.", autocompletion=_formats),
    ] = "seed-json",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File (csv, parquet) or folder (default: under data/exports).")
    ] = None,
    axis: Annotated[
        str | None, typer.Option(help="seed-json: which axis (default: the only one). csv, parquet: only this one (default: all).")
    ] = None,
    residuals: Annotated[bool, typer.Option("--residuals", help="parquet: the residual means too.")] = False,
    segment: SegmentOption = None,
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Write a run for other tools.

    Example: drift export demo-1a2b3c4d --format parquet --residuals
    """
    from drift_cli.analysis.segments import measured
    from drift_cli.api.run import Run

    part = segment or Part.ANSWER
    found = open_run(store, run)
    written = Run(found).export(format_, output, axis=axis, residuals=residuals, segment=part)
    document = {"run": found.paths.run_id, **of_segment(measured(found.manifest, part)), "files": [str(path) for path in written]}
    shown = [f"written: {path}" for path in written[:12]] + ([f"… and {len(written) - 12} more"] if len(written) > 12 else [])
    make_display(display, as_json).result(document, *shown)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import")(import_)
    app.command()(export)
