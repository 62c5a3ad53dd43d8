"""Auditors' private tags inside user turns: found, and removed with what is in them.

A tag is a name of two or more capital letters, digits and underscores in angle brackets: `<INTERNAL_STATE>…</INTERNAL_STATE>`, `<PRIVATE_NOTES>…`.
One letter is left alone: `List<T>` is code.
"""

from __future__ import annotations

import re

from drift_cli.errors import UsageError
from drift_cli.transcripts.dialogue import Message

_TAG = re.compile(r"<\s*(?P<close>/\s*)?(?P<name>[A-Z][A-Z0-9_]+)(?P<rest>\s[^<>]*|/)?>")


def private_tag(text: str) -> str | None:
    """The name of the first private tag in a text, opening or closing; None where there is none."""
    found = _TAG.search(text)
    return None if found is None else found["name"]


def without_private(message: Message) -> str:
    """A message's text without its private tags and what is in them, white space around them tidied.

    Raises:
        UsageError: a tag is never closed, or closed without having been opened: where the private part ends is then anybody's guess.
    """
    kept, start = "", 0
    open_names: list[str] = []
    for tag in _TAG.finditer(message.text):
        name = tag["name"]
        if not open_names:
            kept = _join(kept, message.text[start : tag.start()])
        if not tag["close"]:
            open_names += [] if (tag["rest"] or "").endswith("/") else [name]
        elif name in open_names:
            # What stays open inside a closed tag goes with it.
            del open_names[len(open_names) - 1 - open_names[::-1].index(name) :]
        elif not open_names:
            raise UsageError(f"{message.place}: the private tag </{name}> closes nothing", mend="Mend it in the file.")
        start = tag.end()
    if open_names:
        raise UsageError(f"{message.place}: the private tag <{open_names[0]}> is never closed", mend="Close it in the file, or remove it.")
    left = _join(kept, message.text[start:]).strip()
    if private_tag(left) is not None:  # what stood on both sides of a tag made another: <A<B1>…</B1>C>
        raise UsageError(f"{message.place}: removing its private tags makes <{private_tag(left)}>", mend="Mend it in the file.")
    return left


def _join(before: str, after: str) -> str:
    """Two pieces with a paragraph, a line or a word between them, whichever stood there."""
    left, right = before.rstrip(), after.lstrip()
    gap = before[len(left) :] + after[: len(after) - len(right)]
    space = "\n\n" if gap.count("\n") > 1 else "\n" if "\n" in gap else " " if gap else ""
    return left + space + right if left else right
