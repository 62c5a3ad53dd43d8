"""Messages to token ids, and back to the conversation that the model sees next.

In: the user turns of a transcript, a condition, and the ids of each reply as it was sampled. Out: prompts as token ids.

The prompt is what the model's own chat template makes of the conversation. A reply's text, tokenized again, need not give the ids that were sampled; so
where the template leaves history alone (the new rendering begins with the old one, goes on with the reply's text and then closes it), the ids of the
reply are kept as sampled and only the template's own tail is appended. Where the template rewrites history (drops reasoning, trims text), its rendering
is taken as it is. Either way a prompt is a function of the conversation alone, so a resumed process computes the same one.

A reply that has reasoning is kept in its parts (see `parts`), and its reasoning stands in the conversation where the template's makers meant it to stand. A
prompt that the template fails on, or in which a text is not in its place, is no prompt: the dialogue ends there with a `problem`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from drift_cli.chat.parts import Parts
from drift_cli.errors import DriftError
from drift_cli.spec import ChatFormat, Condition, Placement, Segment, Transcript

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


class TemplateProblem(DriftError):
    """A conversation that a chat format fails on, or does not render as it is."""


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

    def prompt(self, users: Sequence[str], replies: Sequence[str | Parts], condition: Condition) -> list[int]:
        """Token ids of the conversation up to where the next reply begins; a reply given as text is all answer. Raises `TemplateProblem`."""

    def extend(self, dialogue: Dialogue, reply: Sequence[int]) -> tuple[list[int], list[int]]:
        """The next (prompt, canonical prompt) of a dialogue after `reply` (ids without its end-of-turn token). Raises `TemplateProblem`."""

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """How many of a reply's ids to keep when they already contain a stop string; None when the reply goes on."""

    @property
    def segmented(self) -> bool:
        """Whether replies may have reasoning apart from their answer: where not, `segments` is always ()."""

    def parts(self, ids: Sequence[int], prompt: Sequence[int]) -> Parts:
        """The parts of a reply (ids without its end-of-turn token) to a prompt, which may have begun the reasoning."""

    def segments(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> tuple[Segment, ...]:
        """The reasoning and the answer in a reply's ids (without its end-of-turn token), in order; () where the reply is all answer. Markup belongs to no
        segment. Of a reply that has markup and no token in any part, one empty segment of the answer.
        """

    def end_ids(self, given: frozenset[int]) -> frozenset[int]:
        """The tokens at which a reply ends, where `given` is the model's own list: with the token that closes a reply in this format, without those that
        stand between its parts.
        """


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
    """The answer of every answered turn."""
    said: list[Parts] = field(default_factory=list)
    """The parts of every answered turn's reply."""
    canonical: list[int] = field(default_factory=list)
    past: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """Of every answered turn: its prompt, and its reply without the end-of-turn token."""
    problem: str | None = None
    """Why there is no prompt for turn `turn`; the dialogue ends here. A property of the conversation: another process finds the same."""
    _prompt: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.canonical = self.chat.prompt(self.users[:1], (), self.condition)
        self._prompt = list(self.canonical)

    @property
    def prompt(self) -> list[int]:
        """What the model is given next. Raises `TemplateProblem` where there is a problem: nobody who overlooks it gets a number."""
        if self.problem is not None:
            raise TemplateProblem(self.problem)
        return self._prompt

    @property
    def total(self) -> int:
        """The number of user turns."""
        return len(self.users)

    def content(self, ids: Sequence[int]) -> Sequence[int]:
        """A reply's ids without its end-of-turn token."""
        return ids[:-1] if ids and ids[-1] in self.end_ids else ids

    def parts(self, ids: Sequence[int]) -> Parts:
        """The parts of a reply to the current prompt, ids as sampled."""
        return self.chat.parts(self.content(ids), self.prompt)

    def text(self, ids: Sequence[int]) -> str:
        """The answer in a reply to the current prompt, ids as sampled."""
        return self.parts(ids).answer

    def reasoning(self, ids: Sequence[int]) -> str | None:
        """The reasoning in a reply to the current prompt, ids as sampled; None where there is none."""
        return self.parts(ids).reasoning or None

    def segments(self, ids: Sequence[int]) -> tuple[Segment, ...]:
        """Where reasoning and answer are in a reply to the current prompt, ids as sampled; () where it is all answer."""
        return self.parts(ids).segments

    def snapshot(self) -> Dialogue:
        """This moment, to come back to with `restore`."""
        held = copy.copy(self)
        held.replies, held.said, held.past = list(self.replies), list(self.said), list(self.past)
        return held

    def restore(self, moment: Dialogue) -> None:
        """Be again what `snapshot` held."""
        self.__dict__.update(moment.snapshot().__dict__)

    def advance(self, ids: Sequence[int], *, given: bool = False) -> None:
        """Take the reply to the current turn, ids as sampled, and move on to the next user turn (after the last one `prompt` stays).

        Where there is no prompt for the next turn, `problem` says why. A reply that is `given`, not made by the model, is all answer, whatever the prompt
        began.
        """
        content = self.content(ids)
        parts = Parts(text := text_of(self.chat.tokenizer, content), whole=text) if given else self.parts(ids)
        self.past.append((tuple(self.prompt), tuple(content)))
        self.replies.append(parts.answer)
        self.said.append(parts)
        self.turn += 1
        if self.turn <= self.total:
            try:
                self._prompt, self.canonical = self.chat.extend(self, content)
            except TemplateProblem as error:
                self.problem = error.what
