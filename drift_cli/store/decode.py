"""JSON to values and back, strictly: what is read is exactly what a writer of ours could have meant, or `Malformed` says what is not.

No duplicate keys, no NaN, no lone surrogates, no unknown keys, no value of another type. `decode` makes frozen dataclasses from their annotations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import orjson

from drift_cli.errors import DriftError

T = TypeVar("T")
OPTIONAL = {"optional": True}
"""Metadata of a dataclass's field that came after the first files were written: it is left out where it has its default, so that those stay what they are."""


class Malformed(ValueError):
    """What is wrong with a value, in words, and in which field (`cells[3].samples`; empty for the whole)."""

    def __init__(self, problem: str, at: str = "") -> None:
        super().__init__(f"{at}: {problem}" if at else problem)


def parse(data: bytes) -> Any:
    """The JSON value in `data`. Raises `Malformed`."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"not valid JSON ({error})") from None
    # orjson keeps the last of duplicate keys. Bytes that it would write itself have none; others (spacing, or another version's way to write a
    # number) are looked at by a parser that shows them.
    try:
        ours = orjson.dumps(value) == data
    except orjson.JSONEncodeError:  # nested deeper than it writes
        ours = False
    if not ours:
        _refuse_duplicates(data)
    return value


def _refuse_duplicates(data: bytes) -> None:
    try:
        json.loads(data, object_pairs_hook=_unique)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:  # numbers beyond what Python reads, and nesting
        raise Malformed(f"not JSON that can be read ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> None:
    keys = {key for key, _ in pairs}
    if len(keys) < len(pairs):
        raise Malformed("a key stands twice in one object")


def plain(value: Any) -> Any:
    """A dataclass as JSON values, without optional fields at their defaults; fields in their order, the keys of mappings sorted."""
    if is_dataclass(value):
        there = [f for f in fields(value) if not (f.metadata.get("optional") and getattr(value, f.name) == f.default)]
        return {f.name: plain(getattr(value, f.name)) for f in there}
    if isinstance(value, Mapping):
        return {key: plain(value[key]) for key in sorted(value)}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def decode(kind: type[T], value: object, at: str = "") -> T:
    """`value`, as `parse` gives it, as a `kind`: a dataclass, or whatever annotations its fields have. `at` names it in errors.

    Raises:
        Malformed: a field is missing that has no default, is unknown, or is of another type or value than it may be.
    """
    made: T = _decode(kind, value, at)
    return made


def _decode(kind: Any, value: Any, at: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        (wanted,) = (arg for arg in inner if arg is not NoneType)
        return None if value is None else _decode(wanted, value, at)
    if origin is tuple:
        return tuple(_decode(inner[0], item, f"{at}[{place}]") for place, item in enumerate(_typed(list, value, at)))
    if origin is Mapping:
        return {key: _decode(inner[1], item, _within(at, key)) for key, item in _typed(dict, value, at).items()}
    if is_dataclass(kind):
        return _dataclass(kind, _typed(dict, value, at), at)
    if issubclass(kind, Enum):
        return _enum(kind, value, at)
    if kind is float and type(value) is int:
        return float(value)
    return _typed(kind, value, at)


def _within(at: str, key: str) -> str:
    """The name of a field of the value named `at`. Keys come from a file: what a terminal would obey is spelled out."""
    shown = key if key.isprintable() else repr(key)
    return f"{at}.{shown}" if at else shown


def _typed(kind: type[T], value: Any, at: str) -> T:
    if type(value) is not kind:
        raise Malformed(f"expected {_NAMES[kind]}, found {_NAMES[type(value)]}", at)
    return value


def _enum(kind: type[Enum], value: Any, at: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise Malformed(f"{value!r} is none of {', '.join(repr(member.value) for member in kind)}", at) from None


def _dataclass(kind: Any, value: dict[str, Any], at: str) -> Any:
    known = _fields(kind)
    unknown = [key for key in value if key not in known]
    if unknown:
        raise Malformed(f"unknown field {unknown[0]!r}", at)
    made = {}
    for name, (field, hint) in known.items():
        if name in value:
            made[name] = _decode(hint, value[name], _within(at, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise Malformed(f"field {name!r} is missing", at)
    try:
        return kind(**made)
    except DriftError as error:  # a dataclass's own checks
        raise Malformed(error.what, at) from None
    except ValueError as error:
        raise Malformed(str(error), at) from None


@lru_cache
def _fields(kind: Any) -> dict[str, tuple[Field[Any], Any]]:
    hints = get_type_hints(kind)
    return {field.name: (field, hints[field.name]) for field in fields(kind)}


_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
