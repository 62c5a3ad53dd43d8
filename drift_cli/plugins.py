"""What other packages add to drift, by entry point: measures (`drift.measures`), exporters (`drift.exporters`) and modules that register architectures with
transformers (`drift.architectures`).

A package that cannot be loaded is named and left out; it stops no command that does not need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

MEASURES = "drift.measures"
EXPORTERS = "drift.exporters"
ARCHITECTURES = "drift.architectures"


@dataclass(frozen=True)
class Added:
    """What the installed packages add to one group."""

    found: Mapping[str, Any]
    """Entry point's name → the object that it names."""
    problems: Mapping[str, str]
    """Entry point's name → why it could not be loaded, in a sentence."""


@cache
def added(group: str) -> Added:
    """Load the entry points of a group, once in a process."""
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            found[point.name] = point.load()
        except Exception as error:  # noqa: BLE001 (whatever somebody else's package raises while it is imported)
            package = "an installed package" if point.dist is None else f"package {point.dist.name}"
            problems[point.name] = (
                f"{point.name} ({group}) of {package} cannot be loaded from {point.value}, and is left out: {type(error).__name__}: {error}"
            )
    return Added(found, problems)
