"""What is said, before a run, of prompts that do not fit the model's context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drift_cli.display import Display

if TYPE_CHECKING:
    from drift_cli.running.experiment import Experiment


def warn_of_context(display: Display, experiment: Experiment) -> None:
    """Say which cells will, or may, outgrow the model's context. Raises `DriftError` where none can have a single turn."""
    from drift_cli.running.making import context_notes

    for text in context_notes(experiment):
        display.note(text, kind="warning" if text.startswith("WARNING") else "note")
