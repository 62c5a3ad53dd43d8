"""A run in other formats: drift's own, and those that others added."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from drift_cli.errors import UsageError
from drift_cli.interchange import export_assistant_axis, export_csv, export_parquet, export_seed
from drift_cli.interchange.exporters import OWN, find, written_by
from drift_cli.spec import Part

if TYPE_CHECKING:
    from drift_cli.api.run import Run

_TABLES = ("csv", "parquet")


def export(
    run: Run, format: str, path: Path | None, *, axis: str | None = None, residuals: bool = False, part: Part = Part.ANSWER
) -> list[Path]:
    """See `Run.export`."""
    from drift_cli.settings.config import home

    made = None if format in OWN else find(format)
    if residuals and format != "parquet":
        raise UsageError("residual means are only in --format parquet", mend="Use --residuals with --format parquet.")
    if part is not Part.ANSWER and format not in _TABLES:
        raise UsageError(
            f"--format {format} has no place to say what was measured: it is always the answer", mend="Use --format csv or parquet."
        )
    stem = home() / "data" / "exports" / run.id
    if made is not None:
        return written_by(made, run, path or stem.with_name(f"{run.id}-{made.name}{made.suffix}"))
    if format == "seed-json":
        return export_seed(run.stored, axis, path or stem)
    if format == "assistant-axis":
        return export_assistant_axis(run.stored, path or stem.with_name(f"{run.id}-conversations"))
    axes, file = None if axis is None else [axis], path or stem.with_name(f"{run.id}.{format}")
    if format == "csv":
        return [export_csv(run.stored, file, axes=axes, part=part)]
    return [export_parquet(run.stored, file, axes=axes, residuals=residuals, part=part)]
