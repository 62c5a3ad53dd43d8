"""What local weights are called by: a digest of every byte that loading reads.

`tree1:` and SHA-256 (hex) over lines `<name> <size> <file digest>`, sorted by name, where a file's digest is SHA-256 over the SHA-256 of each of its
chunks of 16 MiB. Chunks are hashed by several threads (hashlib lets them run side by side), so the digest costs what reading the files costs. Nothing of
the path is in it.

Digests of large files are remembered (`digests.py`). Earlier versions of drift looked at samples of large files only; `sampled_digest` is what they called a
folder by, kept so that their runs can be gone on with.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drift_cli.errors import DriftError
from drift_cli.models import digests
from drift_cli.names import CONTENT

CHUNK = 16 << 20
"""Bytes hashed by a thread at a time. Part of what the digest means."""
PATIENCE = 2.0
"""Seconds of hashing before anything is said about it."""
_EVERY = 10.0
"""Seconds between two sentences about how far it is."""

Say = Callable[[str], None]

_local = threading.local()


def tree_digest(files: Mapping[str, Path], say: Say | None = None, *, remembered: bool = True) -> str:
    """The digest of files by the names that loading knows them by.

    Args:
        files: name → path.
        say: told, once it has taken two seconds, how much is being read.
        remembered: take digests of large files from where they are remembered; False reads every byte.

    Raises:
        DriftError: a file cannot be read, or changed while it was.
    """
    sizes = {name: path.stat().st_size for name, path in files.items()}
    known = {name: digests.recall(path) for name, path in files.items()} if remembered else {}
    left = [name for name in sorted(files) if known.get(name) is None]
    meter = _Meter(sum(sizes[name] for name in left), say)
    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)) as pool:
        found = {name: known.get(name) or _file_digest(files[name], pool, meter) for name in sorted(files)}
    meter.finish()
    lines = "".join(f"{name} {sizes[name]} {found[name]}\n" for name in sorted(files))
    return CONTENT + hashlib.sha256(lines.encode()).hexdigest()


def _file_digest(path: Path, pool: ThreadPoolExecutor, meter: _Meter) -> str:
    """SHA-256 over the digests of a file's chunks; remembered where the file is large."""
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            parts = pool.map(lambda start: _chunk(file.fileno(), start, before.st_size, meter), range(0, before.st_size, CHUNK))
            digest = hashlib.sha256(b"".join(parts)).hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise DriftError(
            f"{path} cannot be read: {error.strerror or error}", mend="Check the disk, and that you may read the file."
        ) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DriftError(f"{path} changed while it was read", mend="Wait until it is written, then run the same line again.")
    digests.remember(path, after, digest)
    return digest


def _chunk(descriptor: int, start: int, size: int, meter: _Meter) -> bytes:
    """SHA-256 of one chunk. Each thread has one buffer for all its chunks."""
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(bytearray(CHUNK))
    length = min(CHUNK, size - start)
    done = 0
    while done < length:
        got = os.preadv(descriptor, [_local.buffer[done:length]], start + done)
        if not got:
            raise OSError("it became shorter while it was read")
        done += got
    digest = hashlib.sha256(_local.buffer[:length]).digest()
    meter.add(length)
    return digest


class _Meter:
    """Says how much has been hashed, and how fast, where it takes long. Called by all threads."""

    def __init__(self, total: int, say: Say | None) -> None:
        self.total, self.done, self.say = total, 0, say
        self.started = time.monotonic()
        self.due = self.started + PATIENCE
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many bytes more."""
        with self.lock:
            self.done += count
            now = time.monotonic()
            if self.say is not None and now >= self.due:
                self.due = now + _EVERY
                rate = self.done / (now - self.started)
                self.say(
                    f"hashing the model's files to identify them: {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB, {rate / 1e9:.2f} GB/s"
                )

    def finish(self) -> None:
        """All is hashed."""
        took = time.monotonic() - self.started
        if self.say is not None and took >= PATIENCE:
            self.say(f"hashed {self.total / 1e9:.1f} GB in {took:.0f} s ({self.total / took / 1e9:.2f} GB/s)")


_WHOLE = 64 << 20
"""Bytes: of larger files only samples were looked at."""
_BLOCKS, _BLOCK = 64, 1 << 20


def sampled_digest(folder: Path) -> str:
    """What drift called a folder by before `tree1:`.

    SHA-256 over configuration, tokenizer and weights; of files beyond 64 MiB only size, header and 64 spread blocks of 1 MiB.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".json", ".jinja", ".model", ".txt", ".safetensors"}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for block in range(_BLOCKS):
                file.seek(block * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()
