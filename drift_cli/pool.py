"""Which tokens of a reply's part stand for it: all of them (their mean, the default), its last one, or its first ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drift_cli.spec import Part, Segment, spans

Ranges = tuple[tuple[int, int], ...]
"""First and past-the-last tokens, in order."""
_FIRST = re.compile(r"first:([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class Pool:
    """A residual mean is over these tokens of a part: all (`MEAN`), the `last` one, or the first `first`."""

    first: int | None = None
    last: bool = False

    @classmethod
    def of(cls, text: str) -> Pool:
        """`mean`, `last` or `first:8`. Raises `ValueError` for anything else."""
        if text in ("mean", "last"):
            return cls(last=text == "last")
        if (found := _FIRST.fullmatch(text)) is None:
            raise ValueError("wants mean, last, or first:N with a number of tokens")
        return cls(int(found[1]))

    def __str__(self) -> str:
        return "last" if self.last else "mean" if self.first is None else f"first:{self.first}"

    @property
    def words(self) -> str:
        """For a sentence: what stands for a part."""
        return "its last token" if self.last else "all its tokens" if self.first is None else f"its first {self.first} tokens"

    def within(self, ranges: Sequence[tuple[int, int]]) -> Ranges:
        """Of a part's tokens those that count; none where it has none."""
        filled = [(start, stop) for start, stop in ranges if stop > start]
        if self.last:
            return tuple((stop - 1, stop) for _, stop in filled[-1:])
        if self.first is None:
            return tuple(filled)
        kept, left = [], self.first
        for start, stop in filled:
            if left > 0:
                kept.append((start, min(stop, start + left)))
                left -= stop - start
        return tuple(kept)


MEAN = Pool()


def part_ranges(length: int, segments: Sequence[Segment], pool: Pool = MEAN) -> Mapping[Part, Ranges]:
    """The tokens that stand for each part of a reply, of the parts that have tokens.

    Args:
        length: tokens of the reply without its end-of-turn token.
        segments: of the reply; () where it is all answer, and then there is that one part.
        pool: which tokens of a part stand for it.
    """
    whole = ((0, length),)
    parts = {Part.ALL: whole, Part.ANSWER: spans(segments, Part.ANSWER), Part.REASONING: spans(segments, Part.REASONING)}
    found = {part: pool.within(ranges) for part, ranges in (parts if segments else {Part.ANSWER: whole}).items()}
    return {part: ranges for part, ranges in found.items() if ranges}
