"""Bands of mean curves by name, as `--bands` takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from drift_cli.analysis.table import RunTable
    from drift_cli.results.figures.curves import Bands


def bands_of(table: RunTable, name: str, level: float) -> Bands:
    """The bands of mean curves: `simultaneous` or `pointwise`; `UsageError` for another name."""
    from drift_cli.results.figures.curves import pointwise, simultaneous

    if name not in ("simultaneous", "pointwise"):
        raise UsageError(f"there are no {name!r} bands", mend="Use simultaneous (all turns together) or pointwise (each turn by itself).")
    return simultaneous(table, level) if name == "simultaneous" else pointwise(level)
