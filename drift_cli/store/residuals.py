"""A rollout's residual means: raw little-endian float32, (layers, width) for each turn that has any, one turn behind the other.

A reply with segments has up to three such blocks, one behind the other: of its answer, of its reasoning, and of all its tokens. A turn's line says where its
means are and carries a checksum of each layer. Bytes beyond those that lines speak of belong to a turn whose line was never written: they do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from drift_cli.errors import StoreError, mend_damage
from drift_cli.segments import Part
from drift_cli.spec import Turn
from drift_cli.store.decode import Malformed
from drift_cli.store.files import read_at
from drift_cli.store.line import Stored, TurnLine


def pack(residual: NDArray[Any], offset: int, layers: int, width: int) -> tuple[bytes, Stored]:
    """Bytes of residual means (layers, width) float32, and what a turn's line says of them.

    Args:
        residual: the means.
        offset: bytes before them in the file.
        layers: the number of layers they must have.
        width: the width they must have; 0 for any.

    Raises:
        Malformed: another shape or dtype, or numbers that are not finite.
    """
    found = np.asarray(residual)
    if found.ndim != 2 or found.shape[0] != layers or found.shape[1] != (width or found.shape[1]) or found.size == 0:
        raise Malformed(f"its residual means have shape {found.shape}, not ({layers}, {width or 'width'})")
    if found.dtype.kind != "f" or found.dtype.itemsize != 4:
        raise Malformed(f"its residual means are {found.dtype}, not float32")
    if not np.isfinite(found).all():
        raise Malformed("its residual means are not all finite")
    rows = found.astype("<f4", order="C")
    return rows.tobytes(), Stored(offset, (rows.shape[0], rows.shape[1]), tuple(f"{crc32(row.tobytes()):08x}" for row in rows))


def pack_all(turn: Turn, offset: int, layers: int, width: int) -> tuple[bytes, Stored | None, dict[Part, Stored]]:
    """Bytes of all residual means of a turn, and what its line says of the answer's and of the other parts'. Raises as `pack`."""
    if set(turn.means) - {Part.REASONING, Part.ALL}:
        raise Malformed("it has residual means of parts that are none")
    data, found = b"", {}
    for part in (Part.ANSWER, Part.REASONING, Part.ALL):
        mean = turn.residual if part is Part.ANSWER else turn.means.get(part)
        if mean is not None:
            packed, found[part] = pack(mean, offset + len(data), layers, width)
            data, width = data + packed, found[part].shape[1]
    return data, found.pop(Part.ANSWER, None), found


def unpack(fd: int, path: Path, line: TurnLine, run_id: str, part: Part = Part.ANSWER) -> NDArray[np.float32] | None:
    """A turn's residual means (layers, width) of one part from the open file; None where it has none. `StoreError` where they are damaged."""
    stored = line.of(part)
    if stored is None:
        return None
    data = read_at(fd, path, stored.size, stored.offset)
    for row in range(stored.shape[0]):
        _check_row(data[row * stored.row_size : (row + 1) * stored.row_size], line, part, row, path, run_id)
    return np.frombuffer(data, dtype="<f4").reshape(stored.shape)


def unpack_all(fd: int, path: Path, line: TurnLine, run_id: str) -> Turn:
    """A turn with all its residual means from the open file. `StoreError` where they are damaged."""
    found = {part: unpack(fd, path, line, run_id, part) for part, _ in line.blocks}
    answer = found.pop(Part.ANSWER, None)
    return replace(line.turn, residual=answer, means={part: mean for part, mean in found.items() if mean is not None})


def unpack_row(fd: int, path: Path, line: TurnLine, row: int, run_id: str, part: Part = Part.ANSWER) -> NDArray[np.float32] | None:
    """One layer (width,) of a turn's residual means, without reading the others; None where it has none. `StoreError` where it is damaged."""
    stored = line.of(part)
    if stored is None:
        return None
    if not 0 <= row < stored.shape[0]:
        raise StoreError(f"{path}: turn {line.turn.index} has residual means of {stored.shape[0]} layers; there is no row {row}")
    data = read_at(fd, path, stored.row_size, stored.offset + row * stored.row_size)
    _check_row(data, line, part, row, path, run_id)
    return np.frombuffer(data, dtype="<f4")


def check_all(fd: int, path: Path, lines: Sequence[TurnLine], run_id: str) -> None:
    """Raise `StoreError` unless every turn's residual means are there and whole."""
    for line in lines:
        unpack_all(fd, path, line, run_id)


def committed_size(lines: Sequence[TurnLine]) -> int:
    """Bytes that the lines speak of."""
    return sum(line.size for line in lines)


def _check_row(data: bytes, line: TurnLine, part: Part, row: int, path: Path, run_id: str) -> None:
    stored = line.of(part)
    assert stored is not None
    offset = stored.offset + row * stored.row_size
    of = f"{part} of turn" if line.turn.segments else "turn"
    where = f"{path}: residual means of {of} {line.turn.index}, row {row}, at byte {offset}"
    mend = mend_damage(run_id)
    if len(data) < stored.row_size:
        raise StoreError(f"{where}: the file ends too early", mend=mend)
    if f"{crc32(data):08x}" != stored.crc[row]:
        raise StoreError(f"{where}: the checksum does not match", mend=mend)
