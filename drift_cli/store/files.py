"""Files inside a run, never reached through a symbolic link.

Failures of the operating system leave here as `StoreError`s that name the file and what to do about it; only `FileNotFoundError` passes through where a
docstring says so. A run's folder itself (and what lies above it) may be a symbolic link: people keep runs on other disks that way.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from drift_cli.errors import StoreError
from drift_cli.files import FOLDER, PLAIN, failed, open_file, release, sync_folder


def sync_folders(root: Path, folder: Path) -> None:
    """Make every name on the way from the folder above `root` down to what `folder` holds durable. Raises `StoreError`."""
    for path in (folder, *folder.parents):
        sync_folder(path)
        if path == root.parent:
            break


def create_inside(root: Path, folder: Path) -> None:
    """Create `folder` below the existing folder `root`, following no symbolic link. `sync_folders` makes it durable. Raises `StoreError`."""
    fd, here = _step(None, root), root
    for name in folder.relative_to(root).parts:
        here /= name
        try:
            inner = _step(fd, here)
        except FileNotFoundError:
            inner = _make(fd, here)
        finally:
            release(fd)
        fd = inner
    release(fd)


def _make(parent: int, path: Path) -> int:
    """Create a folder in an open one, and open it."""
    try:
        with suppress(FileExistsError):  # another process was faster
            os.mkdir(path.name, dir_fd=parent)
    except OSError as error:
        raise failed("create", path, error) from error
    return _step(parent, path)


def open_folder(root: Path, folder: Path) -> int:
    """Descriptor of `folder`, at or below `root`, following no symbolic link below `root`. Raises `StoreError`, `FileNotFoundError`."""
    fd, here = _step(None, root), root
    for name in folder.relative_to(root).parts:
        here /= name
        try:
            inner = _step(fd, here)
        finally:
            release(fd)
        fd = inner
    return fd


def open_inside(root: Path, path: Path, flags: int) -> int:
    """Descriptor of the plain file `path` below `root`, following no symbolic link below `root`. Raises `StoreError`, `FileNotFoundError`."""
    folder = open_folder(root, path.parent)
    try:
        return open_in(folder, path, flags)
    finally:
        release(folder)


def open_in(folder: int, path: Path, flags: int) -> int:
    """Descriptor of the plain file `path`, whose folder is open as `folder`. Raises `StoreError`, `FileNotFoundError`; with O_EXCL, `FileExistsError`."""
    try:
        fd = open_file(path.name, flags | PLAIN, folder)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise failed("open", path, error) from error
    try:
        plain = stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError as error:
        release(fd)
        raise failed("open", path, error) from error
    if not plain:
        release(fd)
        raise StoreError(f"{path} is not a plain file", mend="Nothing else may stand there: move it away.")
    return fd


def read_inside(root: Path, path: Path, limit: int) -> bytes:
    """Content of the plain file `path` below `root`. Raises `StoreError`, also where it is longer than `limit` bytes, and `FileNotFoundError`."""
    fd = open_inside(root, path, os.O_RDONLY)
    try:
        data = read_at(fd, path, limit + 1, 0)
    finally:
        release(fd)
    if len(data) > limit:
        raise StoreError(f"{path} is longer than {limit} bytes: it is not what its name says")
    return data


def read_at(fd: int, path: Path, length: int, offset: int) -> bytes:
    """Up to `length` bytes from byte `offset` on; fewer only where the file ends. Raises `StoreError`."""
    parts = []
    try:
        length = min(length, max(0, os.fstat(fd).st_size - offset))
        while length > 0 and (part := os.pread(fd, length, offset)):
            parts.append(part)
            length, offset = length - len(part), offset + len(part)
    except OSError as error:
        raise failed("read", path, error) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def parts_from(fd: int, path: Path, offset: int) -> Iterator[bytes]:
    """What stands in an open file from byte `offset` on, a MiB at a time. Raises `StoreError`."""
    while part := read_at(fd, path, 1 << 20, offset):
        yield part
        offset += len(part)


def digest_from(fd: int, path: Path, offset: int) -> str:
    """SHA-256 (hex) of what stands in an open file from byte `offset` on. Raises `StoreError`."""
    found = hashlib.sha256()
    for part in parts_from(fd, path, offset):
        found.update(part)
    return found.hexdigest()


def size_of(fd: int, path: Path) -> int:
    """Bytes of an open file. Raises `StoreError`."""
    try:
        return os.fstat(fd).st_size
    except OSError as error:
        raise failed("read", path, error) from error


def _step(parent: int | None, path: Path) -> int:
    """Open the folder `path`, in its open parent and unless it is a symbolic link; a run's own folder, which has no `parent` here, may be one."""
    try:
        return open_file(path, FOLDER) if parent is None else open_file(path.name, FOLDER | os.O_NOFOLLOW, parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise failed("open", path, error) from error
