"""Which worker is at which rollout: a small file per rollout in progress, `claims/…/<sample>.claim`, that holds the worker's id and a newline.

A claim is made with O_CREAT | O_EXCL, which exactly one process can do: on local file systems, on NFS since version 3 (RFC 1813, exclusive create), and on
parallel file systems that follow POSIX, whether or not their locks work. It is removed when the rollout has ended, or when its worker stops in order. One
whose worker is gone (see `workers`) is taken over: moved to a name of its own, which one process can do, and made anew.

A claim saves work; it does not guard data. Two workers at one rollout, should it come to that, cost the work of one of them: the rollout's lock, its size
check and its chain see to it that nothing is mixed. A worker whose claim was taken from it (it slept longer than its lease) notices before it commits.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from drift_cli.errors import StoreError, UsageError
from drift_cli.files import release
from drift_cli.spec import Cell, Rollout
from drift_cli.store.files import open_folder, open_inside, read_inside
from drift_cli.store.paths import RunPaths
from drift_cli.workers.files import make_file, names_of, remove_file
from drift_cli.workers.leases import LEASE, Life, Observer

_LIMIT = 128
"""Bytes: an id has 80 at most."""
_LISTED = 16 << 20
_SAMPLE = re.compile(rb"[0-9]{4,9}")


def claimed(paths: RunPaths, cell: Cell) -> set[int]:
    """Samples of a cell that somebody has claimed: one listing, no file is read."""
    folder = paths.claims(cell)
    found = (paths.claim_of(folder / name) for name in names_of(folder))
    return {rollout.sample for rollout in found if rollout is not None}


def seen_ended(paths: RunPaths, cell: Cell) -> set[int]:
    """Samples of a cell that some worker has brought to their end: what workers tell each other, so that not each of them reads every file.

    A hint: a line may be missing (two machines wrote at once, over a network), and files may have changed since. Status is never derived from it.
    """
    try:
        lines = read_inside(paths.root, paths.ended(cell), _LISTED).split(b"\n")
    except (FileNotFoundError, StoreError):
        return set()
    return {int(line) for line in lines if _SAMPLE.fullmatch(line)}


def forget_ended(paths: RunPaths, cell: Cell) -> None:
    """Take the hint away, since it was wrong or is of no use any more."""
    remove_file(paths.root, paths.ended(cell))


def claims_of(paths: RunPaths) -> Iterator[tuple[Rollout, str]]:
    """Every claim of a run and the id it holds ("" where it holds none), sorted. One read per claim: `claimed` is cheaper."""
    for folder, folders, names in os.walk(paths.claims_root, followlinks=False):
        folders.sort()
        for name in sorted(names):
            rollout = paths.claim_of(Path(folder, name))
            holder = None if rollout is None else read_holder(paths, rollout)
            if rollout is not None and holder is not None:
                yield rollout, holder


def read_holder(paths: RunPaths, rollout: Rollout) -> str | None:
    """The id that the claim on a rollout holds; "" where it holds none (it is just being made, or not one of ours), None where there is no claim."""
    try:
        text = read_inside(paths.root, paths.claim(rollout), _LIMIT).decode("ascii")
        worker = text.removesuffix("\n")
        paths.worker(worker)
    except FileNotFoundError:
        return None
    except (StoreError, UsageError, UnicodeDecodeError):
        return ""
    return worker if text.endswith("\n") else ""


@dataclass
class Claims:
    """A run's claims as one worker makes and judges them."""

    paths: RunPaths
    worker: str
    observer: Observer
    held: set[Rollout] = field(default_factory=set)
    """Rollouts that this worker has claimed and not released."""
    _unnamed: dict[Rollout, float] = field(default_factory=dict)
    """When a claim that names nobody was first seen."""

    def take(self, rollout: Rollout) -> bool:
        """Claim a rollout. False where somebody has. Raises `StoreError`."""
        made = make_file(self.paths.root, self.paths.claim(rollout), f"{self.worker}\n".encode())
        if made:
            self.held.add(rollout)
        return made

    def is_mine(self, rollout: Rollout) -> bool:
        """Whether the claim on a rollout still names this worker."""
        return read_holder(self.paths, rollout) == self.worker

    def release(self, rollout: Rollout) -> None:
        """Give a rollout up for others. A claim that somebody else has made meanwhile stays."""
        self.held.discard(rollout)
        if self.is_mine(rollout):
            # What cannot be removed stays behind as the claim of a worker that has left: it keeps nobody out.
            remove_file(self.paths.root, self.paths.claim(rollout))

    def finish(self, rollout: Rollout) -> None:
        """Release a rollout that has ended, and tell others that it has. Where that cannot be written, they read its file."""
        path = self.paths.ended(rollout.cell)
        with suppress(OSError, StoreError):
            fd = open_inside(self.paths.root, path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                os.write(fd, b"%04d\n" % rollout.sample)
            finally:
                release(fd)
        self.release(rollout)

    def life_of(self, rollout: Rollout, holder: str) -> Life:
        """Whether the worker that the claim on a rollout names lives ("": it names none, see `read_holder`)."""
        if holder:
            return self.observer.life(holder)
        # Nobody can be asked, so it counts for as long as a lease.
        first = self._unnamed.setdefault(rollout, time.monotonic())
        return Life.GONE if time.monotonic() - first >= LEASE else Life.QUIET

    def take_over(self, rollout: Rollout) -> bool:
        """Claim a rollout whose worker is gone. False where it is not, or where another was faster. Raises `StoreError`."""
        holder = read_holder(self.paths, rollout)
        if holder is None:
            return self.take(rollout)
        return self.life_of(rollout, holder) is Life.GONE and self._move_away(rollout, holder) and self.take(rollout)

    def _move_away(self, rollout: Rollout, holder: str) -> bool:
        """Take away the claim that `holder` made, and no other. Only one process can."""
        path = self.paths.claim(rollout)
        away = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            folder = open_folder(self.paths.root, path.parent)
        except FileNotFoundError:
            return False
        try:
            os.rename(path.name, away.name, src_dir_fd=folder, dst_dir_fd=folder)
            gone = not holder or _content(self.paths, away) == f"{holder}\n".encode()
            if not gone:
                # Another worker took it over between the look and the move: it is that worker's new claim. It goes back, unless a third made one meanwhile.
                with suppress(OSError):
                    os.link(away.name, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            with suppress(OSError):
                os.unlink(away.name, dir_fd=folder)
        except OSError:
            return False
        finally:
            release(folder)
        self._unnamed.pop(rollout, None)
        return gone


def _content(paths: RunPaths, path: Path) -> bytes:
    """What a claim holds; nothing where it cannot be read."""
    try:
        return read_inside(paths.root, path, _LIMIT)
    except (FileNotFoundError, StoreError):
        return b""
