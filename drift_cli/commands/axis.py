"""`drift axis import | show`: bring in an axis, look at one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drift_cli.commands.options import DisplayOption, JsonOption, make_display
from drift_cli.display import Mode, Table
from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from drift_cli.axes import Axis, Diagnostics

axis = typer.Typer(help="Axes: import somebody's tensors, look at one.", no_args_is_help=True)


@axis.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A torch file: persona → vector(s), or one axis tensor.")],
    name: Annotated[str | None, typer.Option(help="The axis's name (default: the file's).")] = None,
    layer: Annotated[
        int | None, typer.Option(help="The layer of single vectors, as the file numbers it (default: from the file's name).")
    ] = None,
    convention: Annotated[
        str | None, typer.Option(help="How the file numbers layers: hidden-states, or block-outputs (assistant-axis; 1 is added).")
    ] = None,
    assistant: Annotated[list[str] | None, typer.Option(help="A persona on the assistant's side; repeat for several.")] = None,
    model: Annotated[str | None, typer.Option(help="The model it was made on, so that no other is measured with it.")] = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Bring in an axis and save it under data/axes. Tensors only: nothing in the file is executed."""
    from drift_cli.axes import import_torch, save
    from drift_cli.experiment import axes_folder, plain_name

    if convention not in (None, "hidden-states", "block-outputs"):
        raise UsageError(f"convention {convention!r} is unknown", mend="Use hidden-states or block-outputs.")
    made = import_torch(
        file, name=name or plain_name(file.stem), layer=layer, convention=convention, assistants=tuple(assistant or ()), model=model
    )
    path = axes_folder() / f"{made.name}.safetensors"
    save(made, path)
    shown = make_display(display, as_json)
    shown.result({**_facts(made), "file": str(path)}, *_tables(made, made.layers[0]), f"written to {path}; use it with --axis {made.name}")


@axis.command()
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[AXIS]", help="An axis by name or file (default: list them).", show_default=False)
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which layer (default: the first).")] = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Show an axis: where it is from, its layers, how the personas it was made from lie along it."""
    from drift_cli.axes import find
    from drift_cli.experiment import axes_folder

    shown = make_display(display, as_json)
    if name is None:
        names = ["demo", *sorted(path.stem for path in axes_folder().glob("*.safetensors"))]
        shown.result(names, Table("Axes", ["name"], [[n] for n in names], [f"`drift axis import FILE` adds to {axes_folder()}"]))
        return
    found = find(name, axes_folder())
    chosen = found.layers[0] if layer is None else layer
    found.at(chosen)
    shown.result({**_facts(found), "diagnostics": _diagnostics(found, chosen)}, *_tables(found, chosen))


def _facts(made: Axis) -> dict[str, Any]:
    return {
        "name": made.name,
        "layers": list(made.layers),
        "width": made.width,
        "model": made.model,
        "source": made.source,
        "note": made.note,
        "digest": made.digest,
        "personas": list(made.personas),
        "assistants": list(made.assistants),
    }


def _diagnostics(made: Axis, layer: int) -> Diagnostics | None:
    from drift_cli.axes import diagnose

    return diagnose(made, layer)


def _tables(made: Axis, layer: int) -> list[Table]:
    rows = [
        ["layers", f"{', '.join(map(str, made.layers))} (hidden_states; 0 is the embeddings)"],
        ["width", str(made.width)],
        ["model", made.model or "not recorded"],
        ["source", made.source],
        ["digest", made.digest[:16]],
    ]
    if made.note:
        rows.append(["note", made.note])
    tables = [Table(f"Axis {made.name}", ["", ""], rows)]
    found = _diagnostics(made, layer)
    if found is not None:
        notes = [
            f"cosine with the first principal component {found.cosine_with_pc1:.4f}; "
            f"the axis explains {found.variance_explained * 100:.1f} % of the personas' variance, that component {found.pc1_variance * 100:.1f} %",
            "* on the assistant's side when the axis was made",
        ]
        order = [[("* " if name in made.assistants else "  ") + name, f"{value:+.4f}"] for name, value in found.ordering]
        tables.append(Table(f"Personas along the axis, layer {layer}", ["persona", "centred projection>"], order, notes))
    return tables


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(axis, name="axis")
