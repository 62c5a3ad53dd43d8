"""What results of statistics must be, whatever they are: JSON can hold them, and every number is finite."""

from __future__ import annotations

import json
import math
from dataclasses import asdict


def assert_plain(result: object) -> None:
    """JSON can hold the result, and no number of it is NaN or infinite."""
    fields = asdict(result)  # type: ignore[call-overload]
    json.dumps(fields, allow_nan=False)
    assert all(map(math.isfinite, numbers(fields)))


def numbers(value: object) -> list[float]:
    """All floats of a JSON-like value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []
