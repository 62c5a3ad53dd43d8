"""Reads one rollout's file, every line checked: checksum, chain, order. (`tails` reads only the last line.)

An unterminated last line is what a write that was cut off (or is going on) looks like: it does not count, and a notice says so. Anything else that is not
as it was written is damage: `Damaged` names file, line and byte offset, and nothing is read past it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drift_cli.errors import StoreError, mend_damage
from drift_cli.files import failed, release
from drift_cli.segments import Part
from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store import residuals as residual_file
from drift_cli.store.decode import Malformed
from drift_cli.store.files import open_inside
from drift_cli.store.line import LIMIT, End, EndLine, Line, TurnLine, first_link, link, read
from drift_cli.store.paths import RunPaths


class Damaged(StoreError):
    """A rollout's file is not as it was written. `line` counts from 1; `offset` is the line's first byte."""

    def __init__(self, path: Path, line: int, offset: int, problem: str) -> None:
        super().__init__(f"{path}: line {line} at byte {offset}: {problem}", mend=mend_damage(_run_id(path)))
        self.path, self.line, self.offset = path, line, offset


@dataclass(frozen=True)
class RolloutRecord:
    """What is committed of a rollout."""

    rollout: Rollout
    turns: tuple[Turn, ...]
    """`residual` is None unless it was asked for."""
    end: End | None
    epochs: tuple[int, ...]
    """One per turn: index into the manifest's epochs."""
    notices: tuple[str, ...] = ()
    """What was dropped, in sentences to show."""


@dataclass(frozen=True)
class Scan:
    """A file of lines after the full check."""

    lines: tuple[TurnLine, ...]
    end: End | None
    prev: str
    """What the next line's `prev` must be."""
    size: int
    """Bytes of whole lines; what is behind them does not count."""
    tail: int
    """Bytes behind them."""

    def record(self, rollout: Rollout, path: Path) -> RolloutRecord:
        """What it says of a rollout."""
        tail = f"{path}: {self.tail} bytes of an unfinished line at byte {self.size} do not count"
        turns, epochs = tuple(line.turn for line in self.lines), tuple(line.epoch for line in self.lines)
        return RolloutRecord(rollout, turns, self.end, epochs, (tail,) if self.tail else ())


def read_rollout(paths: RunPaths, rollout: Rollout, *, layers: int = 0, width: int = 0, residuals: bool = False) -> RolloutRecord:
    """A rollout, every line checked. One that was not begun has no turns.

    Args:
        paths: the run's.
        rollout: which one.
        layers: the number of residual layers its lines must have, 0 for any.
        width: their width, 0 for any.
        residuals: read the residual means too, (layers, width) float32 to each part of a turn that has any, and check them.

    Raises:
        StoreError: the file is damaged (`Damaged` names line and byte), cannot be read, or belongs elsewhere.
    """
    scan = scan_rollout(paths, rollout, layers=layers, width=width)
    record = scan.record(rollout, paths.rollout(rollout))
    if not residuals or not residual_file.committed_size(scan.lines):
        return record
    path = paths.residuals(rollout)
    fd = open_residuals(paths, rollout)
    try:
        return replace(record, turns=tuple(residual_file.unpack_all(fd, path, line, paths.run_id) for line in scan.lines))
    finally:
        release(fd)


def read_residual_layer(
    paths: RunPaths, rollout: Rollout, row: int, layers: int, width: int, part: Part = Part.ANSWER
) -> NDArray[np.float32]:
    """One layer's residual means, (turns, width) float32; NaN where a turn has none. Reads and checks only that layer's bytes.

    Args:
        paths: the run's.
        rollout: which one.
        row: the layer's place among the stored layers.
        layers: the number of stored layers.
        width: their width.
        part: of each reply; one without segments is all answer, and its whole is its answer.

    Raises:
        StoreError: as `read_rollout`, and where the means are damaged or of another shape.
    """
    scan = scan_rollout(paths, rollout, layers=layers, width=width)
    means = np.full((len(scan.lines), width), np.nan, dtype=np.float32)
    if residual_file.committed_size(scan.lines):
        path = paths.residuals(rollout)
        fd = open_residuals(paths, rollout)
        try:
            for place, line in enumerate(scan.lines):
                found = residual_file.unpack_row(fd, path, line, row, paths.run_id, part)
                if found is not None:
                    means[place] = found
        finally:
            release(fd)
    return means


