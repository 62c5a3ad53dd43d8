"""How far a rollout is, from its last whole line alone: status for ten thousand rollouts in a second.

The line's checksum is checked; what stands before it is not read (`reader` does, before anything is added or analysed). What is behind the last newline
does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from drift_cli.files import failed, release
from drift_cli.spec import Cell, Rollout
from drift_cli.store.decode import Malformed
from drift_cli.store.files import open_folder, open_in, open_inside, read_at, size_of
from drift_cli.store.line import LIMIT, End, read_state
from drift_cli.store.paths import RunPaths, sample_name
from drift_cli.store.reader import Damaged

_BLOCK = 8192
"""Bytes read from a file's end at first: most last lines fit."""


def tail_state(paths: RunPaths, rollout: Rollout) -> tuple[int, End | None]:
    """Committed turns, and the end if there is one, from the last whole line alone: its checksum is checked, what is before it is not read."""
    path = paths.rollout(rollout)
    try:
        fd = open_inside(paths.root, path, os.O_RDONLY)
    except FileNotFoundError:
        return 0, None
    try:
        return state_of(fd, path)
    finally:
        release(fd)


def cell_states(paths: RunPaths, cell: Cell, samples: int) -> Iterator[tuple[int, End | None]]:
    """`tail_state` of a cell's rollouts 0 … samples - 1, with the folder opened once."""
    where = paths.cell(cell)
    try:
        folder = open_folder(paths.root, where)
    except FileNotFoundError:
        yield from [(0, None)] * samples
        return
    try:
        present = names_in(folder, where)
        for sample in range(samples):
            name = sample_name(sample, "jsonl")
            yield _state_in(folder, where / name) if name in present else (0, None)
    finally:
        release(folder)


def names_in(folder: int, path: Path) -> dict[str, int]:
    """What stands in an open folder: names and inodes. Raises `StoreError`."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.inode() for entry in entries}
    except OSError as error:
        raise failed("read", path, error) from error


def _state_in(folder: int, path: Path) -> tuple[int, End | None]:
    try:
        fd = open_in(folder, path, os.O_RDONLY)
    except FileNotFoundError:
        return 0, None
    try:
        return state_of(fd, path)
    finally:
        release(fd)


def state_of(fd: int, path: Path) -> tuple[int, End | None]:
    """`tail_state` of an open file."""
    found = _last_line(fd, path)
    if found is None:
        return 0, None
    raw, offset = found
    try:
        return read_state(raw)
    except Malformed as error:
        raise Damaged(path, _number(fd, path, offset), offset, str(error)) from None


def _last_line(fd: int, path: Path) -> tuple[bytes, int] | None:
    """The last line that has a newline, without it, and its offset; None where there is no such line."""
    size = size_of(fd, path)
    block = _BLOCK
    while True:
        start = max(0, size - block)
        data = read_at(fd, path, size - start, start)
        stop = data.rfind(b"\n")
        begin = data.rfind(b"\n", 0, max(stop, 0)) + 1
        if stop >= 0 and (begin > 0 or start == 0):
            return data[begin:stop], start + begin
        if start == 0:
            return None
        if block > 2 * LIMIT:
            raise Damaged(path, _number(fd, path, start), start, f"no line end within {LIMIT} bytes")
        block *= 4


def _number(fd: int, path: Path, offset: int) -> int:
    """The number of the line that begins at `offset`; counted only where it is to be named."""
    number, place = 1, 0
    while place < offset and (data := read_at(fd, path, min(1 << 20, offset - place), place)):
        number += data.count(b"\n")
        place += len(data)
    return number
