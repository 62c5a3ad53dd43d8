"""Remembers the digests of large files, so that a model of many gigabytes is read once for its identity and not at every command.

One small JSON file per model file, in the user's cache folder (`$XDG_CACHE_HOME/drift/digests`, else `~/.cache/drift/digests`), replaced as a whole: any
number of processes may read and write it. A digest counts only as long as the file has the path, size, inode, time of its last write and time of its last
change (ctime, which nobody can set back) that it was read with, and as long as the entry's own checksum holds. Times are coarse, so what was written
within the last two seconds is not remembered. Where nothing can be written, the files are hashed every time.

What this cannot see: a file system that keeps no ctime and a file rewritten in place with its old size and time; or somebody who forges an entry with its
checksum. `drift runs verify --weights` reads every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SMALL = 4 << 20
"""Bytes: files up to this size are hashed every time."""
_SETTLED = 2_000_000_000
"""Nanoseconds since a file's last change before its times can be relied on."""


def cache_folder() -> Path | None:
    """Where drift keeps what it can make again; None where there is no home."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "drift"
    except RuntimeError:
        return None


def recall(path: Path) -> str | None:
    """The digest of a file that is as it was when it was hashed; None where that is not known."""
    place = _place(path)
    if place is None:
        return None
    try:
        facts = _facts(path, path.stat())
        entry = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("digest"), str):
        return None
    return entry["digest"] if entry == _sealed({**facts, "digest": entry["digest"]}) else None


def remember(path: Path, facts: os.stat_result, digest: str) -> None:
    """Keep a file's digest; `facts` is what the file was when it was read. Does nothing where that cannot be done."""
    place = _place(path)
    newest = max(facts.st_mtime_ns, facts.st_ctime_ns)
    if place is None or facts.st_size <= SMALL or time.time_ns() - newest < _SETTLED:
        return
    entry = _sealed({**_facts(path, facts), "digest": digest})
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(6)}.tmp")
    with suppress(OSError):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entry))
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)


def _place(path: Path) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _facts(path: Path, found: os.stat_result) -> dict[str, Any]:
    return {
        "path": os.fsencode(path).hex(),
        "size": found.st_size,
        "inode": found.st_ino,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _sealed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with a checksum of itself."""
    return {**entry, "checksum": hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()}
