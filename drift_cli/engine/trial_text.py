"""The conversations of a trial: their ids, where they are cut, how long they must be to reach all that depends on length, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_cli.engine.layout import Layout
from drift_cli.models import LoadedModel

REPLY = 6
"""Tokens of each reply in the trial."""
_SHORTEST, _LONGEST = 160, {"cuda": 33_000, "cpu": 8_500}
"""Tokens of the longest conversation: at least, and at most."""
_BEYOND = 72
"""Tokens by which it is longer than a window or a threshold."""
_THRESHOLDS = ("window", "chunk_size", "floor_scale", "original_max_position_embeddings")
"""Parts of names under which configurations keep lengths at which attention or positions may change."""
_FIXED_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embeddings that are functions of a token's position alone: the length for which they were once trained is no threshold."""


@dataclass(frozen=True)
class Conversation:
    """Tokens, and where they are cut: a prompt, a reply, the next user turn, another reply."""

    ids: tuple[int, ...]
    prompt: int
    following: int
    """Length of the second prompt."""

    @property
    def replies(self) -> tuple[range, range]:
        """Positions of the tokens of both replies."""
        return range(self.prompt, self.prompt + REPLY), range(self.following, self.following + REPLY)

    @property
    def positions(self) -> list[int]:
        """Positions whose logits are compared: the last of each prompt, and every token of a reply."""
        return [place for reply in self.replies for place in (reply.start - 1, *reply)]


@dataclass(frozen=True)
class Measured:
    """What a computation gave for one conversation."""

    logits: NDArray[np.float32]
    """(positions, vocabulary)."""
    means: tuple[NDArray[np.float32], ...]
    """Of each reply measured, (layers + 1, width)."""


def length(model: LoadedModel, layout: Layout, longest: int | None) -> int:
    """Tokens of the trial's longest conversation: beyond the smallest window, and beyond every length at which the network does something else."""
    # A step reserves a few tokens ahead.
    context = min(longest or model.card.context, model.card.context) - 8
    thresholds = [layout.window, *_thresholds(model.card.config.get_text_config().to_dict())]
    most = _LONGEST["cuda" if model.device.type == "cuda" else "cpu"]
    wanted = max(_SHORTEST, *(found + _BEYOND for found in thresholds if found + _BEYOND <= most))
    return max(min(wanted, context), 2 * REPLY + 4)


def _thresholds(settings: Mapping[str, Any]) -> list[int]:
    """Lengths in a configuration at which attention or positions may change."""
    found = []
    passed = {"sliding_window"} if settings.get("use_sliding_window") is False else set()
    if settings.get("rope_type", settings.get("type")) in _FIXED_ROPE:
        passed.add("original_max_position_embeddings")
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += _thresholds(value)
        elif isinstance(value, int) and not isinstance(value, bool) and key not in passed and any(part in key for part in _THRESHOLDS):
            found.append(value)
    return found


def conversations(text: Sequence[int], tokens: int, rows: int) -> list[Conversation]:
    """Up to three conversations of unequal lengths, the longest of `tokens` tokens, made of `text` over and over."""
    made = []
    for place, size in enumerate((tokens, max(tokens // 3, 2 * REPLY + 4), 2 * REPLY + 4)[:rows]):
        start = place * 29
        ids = tuple(text[(start + at) % len(text)] for at in range(size))
        following = size - REPLY
        made.append(Conversation(ids, max(1, following - REPLY - max(2, min(40, size // 8))), following))
    return made


def random_text(model: LoadedModel, tokens: int = 512) -> list[int]:
    """Ids drawn from a fixed seed, none of them special: for a model of which no text is at hand."""
    vocabulary = int(model.card.config.get_text_config().vocab_size)
    known = min(vocabulary, len(model.card.tokenizer))
    special = set(model.card.tokenizer.get_added_vocab().values()) | set(model.card.end_ids)
    ordinary = [token for token in range(known) if token not in special] or list(range(vocabulary))
    return [int(ordinary[place]) for place in np.random.default_rng(0).integers(0, len(ordinary), tokens)]
