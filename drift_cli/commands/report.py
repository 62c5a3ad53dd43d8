"""`drift report`: a run as one HTML file to send around."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drift_cli.commands.options import DisplayOption, JsonOption, MeasuredAxisOption, RunArgument, StoreOption, make_display, open_run
from drift_cli.display import Mode
from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from drift_cli.report.document import Contents
    from drift_cli.store.run import Run


def report(
    run: RunArgument = None,
    axis: MeasuredAxisOption = None,
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
    """
    found = open_run(store, run)
    path = write(found, axis=axis, against=against, level=level, reference=reference, title=title, output=output)
    document = {"run": found.paths.run_id, "file": str(path), "bytes": path.stat().st_size}
    make_display(display, as_json).result(document, f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def write(run: Run, *, axis: str | None, against: str | None, level: float, reference: Path | None, title: str | None, output: Path | None) -> Path:
    """Write a run's report; returns its path."""
    from drift_cli import __version__
    from drift_cli.config import home
    from drift_cli.report.html import page
    from drift_cli.report.document import document
    from drift_cli.store.files import atomic_write, create_folder

    path = output or home() / "images" / f"{run.paths.run_id}-report.html"
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path} is no HTML file's name", mend="End it in .html.")
    data = page(document(gather(run, axis, against, level, reference)), title=title or run.paths.run_id, generator=f"drift {__version__}")
    create_folder(path.parent)
    atomic_write(path, data)
    return path


def gather(run: Run, axis: str | None, against: str | None, level: float, reference: Path | None) -> Contents:
    """Everything the report says."""
    from drift_cli.analysis.summary import summarize
    from drift_cli.analysis.tokens import load_traces
    from drift_cli.commands.pictures import Picture, references
    from drift_cli.figures.curves import pointwise
    from drift_cli.report.document import Contents
    from drift_cli.report.tables import summary_sheet, turns_sheets

    picture = Picture(run, axis, against=against, level=level, reference=reference)
    table = picture.table
    summary = summarize(table, level=level)
    sheets = [summary_sheet(summary), *turns_sheets(summary)]
    return Contents(run, table, pointwise(level), load_traces(run, table), references(run, table, reference) or {}, [], sheets)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
