"""Readers of settings: each makes a value of what a flag, an environment variable, TOML or a manifest says.

A reader returns the value or raises `ValueError` with what it wants, in words. `reader_of` chooses one by a field's type.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from drift_cli.pool import Pool

Reader = Callable[[Any], Any]
E = TypeVar("E", bound=StrEnum)


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("wants a text")
    return value


def whole(value: Any) -> int:
    """A whole number."""
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("wants a whole number") from None


def positive(value: Any) -> int:
    """A whole number from 1 on."""
    number = whole(value)
    if number < 1:
        raise ValueError("wants at least 1")
    return number


def number(value: Any) -> float:
    """A number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("wants a number") from None


def pool(value: Any) -> str:
    """Which tokens of a reply stand for it: see `Pool`."""
    return str(Pool.of(text(value)))


def switch(value: Any) -> bool:
    """True or false; of text, also 1, yes, on and their opposites."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in {"1", "true", "yes", "on"}:
        return True
    if str(value).lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("wants true or false")


def texts(value: Any) -> tuple[str, ...]:
    """Texts: a list, or one text with commas."""
    return tuple(text(item) for item in _listed(value))


def numbers(value: Any) -> tuple[float, ...]:
    """Numbers, each once: a list, or one text with commas."""
    return tuple(dict.fromkeys(number(item) for item in _listed(value)))


def layers(value: Any) -> str | tuple[int, ...]:
    """`auto`, `all`, or layer numbers."""
    if value in ("auto", "all"):
        return str(value)
    found = tuple(dict.fromkeys(whole(item) for item in _listed(value)))
    if not found or min(found) < 0:
        raise ValueError('wants "auto", "all" or layer numbers such as 21 or 20,21,22')
    return found


def date(value: Any) -> str:
    """A date as text, YYYY-MM-DD."""
    try:
        datetime.date.fromisoformat(text(value))
    except ValueError:
        raise ValueError("wants a date such as 2026-01-31") from None
    return text(value)


def options(value: Any) -> str:
    """KEY=VALUE pairs, a table or its JSON → JSON with sorted keys. A value that is no JSON is text."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    pairs = value.items() if isinstance(value, Mapping) else (str(item).partition("=")[::2] for item in _listed(value))
    made: dict[str, Any] = {}
    for key, raw in pairs:
        if not key:
            raise ValueError("wants KEY=VALUE")
        try:
            made[key] = json.loads(raw) if isinstance(raw, str) else raw
        except json.JSONDecodeError:
            made[key] = raw
    return json.dumps(made, sort_keys=True)


def choice(kind: type[E]) -> Callable[[Any], E]:
    """The reader of an enumeration's values."""

    def read(value: Any) -> E:
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"wants one of {', '.join(kind)}") from None

    return read


def reader_of(hint: Any) -> Reader:
    """The reader of a field of this type, None aside."""
    if get_origin(hint) is UnionType:
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return choice(hint)
    return _READERS[hint]


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


_READERS: Mapping[Any, Reader] = {
    str: text,
    int: whole,
    float: number,
    bool: switch,
    tuple[str, ...]: texts,
    tuple[float, ...]: numbers,
}
