"""Who may write: an exclusive `flock`, which ends with its process however that ends, and a note for people that says who has it.

The lock decides; the note only names. A note without a lock is left over from a process that was killed, and is overwritten. Where a file system has no
locks at all, that is said; where it pretends to have them, the file's size and chain expose a second writer (see `growing` and `line`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from drift_cli.errors import StoreError
from drift_cli.files import failed, release, write_all
from drift_cli.store.decode import Malformed, decode, parse
from drift_cli.store.files import open_inside, read_inside

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_PATIENCE = 10.0
"""Seconds."""
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}")
_SINCE = re.compile(r"[0-9T:Z.+-]{1,40}")


class InUse(StoreError):
    """Another process is writing; the message names it."""


@dataclass(frozen=True)
class Owner:
    """A writing process."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        # The file may hold anything: only what looks like a host's name reaches a terminal.
        host = self.host if _HOST.fullmatch(self.host) else "an unnamed host"
        since = f" since {self.since}" if _SINCE.fullmatch(self.since) else ""
        return f"process {self.pid} on {host}{since}"

    @property
    def gone(self) -> bool:
        """It was on this host and is there no more. (Of another host nothing can be said; another process may have its number.)"""
        if self.host != socket.gethostname():
            return False
        try:
            # Process numbers are positive; what is not would address a group, and what is too large is nobody's.
            os.kill(self.pid, 0) if self.pid > 0 else None
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # somebody else's
            return False
        return self.pid <= 0


def me() -> Owner:
    """This process."""
    return Owner(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))


def lock(fd: int) -> bool:
    """Lock an open file for this process alone, at once. False where the file system has no locks; `BlockingIOError` where somebody has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise BlockingIOError(error.errno, "locked") from error
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def lock_rollout(fd: int, path: Path, root: Path, note: Path) -> str | None:
    """Lock a rollout's open file and leave a note of who did.

    Returns:
        None, or a sentence to show where the file system has no locks.

    Raises:
        InUse: another process (or another log of this one) has it.
        StoreError: the lock or the note cannot be made.
    """
    try:
        locked = lock(fd)
    except BlockingIOError:
        raise InUse(
            f"{path} is being written by {read_owner(root, note) or 'another process (it left no name)'}",
            mend="Wait until it is done, or stop it: a rollout has one writer.",
        ) from None
    except OSError as error:
        raise failed("lock", path, error) from error
    _write_note(root, note)
    return None if locked else f"{path}: this file system has no locks, so nothing keeps a second process from writing; run only one"


def unlock_rollout(fd: int, note: Path) -> None:
    """Take the note away, then give the lock up: in this order, so that the note of whoever comes next stays."""
    with suppress(OSError):
        note.unlink()
    unlock(fd)


def unlock(fd: int) -> None:
    """Give a lock up: explicitly, since a descriptor that was duplicated elsewhere, or could not be closed, would keep it."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def hold(root: Path, path: Path) -> Iterator[None]:
    """Hold the lock on `path`, an empty file below `root`, waiting for it. Raises `InUse`, `StoreError`."""
    fd = open_inside(root, path, os.O_RDWR | os.O_CREAT)
    try:
        wait_for(fd, path)
        yield
    finally:
        unlock(fd)
        release(fd)


def wait_for(fd: int, path: Path) -> None:
    """Lock an open file, waiting a few seconds for those who hold it only to write a little. Raises `InUse`, `StoreError`.

    Where the file system has no locks, nothing is waited for.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            lock(fd)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise InUse(f"{path} is locked by another process", mend="Wait until it is done, or stop it.") from None
            time.sleep(0.02)
        except OSError as error:
            raise failed("lock", path, error) from error
        else:
            return


def _write_note(root: Path, note: Path) -> None:
    fd = open_inside(root, note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(fd, orjson.dumps(asdict(me())))
    except OSError as error:
        raise failed("write", note, error) from error
    finally:
        release(fd)


def read_owner(root: Path, note: Path) -> Owner | None:
    """Who left a note; None where there is none, or none that can be read. It may be of a process that was killed."""
    try:
        return decode(Owner, parse(read_inside(root, note, 4096)))
    except (OSError, StoreError, Malformed):
        return None
