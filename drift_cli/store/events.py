"""What happened to a run: starts, resumes, signals, out-of-memory, refusals; a line of JSON each, append only, with time, host and process.

Several processes may write at once: an event is one write of one whole line, under a lock. A line that was cut off by a crash stays where it is; the
next event begins a new line, and readers pass over what is not an event (`verify` names it).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from drift_cli.errors import StoreError
from drift_cli.files import failed, release, sync_folder
from drift_cli.store.decode import Malformed, parse
from drift_cli.store.files import open_inside, read_at
from drift_cli.store.lock import unlock, wait_for
from drift_cli.store.paths import RunPaths

_LIMIT = 1 << 30


def append_event(paths: RunPaths, kind: str, fields: Mapping[str, Any]) -> None:
    """Add an event, and sync it. Raises `StoreError`."""
    base = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind, "host": socket.gethostname(), "pid": os.getpid()}
    try:
        line = orjson.dumps({**base, **fields, **base}) + b"\n"
    except orjson.JSONEncodeError as error:
        raise StoreError(f"{paths.events}: event {kind!r} cannot be written as JSON: {error}") from error
    fd = open_inside(paths.root, paths.events, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        # Without the lock, the end of a line that another process is writing could look like one that was cut off.
        wait_for(fd, paths.events)
        fresh = _append(fd, paths.events, line)
    finally:
        unlock(fd)
        release(fd)
    if fresh:
        sync_folder(paths.root)


def read_events(paths: RunPaths) -> tuple[list[dict[str, Any]], list[str]]:
    """Events, oldest first, and in words the lines that are none. Raises `StoreError` where the file cannot be read."""
    try:
        fd = open_inside(paths.root, paths.events, os.O_RDONLY)
    except FileNotFoundError:
        return [], []
    try:
        data = read_at(fd, paths.events, _LIMIT, 0)
    finally:
        release(fd)
    events, problems = [], []
    for number, line in enumerate(data.splitlines(), 1):
        event = _event(line)
        if event is None:
            problems.append(f"line {number} is not an event (a write that was cut off)")
        else:
            events.append(event)
    return events, problems


def _append(fd: int, path: Path, line: bytes) -> bool:
    """Write one line. True where it is the file's first."""
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        written = os.write(fd, line)
        os.fsync(fd)
    except OSError as error:
        raise failed("write", path, error) from error
    if written < len(line):
        raise StoreError(f"{path}: only {written} of an event's {len(line)} bytes could be written", mend="Free some space on that disk.")
    return size == 0


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse(line)
    except Malformed:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("kind"), str) else None
