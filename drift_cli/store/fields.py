"""Fields of a rollout's lines, each checked: the value of a key in a JSON object, or `Malformed` with the field's name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from drift_cli.segments import Segment, SegmentKind
from drift_cli.spec import Finish
from drift_cli.store.decode import Malformed

_SEGMENT = ("kind", "start", "stop")
_KINDS = {kind.value: kind for kind in SegmentKind}


def count(body: Mapping[str, Any], key: str, least: int = 0) -> int:
    """A whole number, at least `least`."""
    value = body[key]
    if type(value) is not int or value < least:
        raise Malformed(f"not a whole number from {least} on", key)
    return value


def text(body: Mapping[str, Any], key: str) -> str:
    """Text."""
    if type(body[key]) is not str:
        raise Malformed("not text", key)
    return str(body[key])


def one_of(body: Mapping[str, Any], key: str, choices: Mapping[str, Finish]) -> Finish:
    """One of a few words."""
    if type(body[key]) is not str or body[key] not in choices:
        raise Malformed(f"none of {', '.join(choices)}", key)
    return choices[body[key]]


def token_ids(value: Any) -> tuple[int, ...]:
    """Token ids."""
    # Whole-list operations: there are hundreds of ids in a turn, and hundreds of thousands of turns in a large run.
    if type(value) is not list or not set(map(type, value)) <= {int} or (value and not (min(value) >= 0 and max(value) < 2**31)):
        raise Malformed("not a list of token ids", "ids")
    return tuple(value)


def projections(value: Any) -> dict[str, float]:
    """Finite numbers by name."""
    if type(value) is not dict or not all(type(item) is float and math.isfinite(item) for item in value.values()):
        raise Malformed("not finite numbers by name", "projections")
    return value


def segments(value: Any, ids: tuple[int, ...] | None) -> tuple[Segment, ...]:
    """At least one segment, in order, none beyond `ids` where they are known."""
    if type(value) is not list or not value:
        raise Malformed("not a list of segments", "segments")
    found, last = [], 0
    for item in value:
        if type(item) is not dict or tuple(item) != _SEGMENT or type(item["kind"]) is not str or item["kind"] not in _KINDS:
            raise Malformed(f"not {', '.join(_SEGMENT)} of a segment", "segments")
        start, stop = count(item, "start"), count(item, "stop")
        if not last <= start <= stop or (ids is not None and stop > len(ids)):
            raise Malformed(f"tokens {start} to {stop} cannot follow token {last} of {len(ids or ())}", "segments")
        found.append(Segment(_KINDS[item["kind"]], start, stop))
        last = stop
    return tuple(found)
