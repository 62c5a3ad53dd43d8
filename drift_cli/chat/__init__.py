"""Messages to token ids: see `conversation` for the contract, `template` and `raw` for the two formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drift_cli.chat.conversation import Ask, Conversation, Exchange, begin, scripted
from drift_cli.chat.format import Chat, TemplateProblem
from drift_cli.chat.messages import Message, messages, prompt_hash, text_of
from drift_cli.chat.parts import Parts
from drift_cli.chat.rendering import DEFAULT_DATE
from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DEFAULT_DATE",
    "Ask",
    "Chat",
    "Conversation",
    "Exchange",
    "Message",
    "Parts",
    "TemplateProblem",
    "begin",
    "chat_for",
    "messages",
    "prompt_hash",
    "scripted",
    "text_of",
]


def chat_for(tokenizer: PreTrainedTokenizerBase, kind: str, *, date: str = DEFAULT_DATE, options: str = "{}") -> Chat:
    """Return the chat format `template` or `raw` for a tokenizer; `options` is JSON for the template's own variables."""
    from drift_cli.chat.raw import RawChat
    from drift_cli.chat.template import TemplateChat

    if kind == "template":
        _check_default(tokenizer)
        return TemplateChat(tokenizer, date, options)
    if kind == "raw":
        return RawChat(tokenizer)
    raise UsageError(f"chat format {kind!r} is unknown", mend="Use --chat template or --chat raw.")


def _check_default(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with several templates of which none is for plain conversations."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        raise UsageError(
            f"this model's tokenizer has chat templates for {', '.join(templates)} only, and none for plain conversations",
            mend="Use --chat raw, or add a chat_template.jinja to the model's folder.",
        )
