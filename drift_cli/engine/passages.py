"""A finished conversation cut into passages: stretches of token ids in which replies stand as they were given, so that one forward pass measures them all.

A chat template that leaves history alone gives one passage for the whole conversation; where it rewrites history (trims, drops reasoning), a new one begins.
No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drift_cli.engine.contract import common_prefix


@dataclass(frozen=True)
class Reply:
    """A reply in its conversation."""

    turn: int
    """1 for the first."""
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    """Without the end-of-turn token."""
    parts: tuple[tuple[int, int], ...]
    """First and past-the-last token of each part of `ids` that is averaged; at least one token in all."""


@dataclass(frozen=True)
class Passage:
    """A stretch of a conversation in which several replies stand as they were given."""

    ids: tuple[int, ...]
    kept: int
    """How many of its first tokens are those of the passage before it: they need not be encoded again where the cache can be taken back."""
    replies: tuple[Reply, ...]


def passages(replies: Sequence[Reply], *, apart: bool = False) -> list[Passage]:
    """The fewest passages that hold these replies, in order; with `apart`, one for each reply, sharing nothing."""
    made: list[Passage] = []
    group: list[Reply] = []
    for place, reply in enumerate(replies):
        group.append(reply)
        following = replies[place + 1] if place + 1 < len(replies) else None
        whole = (*reply.prompt, *reply.ids)
        if not apart and following is not None and following.prompt[: len(whole)] == whole:
            continue
        kept = 0 if apart or not made else min(common_prefix(made[-1].ids, whole), len(group[0].prompt))
        made.append(Passage(whole, kept, tuple(group)))
        group = []
    return made
