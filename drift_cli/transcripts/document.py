"""Files to JSON values, strictly: UTF-8, no duplicate keys, no NaN, bounded in size and depth. One JSON document, or JSON lines.

Everything that cannot be read is a `UsageError` that names the file and, where there is one, the line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drift_cli.errors import UsageError
from drift_cli.files import read_regular

LIMIT = 64 * 2**20
"""Bytes. The longest transcripts known are under 1 MiB, and the seed's outputs too; beyond this it is some other file."""

_NOT_JSON = object()


def read_document(path: Path) -> Any:
    """The JSON value in a file; JSON lines give the list of their values, and a single line gives its own value."""
    text = read_text(path)
    where = str(path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(f"{where}: is empty", mend="Give a file with a conversation in it.")
    value = parse_json(text, where, lines=len(lines) > 1 and _stands_alone(lines[0][1], where))
    return value if value is not _NOT_JSON else [parse_json(line, f"{where}:{number}") for number, line in lines]


def read_text(path: Path) -> str:
    """A file's text. A byte order mark is dropped."""
    try:
        data = read_regular(path, LIMIT)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", mend="Check the path.") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UsageError(f"{str(path)!r}: is not a path ({error})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})", mend="Save it as UTF-8.") from error


def parse_json(text: str, where: str, *, lines: bool = False, nan: bool = False) -> Any:
    """Parse one JSON document.

    Args:
        text: the document.
        where: what errors call it.
        lines: text that is not one document gives `_NOT_JSON` instead of an error.
        nan: accept the words NaN and Infinity, which Python writes, for a caller that can say better where they stand.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UsageError(f"{where}: the key {twice!r} stands twice in one object", mend="Remove one of the two.")
        return made

    def constant(word: str) -> float:
        if nan:
            return float(word)
        raise UsageError(f"{where}: {word} is not a JSON number", mend="Remove it from the file.")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        if lines:
            return _NOT_JSON
        raise UsageError(f"{where}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg})", mend="Mend it there.") from error
    except RecursionError as error:
        raise UsageError(f"{where}: is nested too deeply to be a conversation") from error
    except ValueError as error:  # a whole number of more digits than Python converts
        raise UsageError(f"{where}: {error}") from error


def _stands_alone(line: str, where: str) -> bool:
    """Whether a file's first line is a JSON value by itself, as in JSON lines."""
    return parse_json(line, where, lines=True) is not _NOT_JSON
