"""drift measures how far a chat model drifts from its assistant persona over a conversation, and what prevents it.

    import drift_cli as drift

    run = drift.open("demo")
    print(run.turns().head())
    print(run.compare("simple", "baseline").verdict)

The names below are the library; docs/python.md shows them at work. Each is imported when it is first used, so that importing the package takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from drift_cli.api import Residuals, Run, Study, Verdict, compare, load_axis, open
    from drift_cli.axis import Axis
    from drift_cli.errors import DriftError, StoreError, UsageError
    from drift_cli.spec import Condition, Placement, Transcript

__all__ = [
    "Axis",
    "Condition",
    "DriftError",
    "Placement",
    "Residuals",
    "Run",
    "StoreError",
    "Study",
    "Transcript",
    "UsageError",
    "Verdict",
    "__version__",
    "compare",
    "load_axis",
    "open",
]

_HOME = {
    **dict.fromkeys(("Residuals", "Run", "Study", "Verdict", "compare", "load_axis", "open"), "drift_cli.api"),
    "Axis": "drift_cli.axis",
    **dict.fromkeys(("DriftError", "StoreError", "UsageError"), "drift_cli.errors"),
    **dict.fromkeys(("Condition", "Placement", "Transcript"), "drift_cli.spec"),
}
"""The module that each public name is in."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
