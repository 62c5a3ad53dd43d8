"""`drift axis build | import | export | show | personas`: make an axis, bring one in, take one out, look at one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drift_cli.commands import axis_build
from drift_cli.commands.axis_tables import axis_facts, axis_tables
from drift_cli.commands.flags import grouped
from drift_cli.commands.options import Output
from drift_cli.display import Display, Table
from drift_cli.errors import DriftError, UsageError

if TYPE_CHECKING:
    from drift_cli.axis import Axis


axis = typer.Typer(help="Axes: build one, import or export tensors, look at one.", no_args_is_help=True)
axis.command("build")(axis_build.build)


ConventionOption = Annotated[
    str | None,
    typer.Option(
        help="How the file numbers layers: hidden-states (0 is the embeddings) or blocks (0 is the first block's output; assistant-axis). "
        "Default: as the number of --model's blocks tells.",
        metavar="<hidden-states|blocks>",
        autocompletion=lambda: ["hidden-states", "blocks"],
    ),
]


class ExportKind(StrEnum):
    """What of an axis is written."""

    AXIS = "axis"
    PERSONAS = "personas"


@axis.command("import")
@grouped
def import_(
    file: Annotated[Path, typer.Argument(help="A torch file: persona → vector(s), or one axis tensor.")],
    name: Annotated[str | None, typer.Option(help="The axis's name (default: the file's).")] = None,
    layer: Annotated[
        int | None, typer.Option(help="The layer of single vectors, as the file numbers it (default: from the file's name).")
    ] = None,
    convention: ConventionOption = None,
    assistant: Annotated[list[str] | None, typer.Option(help="A persona on the assistant's side; repeat for several.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model it was made on: tells how layers are numbered, and keeps others from being measured with it."),
    ] = None,
    *,
    shown_as: Output,
) -> None:
    """Bring in an axis and save it under data/axes. Tensors only: nothing in the file is executed.

    Example: drift axis import assistant_axis_layer15.pt --name theirs --model org/model
    """
    from drift_cli.measuring.torch_axes import convention_of, import_torch
    from drift_cli.settings.config import axes_folder
    from drift_cli.spec import plain_name

    shown = shown_as.show()
    made = import_torch(
        file,
        name=name or plain_name(file.stem),
        layer=layer,
        convention=(chosen := convention_of(convention)),
        assistants=tuple(assistant or ()),
        model=model,
        blocks=lambda: _blocks(shown, model, needed=chosen is None),
    )
    path = axes_folder() / f"{made.name}.safetensors"
    made.save(path)
    shown.result({**axis_facts(made), "file": str(path)}, *axis_tables(made), f"written to {path}; use it with --axis {made.name}")


def _blocks(shown: Display, model: str | None, *, needed: bool) -> int | None:
    """The number of a model's blocks; None where it cannot be told. Unless it is needed, only what is on this machine is asked."""
    from drift_cli import models

    if model is None:
        return None
    here = model == models.DEMO or Path(model).expanduser().is_dir()
    if not here and (built := _built_on(model)) is not None:
        shown.note(f"{model} has {built.layers[-1]} blocks, as axis {built.name} tells, which was built on it")
        return built.layers[-1]
    if not (here or needed):
        return None
    try:
        return models.describe(model).layers
    except DriftError as error:
        shown.note(f"the number of blocks of {model} is not known here: {error.what}")
        return None


def _built_on(model: str) -> Axis | None:
    """An axis that `drift axis build` made of a model: it has all of its layers."""
    from drift_cli.models.axes import axes_for, find
    from drift_cli.settings.config import axes_folder

    found = (find(name, axes_folder()) for name in axes_for(model, axes_folder()))
    return next((made for made in found if made.personas_digest is not None), None)


@axis.command("export")
@grouped
def export(
    name: Annotated[str, typer.Argument(metavar="AXIS", help="An axis by name or file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The torch file to write.")],
    kind: Annotated[
        ExportKind, typer.Option(help="axis: one tensor of block outputs, as assistant-axis has it; personas: a dict of persona → means.")
    ] = ExportKind.AXIS,
    layer: Annotated[int | None, typer.Option(help="With personas: this layer only (default: all).")] = None,
    *,
    shown_as: Output,
) -> None:
    """Write an axis as a torch file that other tools read.

    Example: drift axis export mine -o mine.pt --kind personas
    """
    from drift_cli.measuring.torch_axes import export_torch
    from drift_cli.models.axes import find
    from drift_cli.settings.config import axes_folder

    if layer is not None and kind is ExportKind.AXIS:
        raise UsageError("--layer goes with --kind personas", mend="An axis file has the output of every block: leave --layer out.")
    found = find(name, axes_folder())
    said = export_torch(found, output, kind, layer)
    shown_as.show().result({"axis": found.name, "file": str(output), "holds": said}, f"written to {output}: {said}")


