"""Messages as other programs write them, checked one by one and put in order: user turns, and replies where there is one to each.

A message is `{"role", "content"}`, or `{"from", "value"}` as in ShareGPT. Content is a string or a list of text parts, which are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from drift_cli.errors import UsageError

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
    "developer": "system",
}
"""What sources call the three roles."""


@dataclass(frozen=True)
class Message:
    """One message, and where it stands: file and number, for whoever has to mend it."""

    place: str
    role: str
    """`user`, `assistant` or `system`."""
    text: str


@dataclass(frozen=True)
class Script:
    """What a source says: the user turns, a reply to each or None, and notices in whole sentences."""

    name: str
    users: tuple[Message, ...]
    replies: tuple[str, ...] | None = None
    """A reply to each user turn, or to each but the last."""
    notices: tuple[str, ...] = ()
    pulls: tuple[int, ...] = ()
    """Turns that are marked as pulls, ascending, 1 for the first."""

    def first(self, turns: int) -> Script:
        """The first `turns` user turns, with their replies."""
        pulls = tuple(turn for turn in self.pulls if turn <= turns)
        return replace(self, users=self.users[:turns], replies=None if self.replies is None else self.replies[:turns], pulls=pulls)


def read_messages(items: Any, where: str) -> list[Message]:
    """Check a list of messages; `where` is the file, and the conversation in it."""
    if not isinstance(items, list):
        raise UsageError(f"{where}: expected a list of messages, found {kind(items)}")
    return [_message(item, f"{where}: message {number}") for number, item in enumerate(items, 1)]


def read_texts(items: Any, where: str, noun: str) -> list[str]:
    """Check a list of strings with something in each; `noun` is what one of them is called."""
    if not isinstance(items, list):
        raise UsageError(f"{where}: expected a list of {noun}s, found {kind(items)}")
    places = [f"{where}: {noun} {number}" for number in range(1, len(items) + 1)]
    return [said(content(item, place), place) for item, place in zip(items, places, strict=True)]


def script_of(name: str, messages: Sequence[Message], where: str) -> Script:
    """Order messages into a script."""
    turns = [message for message in messages if message.role != "system"]
    users = tuple(message for message in turns if message.role == "user")
    replies = tuple(message for message in turns if message.role == "assistant")
    notices = (
        [] if len(turns) == len(messages) else [f"Dropped {len(messages) - len(turns)} system message(s): they are not part of the script."]
    )
    if not users:
        raise UsageError(f"{where}: has no user message", mend="A transcript needs at least one.")
    for message in turns:
        said(message.text, message.place)
    if replies:
        _check_alternation(turns)
    return Script(name, users, tuple(reply.text for reply in replies) or None, tuple(notices))


def _check_alternation(turns: Sequence[Message]) -> None:
    """Users and assistants take turns, the user first. (Without any reply, user messages may follow one another.)"""
    if turns[0].role != "user":
        raise UsageError(f"{turns[0].place}: the assistant speaks first", mend="Begin with a user message.")
    for before, message in pairwise(turns):
        if message.role == before.role:
            mend = "Merge the two, or remove all replies." if message.role == "user" else "Merge the two."
            raise UsageError(f"{message.place}: a second {message.role} message in a row", mend=mend)


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise UsageError(f"{place}: expected an object with role and content, found {kind(item)}")
    role_key, text_key = ("from", "value") if "from" in item and "role" not in item else ("role", "content")
    for key in (role_key, text_key):
        if key not in item:
            raise UsageError(f"{place}: has no {key!r}", mend=f"A message has {role_key!r} and {text_key!r}.")
    role = item[role_key]
    if not isinstance(role, str) or role not in ROLES:
        raise UsageError(f"{place}: unknown role {role!r}", mend=f"Known roles: {', '.join(ROLES)}.")
    return Message(place, ROLES[role], content(item[text_key], place))


def content(value: Any, place: str) -> str:
    """A message's text: a string, or text parts, which are joined."""
    if isinstance(value, list):
        value = "".join(_part(part, f"{place}, part {number}") for number, part in enumerate(value, 1))
    if not isinstance(value, str):
        raise UsageError(f"{place}: its content is {kind(value)}, not text")
    return encodable(value, place)


def _part(part: Any, place: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        found = f"type {part.get('type')!r}" if isinstance(part, dict) else kind(part)
        raise UsageError(f"{place}: is not text ({found})", mend='Only {"type": "text", "text": …} parts can be used.')
    return str(part["text"])


def encodable(text: str, place: str) -> str:
    """`text`, if it can be written as UTF-8: half of a surrogate pair, which JSON can spell, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{place}: character {error.start + 1} is half of a surrogate pair", mend="Remove it, or write the whole character."
        ) from error
    return text


def said(text: str, place: str) -> str:
    """`text`, if there is anything in it but white space."""
    if not text.strip():
        raise UsageError(f"{place}: is empty", mend="Remove it, or say something.")
    return text


def kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
