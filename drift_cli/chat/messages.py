"""A conversation as messages, and the texts that go into it. No template, no token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.spec import Condition, Placement, Transcript

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def messages(users: Sequence[str], replies: Sequence[str], condition: Condition) -> list[Message]:
    """The conversation as chat messages: every user turn, the replies so far, and the condition's prompt where its placement puts it."""
    made: list[Message] = []
    if condition.system is not None and condition.placement is Placement.START:
        made.append({"role": "system", "content": condition.system})
    for turn, user in enumerate(users):
        prefix = (
            f"{condition.system}\n\n" if condition.system is not None and condition.placement is Placement.FIRST_USER and turn == 0 else ""
        )
        suffix = f"\n\n{condition.system}" if condition.system is not None and condition.placement is Placement.USER_SUFFIX else ""
        made.append({"role": "user", "content": prefix + user + suffix})
        if condition.system is not None and condition.placement is Placement.EVERY_TURN:
            made.append({"role": "system", "content": condition.system})
        if turn < len(replies):
            made.append({"role": "assistant", "content": replies[turn]})
    return made


def given_texts(condition: Condition, transcript: Transcript) -> list[tuple[str, str]]:
    """Every text that comes from outside the model: where it stands, in words, and the text."""
    texts = [(f"user turn {n} of transcript {transcript.name}", text) for n, text in enumerate(transcript.users, 1)]
    return texts if condition.system is None else [*texts, (f"the prompt of condition {condition.name}", condition.system)]


def prompt_hash(ids: Sequence[int]) -> str:
    """SHA-256 (first 32 hex digits) of token ids as little-endian int32."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()[:32]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """A reply's text: its ids decoded, special tokens left out, no clean-up of spaces."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