@axis.command()
def personas() -> None:
    """Print drift's own personas and questions, to be edited and given to `drift axis build --personas FILE`.

    Example: drift axis personas > personas.toml
    """
    from drift_cli.measuring.personas import default_text

    typer.echo(default_text(), nl=False)


@axis.command()
@grouped
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[AXIS]", help="An axis by name or file (default: list them).", show_default=False)
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which layer's personas (default: the suggested one).")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The picture's file (default: images/AXIS-axis.png and .svg).")
    ] = None,
    *,
    shown_as: Output,
) -> None:
    """Show an axis: where it is from, every layer, how personas lie along it; draw that, and suggest a layer.

    Example: drift axis show mine --layer 15
    """
    from drift_cli.models.axes import find
    from drift_cli.settings.config import axes_folder

    shown = shown_as.show()
    if name is None:
        _list(shown, axes_folder())
        return
    found = find(name, axes_folder())
    if layer is not None:
        found.at(layer)
    pictures = _draw(found, layer, output)
    document = {**axis_facts(found, layer), "files": [str(path) for path in pictures]}
    shown.result(document, *axis_tables(found, layer), *(f"picture: {path}" for path in pictures))


def _list(shown: Display, folder: Path) -> None:
    """Every axis that a name finds, one to a line; a damaged file is listed as such and hides no other."""
    from drift_cli.models import DEMO
    from drift_cli.models.axes import names

    listed = [_listed(name, folder) for name in [DEMO, *names(folder)]]
    rows = [[str(facts["name"]), *("" if facts[key] is None else str(facts[key]) for key in _COLUMNS)] for facts in listed]
    notes = [f"`drift axis build` and `import` add to {folder}; `drift axis show NAME` shows one"]
    shown.result(listed, Table("Axes", ["name", "model", "layers", "width>", "suggested layer>", "date"], rows, notes))


_COLUMNS = ("model", "layers", "width", "suggested_layer", "date")


def _listed(name: str, folder: Path) -> dict[str, Any]:
    """What the list says of an axis. The date is its file's."""
    from datetime import datetime

    from drift_cli.axis import ranges
    from drift_cli.measuring.diagnostics import suggested_layer
    from drift_cli.models import DEMO
    from drift_cli.models.axes import find

    try:
        made = find(name, folder)
    except DriftError as error:
        return {"name": name, **dict.fromkeys(_COLUMNS), "layers": f"damaged: {error.what}"}
    path = folder / f"{name}.safetensors"
    date = "built in" if name == DEMO else f"{datetime.fromtimestamp(path.stat().st_mtime).astimezone():%Y-%m-%d}"
    suggested = made.layers[0] if len(made.layers) == 1 else suggested_layer(made)
    values = (made.model, ranges(made.layers).removeprefix("layers ").removeprefix("layer "), made.width, suggested, date)
    return {"name": name, **dict(zip(_COLUMNS, values, strict=True))}


def _draw(made: Axis, layer: int | None, output: Path | None) -> list[Path]:
    """Draw an axis that knows its personas; returns the files written."""
    from drift_cli.measuring.diagnostics import suggest, sweep
    from drift_cli.settings.config import home

    found = sweep(made)
    if not found:
        if output is not None:
            raise UsageError(f"axis {made.name} does not know its personas, so there is nothing to draw", mend="Leave --output out.")
        return []
    from drift_cli.results.figures.axis import draw
    from drift_cli.results.figures.canvas import save

    suggested = suggest(found)
    chosen = layer if layer is not None else suggested if suggested is not None else made.layers[0]
    figure = draw(made, found, chosen, suggested)
    stem = home() / "images" / f"{made.name}-axis"
    paths = [output] if output is not None else [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "svg")]
    for path in paths:
        save(figure, path)
    return paths


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(axis, name="axis")
