"""`drift axis build | import | export | show | personas`: make an axis, bring one in, take one out, look at one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drift_cli.commands import axis_build
from drift_cli.commands.options import DisplayOption, JsonOption, make_display
from drift_cli.display import Mode, Table
from drift_cli.errors import UsageError
from drift_cli.spec import brief

if TYPE_CHECKING:
    from drift_cli.axes import Axis, Diagnostics

axis = typer.Typer(help="Axes: build one, import or export tensors, look at one.", no_args_is_help=True)
axis.command("build")(axis_build.build)
KINDS = ("axis", "personas")


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
    shown.result({**axis_facts(made), "file": str(path)}, *axis_tables(made), f"written to {path}; use it with --axis {made.name}")


@axis.command("export")
def export(
    name: Annotated[str, typer.Argument(metavar="AXIS", help="An axis by name or file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The torch file to write.")],
    kind: Annotated[
        str, typer.Option(help="axis: one tensor of block outputs, as assistant-axis has it; personas: a dict of persona → means.")
    ] = "axis",
    layer: Annotated[int | None, typer.Option(help="With personas: this layer only (default: all).")] = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Write an axis as a torch file that other tools read."""
    from drift_cli.axes import find
    from drift_cli.axes.torch_files import export_torch
    from drift_cli.experiment import axes_folder

    if kind not in KINDS:
        raise UsageError(f"kind {kind!r} is unknown", mend=f"Use {' or '.join(KINDS)}.")
    if layer is not None and kind == "axis":
        raise UsageError("--layer goes with --kind personas", mend="An axis file has the output of every block: leave --layer out.")
    found = find(name, axes_folder())
    said = export_torch(found, output, kind, layer)
    make_display(display, as_json).result({"axis": found.name, "file": str(output), "holds": said}, f"written to {output}: {said}")


@axis.command()
def personas() -> None:
    """Print drift's own personas and questions, to be edited and given to `drift axis build --personas FILE`."""
    from drift_cli.axes.personas import default_text

    typer.echo(default_text(), nl=False)


@axis.command()
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[AXIS]", help="An axis by name or file (default: list them).", show_default=False)
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which layer's personas (default: the suggested one).")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The picture's file (default: images/AXIS-axis.png and .svg).")
    ] = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Show an axis: where it is from, every layer, how personas lie along it; draw that, and suggest a layer."""
    from drift_cli.axes import find
    from drift_cli.experiment import axes_folder

    shown = make_display(display, as_json)
    if name is None:
        names = ["demo", *sorted(path.stem for path in axes_folder().glob("*.safetensors"))]
        shown.result(names, Table("Axes", ["name"], [[n] for n in names], [f"`drift axis build` and `import` add to {axes_folder()}"]))
        return
    found = find(name, axes_folder())
    if layer is not None:
        found.at(layer)
    pictures = _draw(found, layer, output)
    document = {**axis_facts(found, layer), "files": [str(path) for path in pictures]}
    shown.result(document, *axis_tables(found, layer), *(f"picture: {path}" for path in pictures))


def axis_facts(made: Axis, layer: int | None = None) -> dict[str, Any]:
    """An axis as JSON: its header, its diagnostics (of `layer`, else the suggested layer, and of every layer), the layer it suggests."""
    from drift_cli.axes.diagnostics import suggest, sweep

    found = sweep(made)
    suggested = suggest(found)
    chosen = layer if layer is not None else suggested
    return {
        "name": made.name,
        "layers": list(made.layers),
        "width": made.width,
        "model": made.model,
        "revision": made.revision,
        "source": made.source,
        "note": made.note,
        "digest": made.digest,
        "personas": list(made.personas),
        "assistants": list(made.assistants),
        "personas_digest": made.personas_digest,
        "suggested_layer": suggested,
        "diagnostics": next((d for d in found if d.layer == chosen), None),
        "sweep": found,
    }


def axis_tables(made: Axis, layer: int | None = None) -> list[Table]:
    """An axis for reading: its header, every layer, and the order of personas at `layer`, else at the suggested one."""
    from drift_cli.axes.axis import ranges
    from drift_cli.axes.diagnostics import suggest, sweep

    rows = [
        ["layers", f"{ranges(made.layers)} (hidden_states; 0 is the embeddings)"],
        ["width", str(made.width)],
        ["model", (made.model or "not recorded") + (f", revision {brief(made.revision)}" if made.revision else "")],
        ["source", made.source],
        ["digest", made.digest[:16]],
    ]
    if made.note:
        rows.append(["note", made.note])
    tables = [Table(f"Axis {made.name}", ["", ""], rows)]
    found = sweep(made)
    if found:
        suggested = suggest(found)
        chosen = layer if layer is not None else suggested if suggested is not None else made.layers[0]
        at = [d for d in found if d.layer == chosen]
        tables += [_sweep_table(found, suggested), *(_order_table(made, d) for d in at)]
    return tables


def _sweep_table(found: Sequence[Diagnostics], suggested: int | None) -> Table:
    rows = []
    for d in found:
        out = d.left_out
        rows.append(
            [
                str(d.layer) + (" ←" if d.layer == suggested and len(found) > 1 else ""),
                f"{d.cosine_with_pc1:.4f}",
                f"{d.variance_explained:.3f}",
                f"{d.pc1_variance:.3f}",
                "—" if d.d_prime is None else f"{d.d_prime:.2f}",
                "—" if out is None else f"{out.d_prime:.2f}",
                "—" if out is None else f"{out.cosine_min:.4f} ({out.least})",
            ]
        )
    heads = ["layer", "cosine with PC1>", "variance along it>", "along PC1>", "d′>", "d′ left out>", "least cosine (without)>"]
    notes = ["over persona means; left out: each persona on the axis made without it"]
    if suggested is not None and len(found) > 1:
        notes.append(f"← suggested: --layer {suggested}, where a persona that is left out lies on its own side most clearly")
    return Table("Layers", heads, rows, notes)


def _order_table(made: Axis, found: Diagnostics) -> Table:
    order = [[("* " if name in made.assistants else "  ") + name, f"{value:+.4f}"] for name, value in found.ordering]
    notes = ["* on the assistant's side when the axis was made"]
    return Table(f"Personas along the axis, layer {found.layer}", ["persona", "centred projection>"], order, notes)


def _draw(made: Axis, layer: int | None, output: Path | None) -> list[Path]:
    """Draw an axis that knows its personas; returns the files written."""
    from drift_cli.axes.diagnostics import suggest, sweep
    from drift_cli.config import home

    found = sweep(made)
    if not found:
        if output is not None:
            raise UsageError(f"axis {made.name} does not know its personas, so there is nothing to draw", mend="Leave --output out.")
        return []
    from drift_cli.figures.axis import draw
    from drift_cli.figures.canvas import save

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
