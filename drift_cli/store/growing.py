"""A file that only grows, with one writer: when `append` returns, the bytes are on disk.

Before and after each append the file is compared with what this writer left, so that where locks silently do nothing a second writer is found out instead
of mixed in. A failed write is taken back. A failed fsync is never tried again: what the disk holds is unknown then, and every later call raises.
"""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakSet

from drift_cli.errors import StoreError
from drift_cli.files import failed, release, write_some

_REOPEN = "End this process and run the same command again: whatever was committed is kept, the rest is made again."


class Forked(StoreError):
    """Somebody else has written a file that has one writer. What this writer committed before stands."""


class GrowingFile:
    """An open file (`O_RDWR | O_APPEND`) of which the first `size` bytes count; closes its descriptor."""

    def __init__(self, fd: int, path: Path, size: int) -> None:
        self.fd = fd
        self.path = path
        self.size = size
        self._broken: str | None = None
        _open_files.add(self)

    def append(self, data: bytes) -> None:
        """Write `data` behind what is there, and sync it.

        Raises:
            StoreError: `data` was taken back, or the file refuses every later write.
        """
        self.check()
        # Set until the end is reached, so that whatever interrupts this (a KeyboardInterrupt, say) leaves an object that refuses to go on.
        self._broken = "an earlier write to it was interrupted"
        self._write(memoryview(data))
        self._sync(len(data))
        self.size += len(data)
        self._broken = None
        self.check()

    def check(self) -> None:
        """Raise `StoreError` (`Forked` where another process wrote it) unless the file is as this writer left it, under its name."""
        if self._broken is not None:
            raise StoreError(f"{self.path} cannot be written any more: {self._broken}", mend=_REOPEN)
        try:
            held, named = os.fstat(self.fd), os.lstat(self.path)
        except OSError as error:
            self._broken = "it was removed"
            raise failed("find", self.path, error) from error
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino):
            self._broken = "it was replaced by another file while this process wrote it"
        elif held.st_size != self.size:
            self._broken = f"this process left it at {self.size} bytes, and it has {held.st_size}: another process writes it too"
        if self._broken is not None:
            raise Forked(f"{self.path}: {self._broken}", mend="Only one process may write a rollout: stop all but one.")

    def cut(self, size: int) -> None:
        """Make the first `size` bytes the whole file; not yet synced. Raises `StoreError`, and the file cannot be written any more."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            self._broken = "bytes that do not count could not be taken back"
            raise failed("shorten", self.path, error) from error
        self.size = size

    def sync(self) -> None:
        """Make what is there durable. Raises `StoreError`, and the file cannot be written any more."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            self._broken = "an earlier fsync of it failed, so what the disk holds is not known"
            raise failed("sync", self.path, error) from error

    def poison(self, reason: str) -> None:
        """Refuse every later write, for this reason if there was none before."""
        self._broken = self._broken or reason

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.poison("it is closed")
            release(fd)

    def forget(self) -> None:
        """In a forked child: drop the descriptor, so that the parent's lock ends with the parent."""
        if self.fd >= 0:
            release(self.fd)
        self.fd, self._broken = -1, "it belongs to the process that opened it, not to its fork"

    def _write(self, data: memoryview) -> None:
        done = 0
        try:
            while done < len(data):
                done += write_some(self.fd, data[done:])
        except OSError as error:
            self._take_back(done)
            raise failed("write", self.path, error) from error

    def _take_back(self, done: int) -> None:
        """Cut `done` bytes of a failed write off again. Where that fails they stay as an unterminated tail, and nothing more is written."""
        self._broken = "an earlier write to it failed and could not be taken back"
        try:
            # Another size means that not only our bytes are there: those of others are not ours to cut.
            ours = os.fstat(self.fd).st_size == self.size + done
            if ours and done:
                os.ftruncate(self.fd, self.size)
        except OSError:
            return
        if ours:
            self._broken = None

    def _sync(self, done: int) -> None:
        """Sync `done` bytes just written; where that fails, take them back, so that nobody reads from memory what the disk may not have."""
        try:
            self.sync()
        except StoreError:
            reason = self._broken
            self._take_back(done)
            self._broken = reason
            raise


_open_files: WeakSet[GrowingFile] = WeakSet()


def _forget_all() -> None:
    for file in list(_open_files):
        file.forget()


os.register_at_fork(after_in_child=_forget_all)
