"""The model's own chat template, rendered by transformers in its sandbox, with the date pinned, and every rendering searched for what was put into it.

Before a run the whole script is rendered with replies that stand in for the model's, for every condition and at every turn; in the run every prompt is looked
at before the model sees it. `places` says what is looked for, `markup` how replies with reasoning are put into the messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from drift_cli.chat.control import Controls
from drift_cli.chat.dates import asks_for_date, check_repeatable
from drift_cli.chat.format import TemplateProblem
from drift_cli.chat.markup import Reasoning, answer_tags, find_reasoning
from drift_cli.chat.messages import Message, given_texts, messages, text_of
from drift_cli.chat.parts import Parts, parts_of
from drift_cli.chat.places import Passage, fits, lost, marker, misplaced, own_text, passages
from drift_cli.chat.rendering import Rendering
from drift_cli.chat.scripts import check_script, no_generation_prompt, reply_ends
from drift_cli.segments import Segment
from drift_cli.spec import ChatFormat, Condition, Placement, Transcript

if TYPE_CHECKING:
    from drift_cli.chat.conversation import Conversation

_PROBE = ("drift probe one", "drift probe two", "drift probe reply", "drift probe system")
_TAIL = 64
"""Tokens at a prompt's end in which a generation prompt is looked for."""
_KEPT = 256
"""Renderings of markers that are kept."""


