"""`drift plot`: a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drift_cli.commands.options import DisplayOption, JsonOption, MeasuredAxisOption, RunArgument, StoreOption, make_display, open_run
from drift_cli.display import Mode
from drift_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from drift_cli.analysis.table import RunTable
    from drift_cli.store.run import Run

FORMATS = ("png", "svg", "pdf")


def plot(
    run: RunArgument = None,
    axis: MeasuredAxisOption = None,
    reference: Annotated[Path | None, typer.Option(help="A reference line to draw, made by `drift measure --transcript`.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The picture's file (default: images/RUN-trajectory.png and .svg).")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="Formats, such as png,svg,pdf.")] = "png,svg",
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Draw each condition over turns.

    Means with their 95 % bands, every rollout thin, and the reference line where there is one.
    """
    formats = [name.strip().lower() for name in format_.split(",") if name.strip()]
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UsageError(f"format {format_!r} is unknown", mend=f"Use {', '.join(FORMATS)}, one or several.")
    found = open_run(store, run)
    written = draw(found, axis, reference, output, formats)
    document = {"run": found.paths.run_id, "files": [str(path) for path in written]}
    make_display(display, as_json).result(document, *(f"written: {path}" for path in written))


def draw(run: Run, axis: str | None, reference: Path | None, output: Path | None, formats: Sequence[str]) -> list[Path]:
    """Draw a run and write its files; returns their paths."""
    from drift_cli.analysis.table import load
    from drift_cli.config import home
    from drift_cli.figures.trajectory import save, trajectory

    table = load(run, axis)
    figure = trajectory(table, reference=_references(run, table, reference))
    if output is not None and output.suffix.lower().lstrip(".") not in FORMATS:
        raise UsageError(f"{output} has no known picture format", mend=f"End its name in {', '.join('.' + name for name in FORMATS)}.")
    stem = home() / "images" / f"{run.paths.run_id}-trajectory"
    paths = [output] if output is not None else [stem.with_name(f"{stem.name}.{name}") for name in formats]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(figure, path)
    return paths


def _references(run: Run, table: RunTable, given: Path | None) -> dict[str, NDArray[np.float64]] | None:
    """Reference lines by transcript: the one given, else those measured in the run on this axis."""
    import numpy as np

    from drift_cli.reference_line import read

    names = dict.fromkeys(cell.transcript for cell in table.cells)
    if given is not None:
        line = read(given)
        name = line.transcript if line.transcript in names else next(iter(names))
        lines = {name: line}
    else:
        lines = {name: read(path) for name in names if (path := run.paths.reference(name, table.axis)).exists()}
    width = table.projections.shape[1]
    drawn = {}
    for name, line in lines.items():
        values = np.full(width, np.nan)
        known = line.projections[:width]
        values[: len(known)] = [np.nan if value is None else value for value in known]
        drawn[name] = values
    return drawn or None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plot)
