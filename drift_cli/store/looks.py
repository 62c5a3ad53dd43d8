"""When results were looked at, and what there was to see: `looks.jsonl`, a line of JSON for each look at data that had not been seen so before. No torch.

Looks are data, not news: which test is right depends on them. So the file is append-only, each line carries the digest of the line before and its own, and a
file whose lines do not follow one another is refused. Looking again at the same rollouts on the same measure adds no line. Several processes may write: a line
is one write under a lock.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from drift_cli.errors import StoreError
from drift_cli.files import failed, release, sync_folder
from drift_cli.spec import digest_of
from drift_cli.store.decode import Malformed, decode, parse
from drift_cli.store.files import open_inside, read_at
from drift_cli.store.lock import unlock, wait_for

if TYPE_CHECKING:
    from drift_cli.store.paths import RunPaths

_LIMIT = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was there of one cell."""

    transcript: str
    condition: str
    temperature: float
    rollouts: int
    """With at least one turn."""
    turns: int
    """Of all of them together."""
    ended: int
    """Rollouts with nothing left to do."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at results."""

    time: str
    """ISO, UTC."""
    by: str
    """What showed the results: `stats`, `generate`, `report`, `api`."""
    axis: str
    layer: int | None
    measure: str
    """The primary one."""
    against: str
    cells: tuple[Seen, ...]
    rule: str | None = None
    """What decides that more data comes, where something does: `half-width 0.1`."""
    previous: str = ""
    """Digest of the look before; "" for the first."""
    digest: str = ""
    """SHA-256 of everything above."""

    @property
    def key(self) -> tuple[object, ...]:
        """What is seen: two looks with the same are one."""
        return self.axis, self.layer, self.measure, self.against, self.cells, self.rule


def now() -> str:
    """The time, as looks have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_looks(paths: RunPaths) -> tuple[Look, ...]:
    """The looks so far, oldest first; an unfinished last line does not count. Raises `StoreError` where a line was changed or taken out."""
    try:
        fd = open_inside(paths.root, paths.looks, os.O_RDONLY)
    except FileNotFoundError:
        return ()
    try:
        return _parsed(read_at(fd, paths.looks, _LIMIT, 0), paths.looks)
    finally:
        release(fd)


def append_look(paths: RunPaths, look: Look) -> bool:
    """Record a look, and sync it; False where the same was seen before. Raises `StoreError`."""
    fd = open_inside(paths.root, paths.looks, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        wait_for(fd, paths.looks)
        data = read_at(fd, paths.looks, _LIMIT, 0)
        known = _parsed(data, paths.looks)
        if look.key in {one.key for one in known}:
            return False
        line = orjson.dumps(asdict(_sealed(look, known))) + b"\n"
        _write(fd, paths.looks, b"\n" + line if data and not data.endswith(b"\n") else line)
    finally:
        unlock(fd)
        release(fd)
    if not known:
        sync_folder(paths.root)
    return True


def _sealed(look: Look, known: Sequence[Look]) -> Look:
    chained = replace(look, previous=known[-1].digest if known else "", digest="")
    return replace(chained, digest=_digest(chained))


def _digest(look: Look) -> str:
    fields = asdict(look)
    del fields["digest"]
    return digest_of(fields)


def _parsed(data: bytes, path: Path) -> tuple[Look, ...]:
    found: list[Look] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            value = parse(line)
        except Malformed:
            continue  # a write that was cut off: the look was not recorded, and whoever looked was told
        try:
            look = decode(Look, value)
        except Malformed as error:
            raise _damaged(path, number, str(error)) from None
        if look.digest != _digest(look) or look.previous != (found[-1].digest if found else ""):
            raise _damaged(path, number, "it does not follow the line before: a look was changed or taken out")
        found.append(look)
    return tuple(found)


def _damaged(path: Path, number: int, problem: str) -> StoreError:
    return StoreError(
        f"{path}: line {number}: {problem}",
        mend="Restore it from a copy. Without it nobody knows how often results were looked at, so no test of this run holds.",
    )


def _write(fd: int, path: Path, line: bytes) -> None:
    try:
        written = os.write(fd, line)
        os.fsync(fd)
    except OSError as error:
        raise failed("write", path, error) from error
    if written < len(line):
        raise StoreError(f"{path}: only {written} of a line's {len(line)} bytes could be written", mend="Free some space on that disk.")
