"""Files written whole or not at all, and on disk when said so.

Failures of the operating system leave here as `StoreError`s that name the file and what to do about it; only `FileNotFoundError` passes through where a
docstring says so.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from drift_cli.errors import StoreError, UsageError

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO in a file's place must not hang whoever opens it; plain files ignore it.
PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_AGAIN = "Then run the same command again: it goes on where it stopped."
_MEND = {
    errno.ENOSPC: f"Free some space on that disk (`df -h` shows it). {_AGAIN}",
    errno.EDQUOT: f"Your quota there is used up: free some space. {_AGAIN}",
    errno.EFBIG: f"A limit on file sizes is in force (`ulimit -f` shows it): raise it. {_AGAIN}",
    errno.EROFS: "That file system is read-only: mount it for writing, or choose another place with --store.",
    errno.EACCES: "You lack the right to do that: change the permissions, or choose another place with --store.",
    errno.EPERM: "You lack the right to do that: change the permissions, or choose another place with --store.",
    errno.EIO: "The disk, or the network it is reached by, reports an error: see the system's log, and copy the run to a safe place before going on.",
    errno.ELOOP: "Nothing inside a run may be a symbolic link: put the file or folder itself there.",
    errno.EMFILE: "Too many files are open in this process: raise `ulimit -n`, or use a smaller --batch.",
}


def failed(doing: str, path: Path, error: OSError) -> StoreError:
    """The `StoreError` for an operation that the operating system refused, `doing` being its verb: "write", say."""
    # O_DIRECTORY | O_NOFOLLOW on a link gives ENOTDIR, which would say nothing to the person.
    number = errno.ELOOP if error.errno == errno.ENOTDIR and path.is_symlink() else error.errno
    return StoreError(f"cannot {doing} {path}: {os.strerror(number or 0)}", mend=_MEND.get(number or 0))


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file that comes from the user: a regular file of at most `limit` bytes, so that nothing is waited for and memory is bounded.

    Raises `UsageError` for anything else (a folder, a pipe, a device), and `OSError` where it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        if stat.S_ISDIR(facts.st_mode):
            raise UsageError(f"{path}: is a folder", mend="Give one of the files in it.")
        if not stat.S_ISREG(facts.st_mode):
            raise UsageError(f"{path}: is {_kind(facts.st_mode)}, not a regular file", mend="Save its content as a file, and give that.")
        if facts.st_size > limit:
            raise UsageError(f"{path}: is larger than {limit >> 20} MiB", mend="It is not what was expected there: give another file.")
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)


def check_regular(path: Path, limit: int) -> None:
    """Refuse, as `read_regular`, what a library is to read. Raises `UsageError` and `OSError`."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > limit:
        read_regular(path, limit)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
    }
    return {**kinds, stat.S_IFLNK: "a symbolic link"}.get(stat.S_IFMT(mode), "something else")


def _refuse_to_replace(path: Path) -> None:
    """A file is made new or takes the place of a regular file: never of a device, a pipe, a link or a folder."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise StoreError(
            f"cannot write {path}: it is {_kind(mode)}, and only a regular file is replaced", mend="Give another name, or take it away."
        )


def atomic_write(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`, or leave what is there: temporary file, fsync, rename, fsync of the folder.

    The folder must exist. Raises `StoreError`; once it returns, the content survives a power cut.
    """
    atomic_write_parts(path, (data,))


def atomic_write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """As `atomic_write`, for content that comes in parts."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        _refuse_to_replace(path)
        fd = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN)
        try:
            for part in parts:
                write_all(fd, part)
            os.fsync(fd)
        finally:
            release(fd)
        temporary.replace(path)
    except OSError as error:
        raise failed("write", path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


def stable(body: bytes) -> bytes:
    """The bytes of a safetensors file with its header in one order: the library writes the header's texts in another order each time.

    The header stays as long as it was, so that the tensors stay where they are.
    """
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    texts = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items()))}
    made = json.dumps({**texts, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    return body[:8] + made.ljust(length) + body[8 + length :]


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what an interrupted `atomic_write` left behind."""
    return name.startswith(".") and name.endswith(".tmp")


def create_folder(path: Path) -> None:
    """Create a folder and those above it that are missing, durably. Raises `StoreError`."""
    missing = []
    while not is_there(path, folder=True):
        missing.append(path)
        if path == path.parent:
            break
        path = path.parent
    for folder in reversed(missing):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise failed("create", folder, error) from error
        sync_folder(folder.parent)


def is_there(path: Path, *, folder: bool = False) -> bool:
    """Whether something is there, or, with `folder`, a folder, links followed. Raises `StoreError` where that cannot be found out."""
    try:
        return stat.S_ISDIR(path.stat().st_mode) or not folder
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise failed("find", path, error) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises `StoreError`."""
    try:
        fd = open_file(path, FOLDER)
    except OSError as error:
        raise failed("open", path, error) from error
    try:
        os.fsync(fd)
    except OSError as error:
        # File systems that keep no names of their own to sync (some network and FUSE ones) say so like this.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise failed("sync", path, error) from error
    finally:
        release(fd)


def release(fd: int) -> None:
    """Close a descriptor. What counts was synced before, and the descriptor is gone either way: an error says nothing that anybody could act on."""
    with suppress(OSError):
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, in as many calls as it takes. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[write_some(fd, view) :]


def write_some(fd: int, data: memoryview) -> int:
    """One write; at least one byte. Raises `OSError`."""
    written = os.write(fd, data)
    if written <= 0:
        raise OSError(errno.EIO, "nothing was written")
    return written


def open_file(path: Path | str, flags: int, folder: int | None = None) -> int:
    """`os.open`, with this process's limit on open files raised where that helps. Raises `OSError`."""
    try:
        return os.open(path, flags, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EMFILE or not _allow_more_files():
            raise
    return os.open(path, flags, 0o666, dir_fd=folder)


def _allow_more_files() -> bool:
    """Raise this process's own limit on open files as far as it may. A run holds two per rollout in progress; 1024 is a common limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return False
    return True
