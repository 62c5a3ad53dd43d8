"""Every setting there is: how its value is read from text, TOML or a manifest, and its default.

A reader returns the value or raises `ValueError` with what it wants, in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("wants a text")
    return value


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("wants a whole number") from None


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("wants a number") from None


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in {"1", "true", "yes", "on"}:
        return True
    if str(value).lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("wants true or false")


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _listed(value))


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(dict.fromkeys(_number(item) for item in _listed(value)))


def _layers(value: Any) -> str | tuple[int, ...]:
    if value in ("auto", "all"):
        return str(value)
    layers = tuple(dict.fromkeys(_whole(item) for item in _listed(value)))
    if not layers or min(layers) < 0:
        raise ValueError('wants "auto", "all" or layer numbers such as 21 or 20,21,22')
    return layers


def _options(value: Any) -> str:
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


@dataclass(frozen=True)
class Key:
    """One setting: `read` makes its value of what a flag, a variable, TOML or a manifest says, or raises `ValueError`."""

    read: Callable[[Any], Any]
    default: Any
    recorded: bool = True
    """False for a setting that came after the first runs: a manifest has it only where it is not the default, so that those stay what they are."""


KEYS: Mapping[str, Key] = {
    "name": Key(_text, None),
    "preset": Key(_text, None),
    "model": Key(_text, "demo"),
    "revision": Key(_text, None),
    "adapter": Key(_text, None, recorded=False),
    "dtype": Key(_text, "auto"),
    "device": Key(_text, "auto"),
    "chat": Key(_text, "template"),
    "chat_date": Key(_text, "2026-01-01"),
    "chat_options": Key(_options, "{}"),
    "transcripts": Key(_texts, ()),
    "strip_private": Key(_switch, False),
    "turns": Key(_whole, None, recorded=False),
    "temperatures": Key(_numbers, (0.7,)),
    "samples": Key(_whole, 16),
    "seed": Key(_whole, 0),
    "max_new_tokens": Key(_whole, 512),
    "top_p": Key(_number, None),
    "top_k": Key(_whole, None),
    "min_p": Key(_number, None),
    "independent_noise": Key(_switch, False),
    "layers": Key(_layers, "auto"),
    "axis": Key(_text, None),
    "layer": Key(_whole, None),
    "foreign_axis": Key(_switch, False, recorded=False),
    "engine": Key(_text, "auto"),
    "batch": Key(_whole, None),
}
"""Every setting but the conditions: how its value is read, and its default."""
