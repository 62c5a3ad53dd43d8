"""What a GGUF file says of itself: metadata and the table of its tensors, read without any tensor.

The format (versions 2 and 3, little-endian): `GGUF`, version, counts of tensors and of metadata pairs; the pairs; the table (name, dimensions, type,
offset); and, from the next multiple of `general.alignment` on, the tensors' bytes. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift_cli.errors import DriftError

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """An entry of the table."""

    shape: tuple[int, ...]
    kind: int
    """ggml's number of the type."""
    offset: int
    """Bytes from where the tensors begin."""


@dataclass(frozen=True)
class Header:
    """What stands before the tensors, and how large the file is."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    start: int
    """Where the tensors begin."""
    size: int
    """Bytes of the file."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it."""
        return str(self.metadata.get("general.architecture", "unknown"))


def read_header(path: Path) -> Header:
    """Read a file's header. `DriftError` where it is not a GGUF file or was cut short within the header."""
    size = path.stat().st_size
    if size < 24:
        raise _damaged(path, f"it has {size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise DriftError(
                f"{path} is not a GGUF file", mend="Give a file that begins with the letters GGUF, or a folder of safetensors."
            )
        try:
            return _read(_Cursor(data, 4), size, path)
        except (struct.error, UnicodeDecodeError, MemoryError, OverflowError):
            raise _damaged(path, "its header ends in the middle") from None


def _read(at: _Cursor, size: int, path: Path) -> Header:
    version = at.number("I")
    if version not in (2, 3):
        raise DriftError(f"{path} is GGUF version {version}; versions 2 and 3 are read", mend="Convert it again with a current llama.cpp.")
    tensor_count, pair_count = at.number("Q"), at.number("Q")
    metadata = {}
    for _ in range(pair_count):
        name = at.text()
        metadata[name] = at.value(at.number("I"))
    tensors = {}
    for _ in range(tensor_count):
        name = at.text()
        shape = tuple(at.number("Q") for _ in range(at.number("I")))
        tensors[name] = Tensor(shape, at.number("I"), at.number("Q"))
    alignment = metadata.get("general.alignment", 32)
    return Header(metadata, tensors, -(-at.place // alignment) * alignment, size)


def check_size(path: Path, header: Header, sizes: Mapping[int, tuple[int, int]]) -> None:
    """Refuse a file that ends before its last tensor does. `sizes`: type → elements and bytes of a block."""
    for name, tensor in header.tensors.items():
        if tensor.kind not in sizes:
            raise DriftError(
                f"{path}: tensor {name} is of ggml type {tensor.kind}, which the package gguf does not know",
                mend="pip install --upgrade gguf",
            )
        elements, width = sizes[tensor.kind]
        end = header.start + tensor.offset + math.prod(tensor.shape) // elements * width
        if end > header.size:
            raise _damaged(path, f"it has {header.size} bytes, and tensor {name} ends at {end}")


def _damaged(path: Path, why: str) -> DriftError:
    return DriftError(f"{path} is damaged or was cut short: {why}", mend="Copy or download the file again.")


class _Cursor:
    """Reads one value after another. Raises `struct.error` at the end of the data."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data, self.place = data, place

    def number(self, layout: str) -> Any:
        """A number as `struct` spells it, little-endian."""
        (value,) = struct.unpack_from("<" + layout, self.data, self.place)
        self.place += struct.calcsize("<" + layout)
        return value

    def text(self) -> str:
        """Eight bytes of length, then UTF-8."""
        length = self.number("Q")
        found = self.data[self.place : self.place + length]
        if len(found) < length:
            raise struct.error
        self.place += length
        return found.decode()

    def value(self, kind: int) -> Any:
        """A metadata value of one of the format's types."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise struct.error
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            layout = f"<{count}{_NUMBERS[inner]}"
            values = struct.unpack_from(layout, self.data, self.place)
            self.place += struct.calcsize(layout)
            return list(values)
        return [self.value(inner) for _ in range(count)]
