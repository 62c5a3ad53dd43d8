"""`drift report`: a run as one HTML file to send around."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from drift_cli.commands.options import (
    DisplayOption,
    JsonOption,
    MeasuredAxisOption,
    ReplyMeasureOption,
    RunArgument,
    SegmentOption,
    StoreOption,
    make_display,
    of_segment,
    open_run,
)
from drift_cli.display import Mode
from drift_cli.results.pictures import Picture
from drift_cli.spec import Part


def report(
    run: RunArgument = None,
    axis: MeasuredAxisOption = None,
    segment: SegmentOption = None,
    reply_measure: ReplyMeasureOption = None,
    against: Annotated[str | None, typer.Option(help="The condition that others are compared with (default: the first).")] = None,
    level: Annotated[float, typer.Option(help="Level of bands and intervals.", min=0.5, max=0.9999)] = 0.95,
    reference: Annotated[Path | None, typer.Option(help="A reference line to draw, made by `drift measure --transcript`.")] = None,
    title: Annotated[str | None, typer.Option(help="A heading (default: the run's id).")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file (default: images/RUN-report.html).")] = None,
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Write a run as one HTML file.

    A summary in words, the trajectory to play with, the statistics, and every conversation to read and search. The file needs no network and no server,
    and nothing in it can load anything: send it, or open it from a shared folder.

    Example: drift report demo-1a2b3c4d -o report.html
    """
    part = segment or Part.ANSWER
    picture = Picture(open_run(store, run), axis, title=title, against=against, reference=reference, level=level, part=part)
    picture = replace(picture, reply_measure=reply_measure)
    from drift_cli.analysis.looks import record
    from drift_cli.results.report.gather import write
    from drift_cli.settings.config import home

    path = write(picture, output or home() / "images" / f"{picture.run.paths.run_id}-report.html")
    shown = make_display(display, as_json)
    if (problem := record(picture.run, picture.table, picture.options, "report")) is not None:
        shown.note(problem)
    document = {"run": picture.run.paths.run_id, **of_segment(picture.table.segment), "file": str(path), "bytes": path.stat().st_size}
    shown.result(document, f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
