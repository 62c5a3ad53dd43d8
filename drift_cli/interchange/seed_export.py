"""A run as the seed experiment's JSON files, one to a cell: what `seed_json` reads, byte for byte as the seed wrote it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.analysis.entries import choose_axis
from drift_cli.errors import StoreError
from drift_cli.files import atomic_write, create_folder
from drift_cli.interchange.conversations import conversation
from drift_cli.interchange.rows import Row, rows
from drift_cli.spec import Cell
from drift_cli.store.paths import temperature_name
from drift_cli.transcripts.formats import clean_name

if TYPE_CHECKING:
    from drift_cli.store.manifest import CellPlan, Manifest
    from drift_cli.store.run import Run


def export_seed(run: Run, axis: str | None, folder: Path) -> list[Path]:
    """Write one file to each cell, named after its condition, and after transcript and temperature too where the condition alone does not tell.

    A rollout that ended early has fewer messages, and as many projections as replies. A reply without an answer has null for its projection.

    Args:
        run: the run; all of its rollouts must have ended.
        axis: whose projections to write; the run's only one for None.
        folder: created if need be; files in it are replaced.

    Raises:
        StoreError: a rollout has not ended, or the axis is missing or ambiguous.
    """
    entry = choose_axis(run.manifest, axis, run.paths.run_id)
    _check_ended(run)
    found: dict[Cell, list[Row]] = {plan.cell: [] for plan in run.manifest.cells}
    for row in rows(run, [entry]):
        if row.reply is not None:
            found[row.rollout.cell].append(row)
    names = _names(run.manifest)
    create_folder(folder)
    for plan in run.manifest.cells:
        atomic_write(folder / names[plan.cell], json.dumps(_cell(run.manifest, plan, found[plan.cell]), indent=2).encode())
    return [folder / name for name in names.values()]


def _check_ended(run: Run) -> None:
    """Imported rollouts end where their file did; ours end when their last turn is committed, or there is no prompt for the next one."""
    for state in run.states():
        if state.end is None and run.manifest.imported is None:
            raise StoreError(
                f"{state.rollout} has {state.done} of {state.total} turns, and the seed's format has no place for what is unfinished",
                mend=f"drift resume {run.paths.run_id}, or export it as csv or parquet.",
            )


def _cell(manifest: Manifest, plan: CellPlan, found: Sequence[Row]) -> dict[str, Any]:
    """One file's object, keys in the seed's order."""
    condition = manifest.conditions[plan.cell.condition]
    samples = [[row for row in found if row.rollout.sample == sample] for sample in range(plan.samples)]
    return {
        "model": manifest.spec.model,
        "transcript_source": manifest.imported.transcript_source if manifest.imported else plan.cell.transcript,
        "condition": _label(manifest, plan.cell),
        "n_samples": plan.samples,
        "temperature": plan.cell.temperature,
        "seed": manifest.spec.seed,
        "system_prompt": condition.system,
        "projections": [[row.projections[0] for row in sample] for sample in samples],
        "conversations": [conversation(sample, condition) for sample in samples],
    }


def _label(manifest: Manifest, cell: Cell) -> str:
    return manifest.imported.labels.get(cell.condition, cell.condition) if manifest.imported else cell.condition


def _names(manifest: Manifest) -> dict[Cell, str]:
    """A file name to each cell: its label, with transcript and temperature in front and behind where several cells share it."""
    labels = {plan.cell: clean_name(_label(manifest, plan.cell)) for plan in manifest.cells}
    shared = Counter(label.lower() for label in labels.values())
    return {
        cell: f"{label}.json"
        if shared[label.lower()] == 1
        else f"{cell.transcript}.{cell.condition}.{temperature_name(cell.temperature)}.json"
        for cell, label in labels.items()
    }