def scan_rollout(paths: RunPaths, rollout: Rollout, *, layers: int = 0, width: int = 0) -> Scan:
    """Read and check a rollout's lines; none for one that was not begun. Raises as `read_rollout`."""
    path = paths.rollout(rollout)
    prev = first_link(paths.run_id, rollout)
    try:
        fd = open_inside(paths.root, path, os.O_RDONLY)
    except FileNotFoundError:
        return Scan((), None, prev, 0, 0)
    try:
        return scan_lines(fd, path, prev, layers=layers, width=width)
    finally:
        release(fd)


def scan_lines(fd: int, path: Path, prev: str, *, layers: int = 0, width: int = 0) -> Scan:
    """Read and check the lines of an open file, the first of which must follow `prev`. Raises as `read_rollout`."""
    scan, damage = scan_prefix(fd, path, prev, layers=layers, width=width)
    if damage is not None:
        raise damage
    return scan


def scan_prefix(fd: int, path: Path, prev: str, *, layers: int = 0, width: int = 0) -> tuple[Scan, Damaged | None]:
    """The lines of an open file up to the first damage, and that damage. (`tail` is 0 where there is damage.) Raises `StoreError`: unreadable."""
    lines: list[TurnLine] = []
    end: End | None = None
    size = tail = 0
    damage: Damaged | None = None
    for number, raw in enumerate(raw_lines(fd, path), 1):
        if not raw.endswith(b"\n"):
            tail = len(raw)
            if tail > LIMIT:
                damage, tail = Damaged(path, number, size, f"no line end within {LIMIT} bytes"), 0
            break
        try:
            line = _next_line(raw[:-1], prev, lines, end, (layers, width))
        except Malformed as error:
            damage = Damaged(path, number, size, str(error))
            break
        if isinstance(line, TurnLine):
            lines.append(line)
        else:
            end = line.end
        prev, size = link(raw[:-1]), size + len(raw)
    return Scan(tuple(lines), end, prev, size, tail), damage


def open_residuals(paths: RunPaths, rollout: Rollout) -> int:
    """Descriptor, for reading, of a file of residual means that must exist. Raises `StoreError`."""
    path = paths.residuals(rollout)
    try:
        return open_inside(paths.root, path, os.O_RDONLY)
    except FileNotFoundError:
        raise StoreError(
            f"{path} is missing, though turns are committed whose residual means it holds",
            mend=mend_damage(paths.run_id),
        ) from None


def _next_line(raw: bytes, prev: str, lines: list[TurnLine], end: End | None, shape: tuple[int, int]) -> Line:
    """A line as the successor of those before it. Raises `Malformed`."""
    line, named = read(raw)
    if named != prev:
        where = "the line before it" if lines else "this place: the file belongs to another run, cell or sample"
        raise Malformed(f"it does not follow {where} (prev is {named}, not {prev})")
    if end is not None:
        raise Malformed("it stands behind the rollout's end")
    done = len(lines)
    if isinstance(line, EndLine):
        expected = done if line.end.finish is Finish.COMPLETE else done + 1
        if line.end.turn != expected:
            raise Malformed(f"the rollout ends at turn {line.end.turn}, but has {done} turns")
    elif line.turn.index != done + 1:
        raise Malformed(f"turn {line.turn.index} stands where turn {done + 1} belongs")
    elif lines and (line.turn.user is None) != (lines[0].turn.user is None):
        raise Malformed("it is a line of another format than those before it")
    else:
        _check_stored(line, residual_file.committed_size(lines), *shape)
    return line


def _check_stored(line: TurnLine, offset: int, layers: int, width: int) -> None:
    for _, stored in line.blocks:
        if stored.offset != offset:
            raise Malformed(f"its residual means are at byte {stored.offset}, not behind those before it at byte {offset}")
        if stored.shape != (layers or stored.shape[0], width or stored.shape[1]):
            raise Malformed(f"its residual means have shape {stored.shape}, the run's have ({layers}, {width})")
        offset += stored.size


def raw_lines(fd: int, path: Path) -> Iterator[bytes]:
    """Lines with their newlines; the last one without, if it has none, or if it is longer than may be."""
    try:
        with os.fdopen(fd, "rb", closefd=False) as file:
            file.seek(0)
            while raw := file.readline(LIMIT + 1):
                yield raw
                if not raw.endswith(b"\n"):
                    return
    except OSError as error:
        raise failed("read", path, error) from error


def _run_id(path: Path) -> str:
    """The run of a rollout's file, for a message."""
    return path.parents[4].name if len(path.parents) > 4 else ""
