"""An axis as `drift axis` shows it: its header, its layers, and how personas lie along it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drift_cli.display import Table
from drift_cli.names import brief

if TYPE_CHECKING:
    from drift_cli.axis import Axis
    from drift_cli.measuring.diagnostics import Diagnostics


def axis_facts(made: Axis, layer: int | None = None) -> dict[str, Any]:
    """An axis as JSON: its header, its diagnostics (of `layer`, else the suggested layer, and of every layer), the layer it suggests."""
    from drift_cli.measuring.diagnostics import suggest, sweep

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
    from drift_cli.axis import ranges
    from drift_cli.measuring.axis_layer import said
    from drift_cli.measuring.diagnostics import suggest, sweep

    rows = [
        ["layers", f"{ranges(made.layers)} (hidden_states; 0 is the embeddings)"],
        ["width", str(made.width)],
        ["model", (made.model or "not recorded") + (f", revision {brief(made.revision)}" if made.revision else "")],
        ["used at", said(made)],
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
