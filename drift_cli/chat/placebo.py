"""A placebo for a prompt: words about nothing, as many tokens, in the same place.

What it does is what any words of that length in that place do. The words come from one neutral passage and are shuffled, so that they say nothing at all; the
same prompt and tokenizer give the same words always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.errors import UsageError
from drift_cli.spec import Condition, digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDS = (
    "the harbour office keeps summer hours from May to September and the library opens at nine and closes at six a clock in the square is five minutes fast "
    "the bridge is painted every seven years and the bus to the station runs every twenty minutes tickets are valid for ninety minutes bicycles are parked "
    "behind the hall the museum shows a row of shells prices in the market include a bag dates are written with the day first"
).split()
_TRIES = 400
"""Endings that are tried before another shuffle is."""


def filled(conditions: Iterable[Condition], known: Mapping[str, Condition], tokenizer: PreTrainedTokenizerBase) -> tuple[Condition, ...]:
    """The conditions, each placebo with a text of its own, made from one of the `known`. Raises `UsageError` where it names none that has a prompt."""
    return tuple(_filled(one, known, tokenizer) if one.placebo_of is not None and one.system is None else one for one in conditions)


def _filled(one: Condition, known: Mapping[str, Condition], tokenizer: PreTrainedTokenizerBase) -> Condition:
    of = known.get(one.placebo_of or "")
    if of is None or of.system is None:
        raise UsageError(
            f"condition {one.name} is a placebo of {one.placebo_of!r}, which has no system prompt here",
            mend="Name a condition that has one: placebo_of = …",
        )
    return replace(one, system=scrambled(of.system, tokenizer), placement=of.placement)


def scrambled(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Words in no order that are as many tokens as `prompt`; as near to that as this tokenizer allows."""
    target = _count(prompt, tokenizer)
    rng = np.random.default_rng(int(digest_of(prompt)[:12], 16))
    best = ""
    for _ in range(5):
        text = _shuffled(rng, target, tokenizer)
        if abs(_count(text, tokenizer) - target) < abs(_count(best, tokenizer) - target):
            best = text
        if _count(best, tokenizer) == target:
            break
    return best


def _shuffled(rng: np.random.Generator, target: int, tokenizer: PreTrainedTokenizerBase) -> str:
    words = [str(word) for _ in range(target // len(_WORDS) + 1) for word in rng.permutation(_WORDS)]
    low, high = 1, len(words)
    while low < high:  # the most words that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _count(_text(words[:middle]), tokenizer) <= target else (low, middle - 1)
    kept = words[:low]
    for last in rng.permutation(_WORDS)[:_TRIES]:
        if _count(text := _text([*kept[:-1], str(last)]), tokenizer) == target:
            return text
    return _text(kept)


def _text(words: list[str]) -> str:
    return f"{words[0][0].upper()}{words[0][1:]}{''.join(f' {word}' for word in words[1:])}."


def _count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False)) if text else 0
