"""`drift report`: a run as one HTML file to send around."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drift_cli.commands.options import (
    DisplayOption,
    JsonOption,
    MeasuredAxisOption,
    RunArgument,
    SegmentOption,
    StoreOption,
    make_display,
    of_segment,
    open_run,
)
from drift_cli.commands.pictures import Picture
from drift_cli.display import Mode
from drift_cli.errors import UsageError
from drift_cli.spec import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drift_cli.analysis.controls import Standing
    from drift_cli.analysis.verdict import Answer
    from drift_cli.results.report.document import Contents


def report(
    run: RunArgument = None,
    axis: MeasuredAxisOption = None,
    segment: SegmentOption = None,
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
    shown = make_display(display, as_json)
    path = write(picture, output)
    if (problem := picture.record("report")) is not None:
        shown.note(problem)
    document = {"run": picture.run.paths.run_id, **of_segment(picture.table.segment), "file": str(path), "bytes": path.stat().st_size}
    shown.result(document, f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def write(picture: Picture, output: Path | None) -> Path:
    """Write a run's report; returns its path."""
    from drift_cli import __version__
    from drift_cli.results.report.document import document
    from drift_cli.results.report.html import page
    from drift_cli.settings.config import home
    from drift_cli.store.files import atomic_write, create_folder

    run_id = picture.run.paths.run_id
    path = output or home() / "images" / f"{run_id}-report.html"
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path} is no HTML file's name", mend="End it in .html.")
    data = page(document(gather(picture)), title=picture.title or run_id, generator=f"drift {__version__}")
    create_folder(path.parent)
    atomic_write(path, data)
    return path


def gather(picture: Picture) -> Contents:
    """Everything the report says of a run."""
    from drift_cli.analysis.study import analyze
    from drift_cli.analysis.tokens import load_traces
    from drift_cli.commands.bands import bands_of
    from drift_cli.commands.pictures import references
    from drift_cli.commands.stats import among_controls
    from drift_cli.results.figures.panel import check_drawable
    from drift_cli.results.report.document import Contents
    from drift_cli.results.report.verdict import verdict
    from drift_cli.results.tables.study import controls_table, study_tables

    run, table = picture.run, picture.table
    check_drawable(table)
    study = picture.study
    controls = among_controls(run, table, study.options)
    short = [*study_tables(study, turns=False), *([controls_table(controls, study.scope)] if controls else [])]
    folded = study_tables(study)[len(study_tables(study, turns=False)) :]
    if table.flags.suspect.any():
        folded += study_tables(analyze(table.without_suspect(), study.options), turns=False, which=", without flagged replies")
    model = run.manifest.model
    return Contents(
        run=run,
        table=table,
        bands=bands_of(table, picture.bands, picture.level),
        traces=load_traces(run, table),
        references=references(run, table, picture.reference) or {},
        verdict=verdict(
            _answer(picture, controls),
            () if model is None or model.note is None else (f"{run.manifest.spec.model}: {model.note}.",),
        ),
        tables=short,
        folded=folded,
    )


def _answer(picture: Picture, controls: Sequence[Standing]) -> Answer:
    """The run's one answer, with everything that limits it."""
    from drift_cli.analysis.axis_error import axis_errors
    from drift_cli.analysis.placebos import unmatched
    from drift_cli.analysis.scale import persona_scale
    from drift_cli.analysis.sensitivity import layer_moves
    from drift_cli.analysis.verdict import answer

    run, table = picture.run, picture.table
    return answer(
        table,
        picture.single,
        controls,
        persona_scale(run, table),
        axis_errors=axis_errors(run, table, picture.single),
        presence=picture.presence,
        moves=layer_moves(run, table, picture.single.baseline),
        looking=picture.looking,
        unmatched=unmatched(run.manifest.conditions, picture.single.baseline),
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
