"""What a safetensors file says it holds, read without any of its tensors.

A file is eight bytes (little-endian length of the header), the header (JSON: tensor name → dtype, shape, offsets), and the tensors' bytes. A file that was
cut short, or that is not safetensors at all, is found here, before a run is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift_cli.errors import DriftError

_LONGEST = 100_000_000
"""Bytes of a header; the format's own limit."""

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
_BITS |= {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64}

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes whose values are the weights themselves. Any other (integers, 8 bits and less) needs a scale from somewhere."""


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it."""

    dtype: str
    """As safetensors spells it: `BF16`."""
    shape: tuple[int, ...]


def tensors(path: Path) -> Mapping[str, Stored]:
    """The tensors of a safetensors file by name. `DriftError` where the file is cut short or not in the format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_LONGEST, size - 8):
            raise _damaged(path, f"its header of {length} bytes does not fit into {size}" if len(start) == 8 else f"it has {size} bytes")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise _damaged(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    found = {name: _tensor(path, name, entry) for name, entry in header.items()}
    end = 8 + length + max((stop for _, stop in found.values()), default=0)
    if end != size:
        raise _damaged(path, f"it has {size} bytes where its header promises {end}")
    return {name: stored for name, (stored, _) in found.items()}


def all_tensors(paths: Iterable[Path]) -> Mapping[str, Stored]:
    """The tensors of several files by name."""
    return {name: stored for path in paths for name, stored in tensors(path).items()}


def _tensor(path: Path, name: str, entry: Any) -> tuple[Stored, int]:
    """A tensor and where its bytes end, counted from the end of the header."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
        bits = _BITS.get(dtype)
        if not (0 <= start <= stop) or (bits is not None and (stop - start) * 8 != math.prod(shape) * bits):
            raise ValueError
        return Stored(str(dtype), shape), int(stop)
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, f"its header says something impossible of tensor {name}") from None


def _damaged(path: Path, why: str) -> DriftError:
    return DriftError(f"{path} is damaged or was cut short: {why}", mend="Copy or download the file again.")
