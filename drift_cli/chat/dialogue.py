"""Messages to token ids, and back to the conversation that the model sees next.

In: the user turns of a transcript, a condition, and the ids of each reply as it was sampled. Out: prompts as token ids.

The prompt is what the model's own chat template makes of the conversation. A reply's text, tokenized again, need not give the ids that were sampled; so
where the template leaves history alone (the new rendering begins with the old one, goes on with the reply's text and then closes it), the ids of the
reply are kept as sampled and only the template's own tail is appended. Where the template rewrites history (drops reasoning, trims text), its rendering
is taken as it is. Either way a prompt is a function of the conversation alone, so a resumed process computes the same one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from drift_cli.spec import ChatFormat, Condition, Part, Placement, Segment, Transcript, spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def messages(users: Sequence[str], replies: Sequence[str], condition: Condition) -> list[Message]:
    """The conversation as chat messages: every user turn, the replies so far, and the condition's prompt where its placement puts it."""
    made: list[Message] = []
    if condition.system is not None and condition.placement is Placement.START:
        made.append({"role": "system", "content": condition.system})
    for turn, user in enumerate(users):
        suffix = f"\n\n{condition.system}" if condition.system is not None and condition.placement is Placement.USER_SUFFIX else ""
        made.append({"role": "user", "content": user + suffix})
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


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two sequences of token ids."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:length]) != np.asarray(b[:length]))
    return int(differ[0]) if differ.size else length


class Chat(Protocol):
    """A chat format: how a model's conversations become token ids."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""

    @property
    def format(self) -> ChatFormat:
        """What of this format belongs to a run's identity."""

    def check(self, condition: Condition, transcript: Transcript) -> None:
        """Raise `UsageError` where the format cannot carry the condition or the transcript as it is meant."""

    def adds(self, condition: Condition) -> str | None:
        """Text that the format puts in front of the conversation of its own accord (a default system prompt), or None."""

    def prompt(self, users: Sequence[str], replies: Sequence[str], condition: Condition) -> list[int]:
        """Token ids of the conversation up to where the next reply begins."""

    def extend(self, dialogue: Dialogue, reply: Sequence[int]) -> tuple[list[int], list[int]]:
        """The next (prompt, canonical prompt) of a dialogue after `reply` (ids without its end-of-turn token)."""

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """How many of a reply's ids to keep when they already contain a stop string; None when the reply goes on."""

    @property
    def segmented(self) -> bool:
        """Whether replies may have reasoning apart from their answer: where not, `segments` is always ()."""

    def segments(self, ids: Sequence[int]) -> tuple[Segment, ...]:
        """The reasoning and the answer in a reply's ids (without its end-of-turn token), in order; () where the reply is all answer."""

    def end_id(self) -> int | None:
        """The token with which the format closes a reply, where it is a single special token."""


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """A reply's text: its ids decoded, special tokens left out, no clean-up of spaces."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass
class Dialogue:
    """One rollout's conversation in token ids. It grows by one reply at a time and holds no model state.

    `prompt` is what the model is given for turn `turn` (1 for the first). `canonical` is the same conversation tokenized from its text alone.
    """

    chat: Chat
    users: Sequence[str]
    condition: Condition
    end_ids: frozenset[int]
    turn: int = 1
    replies: list[str] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    canonical: list[int] = field(default_factory=list)
    past: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """Of every answered turn: its prompt, and its reply without the end-of-turn token."""

    def __post_init__(self) -> None:
        self.canonical = self.chat.prompt(self.users[:1], (), self.condition)
        self.prompt = list(self.canonical)

    @property
    def total(self) -> int:
        """The number of user turns."""
        return len(self.users)

    def content(self, ids: Sequence[int]) -> Sequence[int]:
        """A reply's ids without its end-of-turn token."""
        return ids[:-1] if ids and ids[-1] in self.end_ids else ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of a reply's answer."""
        return self._text(ids, Part.ANSWER) if self.segments(ids) else text_of(self.chat.tokenizer, self.content(ids))

    def reasoning(self, ids: Sequence[int]) -> str | None:
        """The text of a reply's reasoning; None where it has none."""
        return self._text(ids, Part.REASONING) or None

    def _text(self, ids: Sequence[int], part: Part) -> str:
        return "".join(text_of(self.chat.tokenizer, ids[start:stop]) for start, stop in spans(self.segments(ids), part))

    def segments(self, ids: Sequence[int]) -> tuple[Segment, ...]:
        """The reasoning and the answer in a reply's ids as sampled; () where the reply is all answer."""
        return self.chat.segments(self.content(ids))

    def snapshot(self) -> Dialogue:
        """This moment, to come back to with `restore`."""
        held = copy.copy(self)
        held.replies, held.past = list(self.replies), list(self.past)
        return held

    def restore(self, moment: Dialogue) -> None:
        """Be again what `snapshot` held."""
        self.__dict__.update(moment.snapshot().__dict__)

    def advance(self, ids: Sequence[int]) -> None:
        """Take the reply to the current turn, ids as sampled, and move on to the next user turn (after the last one `prompt` stays)."""
        content = self.content(ids)
        self.replies.append(text_of(self.chat.tokenizer, content))
        self.turn += 1
        self.past.append((tuple(self.prompt), tuple(content)))
        if self.turn <= self.total:
            self.prompt, self.canonical = self.chat.extend(self, content)
