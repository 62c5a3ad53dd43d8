"""Plain `System:`/`User:`/`Assistant:` text for base models, with stop strings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drift_cli.chat.control import Controls
from drift_cli.chat.messages import given_texts, messages, text_of
from drift_cli.chat.parts import Parts
from drift_cli.errors import UsageError
from drift_cli.segments import Segment
from drift_cli.spec import ChatFormat, Condition, Placement, Transcript

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from drift_cli.chat.conversation import Conversation

RAW_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")


@dataclass(frozen=True)
class RawChat:
    """Plain `System:`/`User:`/`Assistant:` text for base models; a reply ends where the model begins another speaker's line."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def format(self) -> ChatFormat:
        """Digest of the stop strings."""
        return ChatFormat("raw", hashlib.sha256("\0".join(RAW_STOPS).encode()).hexdigest())

    def _turn(self, user: str, condition: Condition) -> str:
        parts = [f"{m['role'].capitalize()}: {m['content']}" for m in messages([user], (), condition)]
        return "\n\n".join([*parts, "Assistant:"])

    def _encode(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=False)]

    def prompt(self, users: Sequence[str], replies: Sequence[str | Parts], condition: Condition) -> list[int]:
        """The tokenizer's own beginning-of-text token, if it has one, and the conversation up to `Assistant:`."""
        start = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        text = self._turn(users[0], condition)
        later = _after_first(condition)
        said = [reply if isinstance(reply, str) else reply.answer for reply in replies]
        for reply, user in zip(said, users[1:], strict=False):
            text += f" {reply.strip()}\n\n{self._turn(user, later)}"
        return start + self._encode(text)

    def extend(self, said: Conversation, reply: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """The reply's ids as sampled, then the next turn's text: nothing is ever tokenized twice."""
        following = self._encode("\n\n" + self._turn(said.users[-1], _after_first(said.condition)))
        prompt = (*said.ids, *reply, *following)
        return prompt, prompt

    @property
    def has_stops(self) -> bool:
        """A reply ends where another speaker's line begins."""
        return True

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """The fewest ids that hold all visible text before the first stop string."""
        text = text_of(self.tokenizer, ids)
        found = [text.find(stop) for stop in RAW_STOPS if stop in text]
        if not found:
            return None
        keep = text[: min(found)].rstrip()
        for length in range(len(ids) + 1):
            if text_of(self.tokenizer, ids[:length]).startswith(keep):
                return length
        return len(ids)

    @property
    def segmented(self) -> bool:
        """Replies are all answer."""
        return False

    def parts(self, ids: Sequence[int], prompt: Sequence[int]) -> Parts:
        """All of it is answer."""
        text = text_of(self.tokenizer, ids)
        return Parts(text, whole=text)

    def segments(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> tuple[Segment, ...]:
        """All of it is answer."""
        return ()

    def end_ids(self, given: frozenset[int]) -> frozenset[int]:
        """Raw text has none beyond the model's own end of text."""
        return given

    def check(self, condition: Condition, transcript: Transcript) -> None:
        """Refuse text that would itself look like another speaker's line, and text that the tokenizer would read as control tokens."""
        self.refuse(given_texts(condition, transcript))

    def refuse(self, texts: Sequence[tuple[str, str]]) -> None:
        """See `Chat.refuse`."""
        for where, text in texts:
            for stop in RAW_STOPS:
                if stop in text:
                    raise UsageError(
                        f"{where} has a line that begins with {stop.strip()!r}, which the raw format takes for another speaker"
                    )
        Controls(self.tokenizer).refuse(texts)

    def adds(self, condition: Condition) -> str | None:
        """Raw text adds nothing."""
        return None


def _after_first(condition: Condition) -> Condition:
    """What a condition still adds to turns after the first: nothing where its prompt stands at the start."""
    return condition if condition.placement in (Placement.EVERY_TURN, Placement.USER_SUFFIX) else Condition(condition.name)
