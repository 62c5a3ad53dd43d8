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
    from drift_cli.analysis.measure import Measure, Reply, ReplyMeasure, RolloutMeasure, reply_measure, rollout_measure
    from drift_cli.api import Done, Opened, Residuals, Run, Study, Verdict, compare, generate, load_axis, open
    from drift_cli.axis import Axis
    from drift_cli.chat import Ask, Conversation, Exchange
    from drift_cli.errors import DriftError, StoreError, UsageError
    from drift_cli.interchange.exporters import Exporter, exporter
    from drift_cli.running.events import Began, Notice, RolloutEnded, TurnCommitted
    from drift_cli.spec import Condition, Placement, Transcript

__all__ = [
    "Ask",
    "Axis",
    "Began",
    "Condition",
    "Conversation",
    "Done",
    "DriftError",
    "Exchange",
    "Exporter",
    "Measure",
    "Notice",
    "Opened",
    "Placement",
    "Reply",
    "ReplyMeasure",
    "Residuals",
    "RolloutEnded",
    "RolloutMeasure",
    "Run",
    "StoreError",
    "Study",
    "Transcript",
    "TurnCommitted",
    "UsageError",
    "Verdict",
    "__version__",
    "compare",
    "exporter",
    "generate",
    "load_axis",
    "open",
    "reply_measure",
    "rollout_measure",
]

_NAMES = {
    "drift_cli.analysis.measure": "Measure Reply ReplyMeasure RolloutMeasure reply_measure rollout_measure",
    "drift_cli.api": "Done Opened Residuals Run Study Verdict compare generate load_axis open",
    "drift_cli.axis": "Axis",
    "drift_cli.chat": "Ask Conversation Exchange",
    "drift_cli.errors": "DriftError StoreError UsageError",
    "drift_cli.interchange.exporters": "Exporter exporter",
    "drift_cli.running.events": "Began Notice RolloutEnded TurnCommitted",
    "drift_cli.spec": "Condition Placement Transcript",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
"""The module that each public name is in."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
