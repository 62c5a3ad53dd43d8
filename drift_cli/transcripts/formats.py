"""From a JSON value to a script, by the value's shape.

| shape | comes from |
| --- | --- |
| `["…", …]` | a plain list of user turns |
| `[{"role", "content"}, …]`, as JSON or JSON lines | chat messages |
| `{"messages": […]}`, as JSON or one JSON line | chat messages |
| `{"conversation": [{"role", "content"}, …]}` | assistant-axis |
| `{"conversations": [[{"role", "content"}, …], …]}` | the seed experiment's output: one script, answered several times |
| `{"conversations": [{"from", "value"}, …]}`, as JSON or one JSON line | ShareGPT |
| `{"users": ["…", …], "replies"?, "name"?, "description"?, "language"?, "pulls"?: [turns]}` | drift |
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

from drift_cli.errors import UsageError
from drift_cli.spec import checked_name
from drift_cli.transcripts.dialogue import Message, Script, encodable, kind, read_messages, read_texts, said, script_of

_BODIES = ("conversation", "conversations", "messages", "users")
_OWN = {"name", "description", "language", "users", "replies", "pulls"}
_SHAPES = "Known shapes: a list of strings or of messages, or an object with one of " + ", ".join(_BODIES) + "."


def find_script(value: Any, path: Path) -> Script:
    """The script in a file's JSON value, named after the file where the value has no name of its own."""
    where, name = str(path), name_of(path)
    if isinstance(value, list):
        return _from_list(value, name, where)
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a conversation, found {kind(value)}", mend=_SHAPES)
    bodies = [key for key in _BODIES if key in value]
    if len(bodies) > 1:
        raise UsageError(f"{where}: has both {bodies[0]!r} and {bodies[1]!r}", mend="Keep the one that holds the conversation.")
    if not bodies and ("content" in value or "value" in value):
        return script_of(name, read_messages([value], where), where)
    if not bodies:
        raise UsageError(f"{where}: no conversation in it (keys: {', '.join(map(repr, value)) or 'none'})", mend=_SHAPES)
    body = value[bodies[0]]
    if bodies[0] == "users":
        return _own(value, name, where)
    if bodies[0] == "conversations" and isinstance(body, list) and any(isinstance(item, list) for item in body):
        return _seed(value, name, where)
    return script_of(name, read_messages(body, where), where)


def name_of(path: Path) -> str:
    """A file's name without its extensions, in the characters a transcript's name may have."""
    return clean_name(re.sub(r"(\.jsonl?)+$", "", path.name, flags=re.IGNORECASE))


def clean_name(text: str) -> str:
    """`text` in the characters a name may have: accents dropped, everything else replaced by an underscore, at most 80."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("_")
    plain = re.sub(r"^[^A-Za-z0-9]+", "", plain)[:80]
    # A name in another script leaves nothing: tell such files apart by a digest of what they are called.
    return plain or f"transcript-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _from_list(items: list[Any], name: str, where: str) -> Script:
    if not items:
        raise UsageError(f"{where}: is an empty list", mend="A transcript needs at least one user turn.")
    if isinstance(items[0], str):
        return Script(name, _users(items, where, "message"))
    if all(isinstance(item, dict) and any(key in item for key in _BODIES) for item in items):
        raise UsageError(f"{where}: holds {len(items)} conversations", mend="Give a file with one.")
    return script_of(name, read_messages(items, where), where)


def _users(items: Any, where: str, noun: str) -> tuple[Message, ...]:
    """Plain strings as user turns."""
    texts = read_texts(items, where, noun)
    return tuple(Message(f"{where}: {noun} {number}", "user", text) for number, text in enumerate(texts, 1))


def _own(value: dict[str, Any], name: str, where: str) -> Script:
    """drift's own format."""
    unknown = sorted(set(value) - _OWN)
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}", mend=f"Keys beside 'users': {', '.join(sorted(_OWN - {'users'}))}.")
    for key in ("name", "description", "language"):
        if key in value and not isinstance(value[key], str):
            raise UsageError(f"{where}: {key} is {kind(value[key])}, not text")
        if key in value:
            encodable(value[key], f"{where}: {key}")
    users = _users(value["users"], where, "user turn")
    if not users:
        raise UsageError(f"{where}: has no user turn", mend="A transcript needs at least one.")
    replies = None if value.get("replies") is None else tuple(read_texts(value["replies"], where, "reply"))
    if replies is not None and len(replies) != len(users):
        raise UsageError(
            f"{where}: {len(users)} user turns but {len(replies)} replies", mend="Give one reply to each user turn, or none at all."
        )
    pulls = _pulls(value.get("pulls", []), len(users), where)
    return Script(_own_name(value["name"], where) if "name" in value else name, users, replies, pulls=pulls)


def _pulls(value: Any, turns: int, where: str) -> tuple[int, ...]:
    """Turns that the script's author marked as pulls."""
    if not isinstance(value, list) or not all(type(turn) is int and 1 <= turn <= turns for turn in value):
        raise UsageError(
            f"{where}: pulls is no list of turns from 1 to {turns}", mend="Give the numbers of the turns that pull, such as [9, 15]."
        )
    return tuple(sorted(set(value)))


def _own_name(name: str, where: str) -> str:
    try:
        return checked_name("transcript", name)
    except UsageError as error:
        raise UsageError(f"{where}: {error.what}", mend=error.mend) from error


def _seed(value: dict[str, Any], name: str, where: str) -> Script:
    """The seed's output: many conversations on one script. A conversation that ended early has the script's first turns."""
    conversations = value["conversations"]
    places = [f"{where}: conversation {number}" for number in range(1, len(conversations) + 1)]
    parsed = [read_messages(items, place) for items, place in zip(conversations, places, strict=True)]
    spoken = [[message for message in messages if message.role == "user"] for messages in parsed]
    longest = max(range(len(spoken)), key=lambda index: len(spoken[index]))
    for users in spoken:
        for message, expected in zip(users, spoken[longest], strict=False):
            if message.text != expected.text:
                raise UsageError(
                    f"{message.place}: is not the user turn that conversation {longest + 1} has there",
                    mend="All conversations of a file must share their user turns.",
                )
    alone = len(parsed) == 1
    source = value.get("transcript_source")
    chosen = [message for message in parsed[longest] if alone or message.role != "assistant"]
    script = script_of(clean_name(source) if isinstance(source, str) and source else name, chosen, places[longest])
    if all(message.role != "system" for message in chosen):
        script = _without_prompt(script, value.get("system_prompt"))
    if alone:
        return script
    notice = f"The file holds {len(parsed)} conversations: their user turns were taken, their replies were not."
    return replace(script, notices=(*script.notices, notice))


def _without_prompt(script: Script, prompt: Any) -> Script:
    """Undo the placements `user-suffix`, in which the file's system prompt ends every user turn, and `first-user`, in which it begins the first one."""
    prefix, suffix = f"{prompt}\n\n", f"\n\n{prompt}"
    if isinstance(prompt, str) and script.users and script.users[0].text.startswith(prefix):
        first, *rest = script.users
        bare = replace(first, text=said(first.text.removeprefix(prefix), first.place))
        notice = "The system prompt at the beginning of the first user turn was taken off."
        return replace(script, users=(bare, *rest), notices=(*script.notices, notice))
    if not isinstance(prompt, str) or not all(message.text.endswith(suffix) for message in script.users):
        return script
    users = tuple(replace(message, text=said(message.text.removesuffix(suffix), message.place)) for message in script.users)
    return replace(script, users=users, notices=(*script.notices, "The system prompt at the end of every user turn was taken off."))
