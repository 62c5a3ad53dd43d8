"""Parts of a reply: reasoning and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class SegmentKind(StrEnum):
    """What a part of a reply is."""

    REASONING = "reasoning"
    """What the model thinks before it answers (a `<think>` block, a harmony analysis channel)."""
    ANSWER = "answer"
    """What it says to the user."""


@dataclass(frozen=True)
class Segment:
    """A part of a reply: tokens `start` to before `stop` of the reply's ids. The markup around a part belongs to none."""

    kind: SegmentKind
    start: int
    stop: int


class Part(StrEnum):
    """What of a reply a residual mean is over: `--segment`."""

    ANSWER = "answer"
    """The tokens of the answer; all of them where the reply has no segments."""
    REASONING = "reasoning"
    """The tokens of the reasoning."""
    ALL = "all"
    """Every token but the end-of-turn token: reasoning, answer, and the markup around them."""

    @property
    def words(self) -> str:
        """For a sentence: `the answer`."""
        return {Part.ANSWER: "the answer", Part.REASONING: "the reasoning", Part.ALL: "reasoning and answer together"}[self]


def spans(segments: Sequence[Segment], part: Part) -> tuple[tuple[int, int], ...]:
    """First and past-the-last token of each segment of a part (`ALL`: of both), empty ones left out, in order."""
    return tuple((s.start, s.stop) for s in segments if part in (Part.ALL, s.kind.value) and s.stop > s.start)
