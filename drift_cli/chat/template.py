"""The model's own chat template, rendered by transformers in its sandbox, with the date pinned and every placement tried before it is used."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from drift_cli.chat.dialogue import Dialogue, Message, common_prefix, given_texts, messages
from drift_cli.chat.limit import within_limit
from drift_cli.errors import DriftError, UsageError
from drift_cli.spec import ChatFormat, Condition, Placement, Segment, Transcript

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_DATE = "2026-01-01"
"""What a template that asks for today's date is told: a constant, so that a run renders the same prompts on any day and any machine."""

_DATE_CALL = re.compile(r"strftime_now\s*\(\s*(?:'([^']*)'|\"([^\"]*)\")\s*\)")
_PROBE = ("drift probe one", "drift probe two", "drift probe reply", "drift probe system")


_TEMPLATES_OWN = (ArithmeticError, TypeError, ValueError, LookupError, AttributeError, RecursionError, MemoryError)
"""What a template's own code may raise beside jinja2's errors: it divides, indexes and loops as Python does."""


def _failure(error: BaseException) -> Exception:
    """The same as an error of the template."""
    import jinja2

    return jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class TemplateChat:
    """The model's own chat template, rendered by transformers (sandboxed), with the date pinned."""

    tokenizer: PreTrainedTokenizerBase
    date: str = DEFAULT_DATE
    options: str = "{}"
    """Variables handed to the template, as JSON (`{"enable_thinking": false}`)."""

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise UsageError(
                "this model's tokenizer has no chat template", mend="Use --chat raw (plain System/User/Assistant text) for a base model."
            )

    @cached_property
    def template(self) -> str:
        """The template's text, with `strftime_now` replaced by a macro that answers from the pinned date."""
        text = str(self.tokenizer.get_chat_template())
        if "strftime_now" not in text:
            return text
        formats = {a or b for a, b in _DATE_CALL.findall(text)}
        day = datetime.datetime.fromisoformat(self.date)
        answers = "".join(f"{{%- if format == {layout!r} -%}}{day.strftime(layout)}{{%- endif -%}}" for layout in sorted(formats))
        return "{%- macro strftime_now(format) -%}" + answers + "{%- endmacro -%}" + text

    @property
    def format(self) -> ChatFormat:
        """Digest of the template's text; the date only where the template asks for it."""
        text = str(self.tokenizer.get_chat_template())
        asks = "strftime_now" in text
        return ChatFormat("template", hashlib.sha256(text.encode()).hexdigest(), self.date if asks else None, self.options)

    def render(self, conversation: list[Message], *, prompt: bool) -> str:
        """The conversation as the template writes it; with `prompt`, up to where the next reply begins."""
        return str(self._apply(conversation, tokenize=False, add_generation_prompt=prompt))

    def _apply(self, conversation: list[Message], **how: Any) -> Any:
        options = json.loads(self.options)
        try:
            return within_limit(lambda: self.tokenizer.apply_chat_template(conversation, chat_template=self.template, **how, **options))
        except _TEMPLATES_OWN as error:
            raise _failure(error) from error

    def _ids(self, conversation: list[Message]) -> list[int]:
        return [int(i) for i in self._apply(conversation, tokenize=True, add_generation_prompt=True, return_dict=False)]

    def prompt(self, users: Sequence[str], replies: Sequence[str], condition: Condition) -> list[int]:
        """Token ids of the template's rendering, generation prompt included."""
        import jinja2

        try:
            return self._ids(messages(users, replies, condition))
        except jinja2.TemplateError as error:
            raise DriftError(f"the chat template fails at turn {len(users)} of condition {condition.name}: {error}") from error

    def extend(self, dialogue: Dialogue, reply: Sequence[int]) -> tuple[list[int], list[int]]:
        """See `Chat.extend`; the module's docstring says when the sampled ids are kept."""
        canonical = self.prompt(dialogue.users[: dialogue.turn], dialogue.replies, dialogue.condition)
        before = len(dialogue.canonical)
        written = [int(i) for i in self.tokenizer.encode(dialogue.replies[-1], add_special_tokens=False)]
        tail = before + len(written)
        kept = canonical[:before] == dialogue.canonical and canonical[before:tail] == written
        if not kept:
            return list(canonical), canonical
        return [*dialogue.prompt, *reply, *canonical[tail:]], canonical

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """A template's replies end with a token, never with a string."""
        return None

    @property
    def segmented(self) -> bool:
        """Replies are all answer."""
        return False

    def segments(self, ids: Sequence[int]) -> tuple[Segment, ...]:
        """All of it is answer."""
        return ()

    def end_id(self) -> int | None:
        """The special token that follows a reply in the template's rendering, where there is one."""
        import jinja2

        pair = [{"role": "user", "content": _PROBE[0]}, {"role": "assistant", "content": _PROBE[2]}]
        try:
            open_ids, closed = self._ids(pair[:1]), self._apply(pair, tokenize=True, return_dict=False)
        except jinja2.TemplateError as error:
            raise DriftError(f"the chat template fails on a conversation that ends with a reply: {error}") from error
        specials = set(self.tokenizer.all_special_ids)
        after = [int(i) for i in closed[common_prefix(open_ids, closed) :]]
        return next((i for i in after if i in specials), None)

    def check(self, condition: Condition, transcript: Transcript) -> None:
        """Refuse a placement the template does not carry, and text that the tokenizer would read as control tokens."""
        self._check_date()
        self._check_placement(condition)
        for where, text in given_texts(condition, transcript):
            for token in self.tokenizer.all_special_tokens:
                if token in text:
                    raise UsageError(
                        f"{where} contains {token!r}, which this model reads as a control token", mend="Take it out of the text."
                    )

    def _check_date(self) -> None:
        """Every question for the date must name its format outright, or an answer could not be pinned beforehand."""
        text = str(self.tokenizer.get_chat_template())
        calls = len(re.findall(r"strftime_now\s*\(", text))
        if calls != len(_DATE_CALL.findall(text)):
            raise UsageError(
                "this model's chat template asks for today's date in a form that cannot be pinned, so a resumed run would not be the same",
                mend="Save the tokenizer with a template that does not ask, or use --chat raw.",
            )

    def _check_placement(self, condition: Condition) -> None:
        problem = self._placement_problem(condition.placement if condition.system is not None else None)
        if problem is None:
            return
        works = [p.value for p in Placement if self._placement_problem(p) is None]
        mend = (
            f"Placements that work with it: {', '.join(works)}."
            if works
            else "No placement works with it; use a condition without a prompt."
        )
        what = "a conversation without a system prompt" if condition.system is None else f"placement {condition.placement.value}"
        raise UsageError(f"condition {condition.name}: this model's chat template does not take {what} ({problem})", mend=mend)

    def _placement_problem(self, placement: Placement | None) -> str | None:
        """Render a two-turn conversation and look for every message in it; None when all are there."""
        import jinja2

        probe = Condition("probe", None if placement is None else _PROBE[3], placement or Placement.START)
        try:
            text = self.render(messages(_PROBE[:2], _PROBE[2:3], probe), prompt=True)
        except jinja2.TemplateError as error:
            return str(error)
        if any(part not in text for part in _PROBE[:3]):
            return "it drops earlier messages"
        expected = {None: 0, Placement.START: 1, Placement.EVERY_TURN: 2, Placement.USER_SUFFIX: 2}[placement]
        if text.count(_PROBE[3]) != expected:
            return f"it writes the prompt {text.count(_PROBE[3])} times where {expected} were given"
        return None

    def adds(self, condition: Condition) -> str | None:
        """What stands before the first user message and does not stand before a later one: a system prompt of the template's own."""
        probe = Condition("probe", None if condition.system is None else _PROBE[3], condition.placement)
        text = self.render(messages(_PROBE[:2], _PROBE[2:3], probe), prompt=True)
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, "\0")
        first, second = text.index(_PROBE[0]), text.index(_PROBE[1])
        head, between = text[:first], text[text.index(_PROBE[2]) + len(_PROBE[2]) : second]
        shared = 0
        while shared < min(len(head), len(between)) and head[-1 - shared] == between[-1 - shared]:
            shared += 1
        own = head[: len(head) - shared].replace(_PROBE[3], "").replace("\0", " ")
        # A role's name alone is framing, not a prompt: only a preamble with words beyond that counts.
        words = [word for word in own.split() if word.strip().lower() not in {"system", "user", "assistant", "model", "developer"}]
        return " ".join(own.split()) if words else None
