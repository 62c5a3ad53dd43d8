"""Transcripts: the scripts of conversations, read from whatever shape they come in and checked before anything is computed.

In: a path, or the name of one of drift's own transcripts. Out: a `Transcript`, and what a person should know about how it was read. The shape is found
from the content, never from the file's extension (`formats` lists the shapes). Whatever cannot be read as it is meant is refused with the file and the
message by number; nothing is repaired silently. A source's system messages are not part of the script: they are dropped, and reported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import drift_cli
from drift_cli.errors import UsageError, did_you_mean
from drift_cli.spec import Transcript, shortened_name
from drift_cli.transcripts.dialogue import Message, Script
from drift_cli.transcripts.document import read_document
from drift_cli.transcripts.formats import find_script
from drift_cli.transcripts.private import private_tag, without_private

__all__ = ["Loaded", "builtin_names", "load", "read"]


@dataclass(frozen=True)
class Loaded:
    """A transcript, and in whole sentences what was left out or decided while reading it."""

    transcript: Transcript
    notices: tuple[str, ...] = ()


def load(source: str | Path, *, strip_private: bool = False, turns: int | None = None) -> Transcript:
    """The transcript alone: see `read`."""
    return read(source, strip_private=strip_private, turns=turns).transcript


def read(source: str | Path, *, strip_private: bool = False, turns: int | None = None) -> Loaded:
    """Read a transcript.

    Args:
        source: a path, or the name of one of drift's own. It is a path if it has a separator or names an existing file.
        strip_private: remove auditors' private tags (`<INTERNAL_STATE>…</INTERNAL_STATE>`) from user turns instead of refusing them.
        turns: only the first so many user turns, as a transcript of its own called `<name>-<turns>`; a script without more stays as it is.

    Raises:
        UsageError: there is no such transcript, or it cannot be read as it is meant.
    """
    path = _find(source)
    if turns is not None and turns < 1:
        raise UsageError(f"turns is {turns}", mend="Use at least 1.")
    script = find_script(read_document(path), path)
    name = script.name
    if turns is not None and turns < len(script.users):
        script, name = script.first(turns), shortened_name(name, turns)
    script = _with_all_replies(script)
    users = tuple(_public(message, strip_private) for message in script.users)
    changed = sum(text != message.text for text, message in zip(users, script.users, strict=True))
    notices = script.notices if not changed else (*script.notices, f"Private tags were removed from {_count(changed, 'user turn')}.")
    return Loaded(Transcript(name, users, script.replies, pulls=script.pulls), notices)


def _with_all_replies(script: Script) -> Script:
    """The script without replies where the last user turn has none."""
    if script.replies is None or len(script.replies) == len(script.users):
        return script
    lacking = f"The last user turn has no reply, so no replies were kept: they can serve as a reference up to turn {len(script.replies)} (--turns)."
    return replace(script, replies=None, notices=(*script.notices, lacking))


def builtin_names() -> list[str]:
    """Names of drift's own transcripts, sorted."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def _folder() -> Path:
    """Where drift's own transcripts lie: in the installed package, else beside it in the repository."""
    package = Path(drift_cli.__file__).parent
    inside = package / "data" / "transcripts"
    return inside if inside.is_dir() else package.parent / "data" / "transcripts"


def _find(source: str | Path) -> Path:
    text = str(source)
    separators = {os.sep, os.altsep or os.sep}
    # os.path, because Path.is_file raises for a name that is too long or holds a NUL, and neither is a transcript's name.
    if isinstance(source, Path) or any(separator in text for separator in separators) or os.path.isfile(text):  # noqa: PTH113
        return Path(source)
    names = builtin_names()
    if text in names:
        return _folder() / f"{text}.json"
    if os.path.isdir(text):  # noqa: PTH112
        return Path(source)
    raise UsageError(
        f"there is no transcript named {text!r}, and no such file",
        mend=f"{did_you_mean(text, names)}Give a path, or one of drift's own: {', '.join(names) or 'none found'}.",
    )


def _public(message: Message, strip_private: bool) -> str:
    """A user turn as the model may see it."""
    tag = private_tag(message.text)
    if tag is None:
        return message.text
    if not strip_private:
        raise UsageError(
            f"{message.place}: holds the private tag <{tag}>, which the model should not see",
            mend="Pass --strip-private to remove such tags and what is in them, or edit the file.",
        )
    text = without_private(message)
    if not text:
        raise UsageError(
            f"{message.place}: nothing is left once the private tag <{tag}> is removed", mend="Remove this message from the file."
        )
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
