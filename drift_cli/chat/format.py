"""What a chat format does: a conversation of texts to token ids, and a reply's token ids to its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from drift_cli.chat.parts import Parts
from drift_cli.errors import DriftError
from drift_cli.segments import Segment
from drift_cli.spec import ChatFormat, Condition, Transcript

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from drift_cli.chat.conversation import Conversation


class TemplateProblem(DriftError):
    """A conversation that a chat format fails on, or does not render as it is."""


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

    def refuse(self, texts: Sequence[tuple[str, str]]) -> None:
        """Raise `UsageError` where a text, behind the words for where it stands, holds what the format or the model would take for something else."""

    def extend(self, said: Conversation, reply: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """The next (prompt, canonical prompt) of a conversation whose newest reply is `reply` (ids without its end-of-turn token): `said` has that reply and
        the next user turn already, and its `ids` and `canonical` are still those of the prompt that was answered. Raises `TemplateProblem`.
        """

    @property
    def has_stops(self) -> bool:
        """Whether a reply may end where a stop string begins: where not, `stop_length` is always None."""

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