@dataclass(frozen=True)
class TemplateChat(Rendering):
    """A model's own chat template as a chat format."""

    _marked: dict[Any, str | None] = field(default_factory=dict, init=False, compare=False, repr=False)
    _parsed: dict[Any, Parts] = field(default_factory=dict, init=False, compare=False, repr=False)

    @cached_property
    def controls(self) -> Controls:
        """The tokenizer's control tokens."""
        return Controls(self.tokenizer)

    @cached_property
    def reasoning(self) -> Reasoning | None:
        """The markup of reasoning, None where there is none."""
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        return find_reasoning(self.rendered, self.source, added)

    @cached_property
    def _tags(self) -> tuple[str, ...]:
        return answer_tags(self.source, self.controls.special)

    @cached_property
    def _strays(self) -> tuple[str, ...]:
        """Control tokens that are no markup of a reply's parts, and are left out of its text as they are left out of other replies'."""
        marks = "" if self.reasoning is None else str(self.reasoning.marks)
        return tuple(token for token in self.controls.special if token not in marks)

    @property
    def format(self) -> ChatFormat:
        """Digest of the template's text; the date only where the template asks for it."""
        digest = hashlib.sha256(self.source.encode()).hexdigest()
        return ChatFormat("template", digest, self.date if asks_for_date(self.source) else None, self.options)

    @property
    def segmented(self) -> bool:
        """Whether the template or the vocabulary has markup of reasoning."""
        return self.reasoning is not None

    @cached_property
    def generation_problem(self) -> str | None:
        """Why the template cannot have replies generated, None where it can."""
        return no_generation_prompt(self)

    def _ids(self, text: str) -> list[int]:
        """A rendering's token ids. Templates write a beginning-of-text token themselves where there is to be one."""
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _decoded(self, ids: Sequence[int]) -> str:
        """Text with its control tokens spelled out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def conversation(self, users: Sequence[str], replies: Sequence[Parts], condition: Condition) -> list[Message]:
        """The messages that the template is given: see `messages`, and `Reasoning.message` for replies with reasoning."""
        made = messages(users, [reply.answer for reply in replies], condition)
        if self.reasoning is None:
            return made
        left = iter(replies)
        return [self.reasoning.message(next(left)) if message["role"] == "assistant" else message for message in made]

    def text(self, users: Sequence[str], replies: Sequence[Parts], condition: Condition) -> str:
        """The template's rendering, generation prompt included, in which every text is in its place. Raises `TemplateProblem`."""
        import jinja2

        try:
            text = self.render(self.conversation(users, replies, condition), prompt=True)
        except jinja2.TemplateError as error:
            raise TemplateProblem(f"at turn {len(users)} it fails: {error}") from error
        problem = self._misplaced(text, users, replies, condition)
        if problem is not None:
            raise TemplateProblem(f"at turn {len(users)} {problem}")
        return text

    def prompt(self, users: Sequence[str], replies: Sequence[str | Parts], condition: Condition) -> list[int]:
        """Token ids of the template's rendering, generation prompt included."""
        said = [Parts(reply, whole=reply) if isinstance(reply, str) else reply for reply in replies]
        try:
            return self._ids(self.text(users, said, condition))
        except TemplateProblem as error:
            raise TemplateProblem(f"the chat template does not render condition {condition.name} as it is ({error.what})") from error

    def extend(self, said: Conversation, reply: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """See `Chat.extend`; the module's docstring of `conversation` says when the sampled ids are kept."""
        canonical = tuple(self.prompt(said.users, said.said, said.condition))
        before = len(said.canonical)
        if canonical[:before] == said.canonical:
            for text in (said.said[-1].whole, *([self._decoded(reply)] if self.segmented else [])):
                written = self._ids(text)
                if list(canonical[before : before + len(written)]) == written:
                    return (*said.ids, *reply, *canonical[before + len(written) :]), canonical
        for turn, (parts, answered) in enumerate(zip(said.said, said.past, strict=True), 1):
            for token in self.controls.read_in(parts.answer):
                if token not in answered.content:
                    # Sampled letter by letter; in the template's rendering it would become the control token itself.
                    spelled = self.controls.by_id[token]
                    raise TemplateProblem(f"reply {turn} spells out {spelled!r}, which the model would read as a control token")
        return canonical, canonical

    @property
    def has_stops(self) -> bool:
        """A template's replies end with a token."""
        return False

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """A template's replies end with a token, never with a string."""
        return None

    def parts(self, ids: Sequence[int], prompt: Sequence[int]) -> Parts:
        """See `Chat.parts`."""
        plain = text_of(self.tokenizer, ids)
        if self.reasoning is None:
            return Parts(plain, whole=plain)
        key = tuple(ids), tuple(prompt[-_TAIL:])
        if key not in self._parsed:
            self._parsed.clear()
            end = self._decoded(prompt[-_TAIL:])
            self._parsed[key] = parts_of(ids, plain, self._decoded, self.reasoning.marks, end, self._tags, self._strays)
        return self._parsed[key]

    def segments(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> tuple[Segment, ...]:
        """See `Chat.segments`."""
        return self.parts(ids, prompt).segments

    def _misplaced(self, text: str, users: Sequence[str], replies: Sequence[Parts], condition: Condition) -> str | None:
        """What is not in its place in a rendering, in words."""
        marked, marks = self._markers(users, replies, condition)
        if marked is not None and (problem := misplaced(marked, marks)) is not None:
            return problem
        expected = passages(users, replies, condition)
        if marked is not None and fits(text, marked, expected, marks):
            return None
        return lost(text, expected, own_text(marked or ""))

    def _markers(self, users: Sequence[str], replies: Sequence[Parts], condition: Condition) -> tuple[str | None, list[Passage]]:
        """The rendering of the same conversation with markers for its texts (None where the template fails on it), and the markers."""
        users = [marker("user", turn) if user.strip() else user for turn, user in enumerate(users, 1)]
        replies = [self._marker(parts, turn) for turn, parts in enumerate(replies, 1)]
        system = condition.system
        condition = Condition("markers", marker("system", 0) if system is not None and system.strip() else system, condition.placement)
        key = tuple(users), tuple(replies), condition
        if key not in self._marked:
            if len(self._marked) >= _KEPT:
                self._marked.clear()
            self._marked[key] = self.rendered(self.conversation(users, replies, condition), True)
        return self._marked[key], passages(users, replies, condition)

    def _marker(self, parts: Parts, turn: int) -> Parts:
        answer = marker("reply", turn) if parts.answer.strip() else parts.answer
        if self.reasoning is None or parts.reasoning is None:
            return Parts(answer, whole=answer)
        thought = marker("thought", turn) if parts.reasoning.strip() else parts.reasoning
        return self.reasoning.stand_in(answer, thought, opened=parts.opened, closed=parts.closed)

    def check(self, condition: Condition, transcript: Transcript) -> None:
        """Refuse what the template does not carry through the whole script, and text that the tokenizer would read as control tokens."""
        check_repeatable(self.source)
        check_script(self, condition, transcript)
        self.refuse(given_texts(condition, transcript))

    def refuse(self, texts: Sequence[tuple[str, str]]) -> None:
        """See `Chat.refuse`."""
        self.controls.refuse(texts)

    def end_ids(self, given: frozenset[int]) -> frozenset[int]:
        """See `Chat.end_ids`."""
        return reply_ends(self, given)

    def adds(self, condition: Condition) -> str | None:
        """What stands before the first user message and does not stand before a later one: a system prompt of the template's own."""
        placed = condition.system is not None and condition.placement is not Placement.FIRST_USER
        probe = Condition("probe", _PROBE[3] if placed else None, condition.placement)
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
