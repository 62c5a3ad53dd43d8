"""The verdict as the report shows it: the sentences of the run's one answer, and what limits them."""

from __future__ import annotations

from dataclasses import dataclass

from drift_cli.analysis.verdict import Answer
from drift_cli.results.tables.answer import sentences
from drift_cli.results.tables.cautions import cautions


@dataclass(frozen=True)
class Sentence:
    """One sentence of the verdict; `caution` for what limits it."""

    text: str
    caution: bool = False


def verdict(answer: Answer, notes: tuple[str, ...] = ()) -> list[Sentence]:
    """The sentences of an answer; `notes` are cautions of the model and the axis."""
    limits = [*notes, *cautions(answer), answer.scope]
    return [*(Sentence(text) for text in sentences(answer)), *(Sentence(text, caution=True) for text in limits)]
