"""Small files that workers make, replace and remove below a run's folder. They are news, not results: none is synced, and no link is followed."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from drift_cli.errors import StoreError
from drift_cli.files import failed, release, write_all
from drift_cli.store.files import create_inside, open_folder, open_inside

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def make_file(root: Path, path: Path, data: bytes = b"") -> bool:
    """Create a file, and its folder where there is none. False where something has its name: exactly one process gets True. Raises `StoreError`."""
    try:
        fd = open_inside(root, path, _NEW)
    except FileNotFoundError:
        create_inside(root, path.parent)
        return make_file(root, path, data)
    except FileExistsError:
        return False
    try:
        write_all(fd, data)
    except OSError as error:
        remove_file(root, path)
        raise failed("write", path, error) from error
    finally:
        release(fd)
    return True


def replace_file(root: Path, path: Path, data: bytes) -> None:
    """Make `data` the content of a file, as a whole. Raises `StoreError`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    make_file(root, temporary, data)
    try:
        temporary.replace(path)
    except OSError as error:
        remove_file(root, temporary)
        raise failed("write", path, error) from error


def remove_file(root: Path, path: Path) -> None:
    """Remove a file, if that can be done."""
    with suppress(OSError, StoreError):
        folder = open_folder(root, path.parent)
        try:
            os.unlink(path.name, dir_fd=folder)
        finally:
            release(folder)


def names_of(folder: Path) -> list[str]:
    """What stands in a folder; nothing where there is none. Raises `StoreError`."""
    try:
        return os.listdir(folder)  # noqa: PTH208 (names, not paths, are wanted)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise failed("read", folder, error) from error
