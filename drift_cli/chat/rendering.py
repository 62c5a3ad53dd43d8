"""A model's own chat template, rendered by transformers in its sandbox, in a process with limits, and with the date pinned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from drift_cli.chat.confined import Confined, Failed
from drift_cli.chat.dates import with_date
from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_DATE = "2026-01-01"
"""What a template that asks for today's date is told: a constant, so that a run renders the same prompts on any day and any machine."""

_PROBE = "drift probe one"


def _chunks(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


@dataclass(frozen=True)
class Rendering:
    """A tokenizer's chat template, and what it is given beside the messages."""

    tokenizer: PreTrainedTokenizerBase
    date: str = DEFAULT_DATE
    options: str = "{}"
    """Variables handed to the template, as JSON (`{"enable_thinking": false}`)."""

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise UsageError(
                "this model's tokenizer has no chat template", mend="Use --chat raw (plain System/User/Assistant text) for a base model."
            )
        try:
            self.tokenizer.get_chat_template()
        except ValueError as error:
            raise UsageError(
                "this model's tokenizer has several chat templates and none of them is the one for plain conversations",
                mend="Save the tokenizer with that template as its chat_template, or use --chat raw.",
            ) from error

    @cached_property
    def source(self) -> str:
        """The template's text."""
        return str(self.tokenizer.get_chat_template())

    @cached_property
    def template(self) -> str:
        """The template's text, with `strftime_now` replaced by a macro that answers from the pinned date."""
        return with_date(self.source, self.date)

    @cached_property
    def _in_chunks(self) -> bool:
        """Whether the template takes a message's content only as a list of chunks, as templates for text and images may."""
        import jinja2

        def stands(content: Any) -> bool:
            try:
                return _PROBE in self._apply([{"role": "user", "content": content}], prompt=True)
            except jinja2.TemplateError:
                return False

        return not stands(_PROBE) and stands(_chunks(_PROBE))

    def render(self, conversation: Sequence[Mapping[str, Any]], *, prompt: bool) -> str:
        """The conversation as the template writes it; with `prompt`, up to where the next reply begins."""
        if self._in_chunks:
            conversation = [{**message, "content": _chunks(message["content"])} for message in conversation]
        return self._apply(conversation, prompt=prompt)

    def _apply(self, conversation: Sequence[Mapping[str, Any]], *, prompt: bool) -> str:
        import jinja2

        try:
            return str(self._confined([list(conversation), prompt]))
        except Failed as error:
            raise jinja2.TemplateRuntimeError(str(error)) from None

    @cached_property
    def _confined(self) -> Confined:
        # What the child needs is imported before it is forked, so that it never waits for a lock of another thread.
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
        import transformers.utils.chat_template_utils  # noqa: F401

        tokenizer, template, options = self.tokenizer, self.template, json.loads(self.options)

        def work(given: Any) -> str:
            conversation, prompt = given
            try:
                return str(
                    tokenizer.apply_chat_template(
                        conversation, chat_template=template, tokenize=False, add_generation_prompt=prompt, **options
                    )
                )
            except jinja2.TemplateError as error:
                raise Failed(str(error)) from error

        return Confined(work)

    def rendered(self, conversation: Sequence[Mapping[str, Any]], prompt: bool) -> str | None:
        """The same; None where the template fails."""
        import jinja2

        try:
            return self.render(conversation, prompt=prompt)
        except jinja2.TemplateError:
            return None
