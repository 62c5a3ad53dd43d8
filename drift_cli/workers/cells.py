"""How far each cell of a run is, looked at again and again: only what may have changed since the last look is read.

A look lists the folders of cells that are not done, asks for the sizes of their rollouts that are not done, and reads the last lines of those that grew.
What has ended is not looked at again, so a look at a run of 100,000 rollouts costs what is in progress. A damaged rollout is counted and hides no other.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from drift_cli.errors import StoreError
from drift_cli.files import failed, release
from drift_cli.spec import Cell, Finish, Rollout
from drift_cli.store.files import open_folder, open_in
from drift_cli.store.lock import Owner, read_owner
from drift_cli.store.manifest import read_manifest
from drift_cli.store.paths import RunPaths, sample_name
from drift_cli.store.tails import names_in, state_of

WINDOW = 600.0
"""Seconds that a rate looks back: long enough to hold several turns of each rollout, also of large models."""
_POINTS = 60
"""Looks kept of a window."""
MOST_NOTES = 1024
"""Notes of who writes that are read; workers have files of their own, and other processes do not hold so many rollouts."""
_THREADS = 8
"""Cells looked at together where looking is waiting. (Where it is not, threads would only be in each other's way.)"""
_PATIENCE = 0.5
"""Seconds before that is judged."""


@dataclass
class Pace:
    """Turns a second, from a count that is told again and again."""

    seen: deque[tuple[float, int]] = field(default_factory=deque)
    """Moment (monotonic seconds) and count, oldest first."""

    def rate(self, now: float, count: int, *, working: bool) -> float | None:
        """Tell the count at `now`, and whether anybody works on it; where nobody does, there is no rate, and what comes later begins anew.

        Returns the rate since the window began; None at the first look, and where nothing was made yet.
        """
        if not working:
            self.seen.clear()
            return None
        if not self.seen or now - self.seen[-1][0] >= WINDOW / _POINTS:
            self.seen.append((now, count))
        while len(self.seen) > 2 and now - self.seen[1][0] >= WINDOW:
            self.seen.popleft()
        then, before = self.seen[0]
        return (count - before) / (now - then) if now > then and count > before else None


@dataclass(frozen=True)
class CellStatus:
    """A cell's rollouts and turns, counted."""

    cell: Cell
    planned: int
    begun: int
    """With at least one committed turn, or ended."""
    ended: int
    complete: int
    held: int
    """With a note of somebody who writes them."""
    damaged: int
    turns: int
    """Committed."""
    settled: int
    """Committed, or never to be made because their rollout ended early."""
    total: int
    rate: float | None = None
    """Turns a second."""

    @property
    def left(self) -> float | None:
        """Seconds."""
        return None if self.rate is None else (self.total - self.settled) / self.rate


@dataclass
class _Seen:
    """What is known of a cell's rollouts."""

    cell: Cell
    length: int
    """Turns of its transcript."""
    planned: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    """Rollouts that have not ended: file name → sample."""
    marks: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Sample → inode and size when it was last read."""
    done: dict[int, int] = field(default_factory=dict)
    """Sample → committed turns, where there are any."""
    finished: dict[int, Finish] = field(default_factory=dict)
    damage: dict[int, str] = field(default_factory=dict)
    newest: float = 0.0
    """When one of them was last written; 0 where none was."""
    notes: dict[int, int] = field(default_factory=dict)
    """Sample → inode of the note of who writes it."""
    pace: Pace = field(default_factory=Pace)

    def plan(self, samples: int) -> None:
        """Add the samples that the plan has gained."""
        self.waiting |= {sample_name(sample, "jsonl"): sample for sample in range(self.planned, samples)}
        self.planned = max(self.planned, samples)

    def status(self, now: float, *, working: bool) -> CellStatus:
        """The cell at `now`, a moment of the monotonic clock; `working`: whether anybody works on the run."""
        turns = sum(self.done.values())
        spared = sum(self.length - self.done.get(sample, 0) for sample in self.finished)
        return CellStatus(
            self.cell,
            planned=self.planned,
            begun=len(self.done.keys() | self.finished.keys()),
            ended=len(self.finished),
            complete=sum(finish is Finish.COMPLETE for finish in self.finished.values()),
            held=len(self.notes),
            damaged=len(self.damage),
            turns=turns,
            settled=turns + spared,
            total=self.planned * self.length,
            rate=self.pace.rate(now, turns, working=working and bool(self.notes)) if self.waiting else None,
        )


class Cells:
    """The cells of one run."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self._stamp: tuple[int, int, int] | None = None
        self._cells: dict[Cell, _Seen] = {}
        self._owners: dict[tuple[Cell, int, int], Owner | None] = {}
        """By cell, sample and inode of the note: read once."""

    def look(self) -> None:
        """Read what has changed. Raises `StoreError` where the manifest or a folder cannot be read; damage to rollouts is counted."""
        self._plan()
        rest = iter(self._cells.values())
        # One after the other; where that turns out to be mostly waiting (for a file server), several at a time.
        wall, busy = time.monotonic(), time.thread_time()
        for seen in rest:
            self._look_at(seen)
            waited = time.monotonic() - wall
            if waited > _PATIENCE and time.thread_time() - busy < waited / 8:
                with ThreadPoolExecutor(_THREADS) as pool:
                    list(pool.map(self._look_at, rest))

    def status(self, now: float, *, working: bool) -> tuple[CellStatus, ...]:
        """Every cell at `now`, a moment of the monotonic clock; `working`: whether anybody works on the run."""
        return tuple(seen.status(now, working=working) for seen in self._cells.values())

    @property
    def problems(self) -> tuple[str, ...]:
        """What is damaged, in words; the first few."""
        return tuple(problem for seen in self._cells.values() for problem in seen.damage.values())[:5]

    @property
    def newest(self) -> float | None:
        """When a rollout was last written, in seconds since 1970 by the file system's clock; None before the first turn."""
        return max((seen.newest for seen in self._cells.values()), default=0.0) or None

    def writers(self) -> dict[Owner, int]:
        """Who left notes, and on how many rollouts; notes that a killed process left behind are among them."""
        present = {(seen.cell, sample, inode) for seen in self._cells.values() for sample, inode in seen.notes.items()}
        self._owners = {key: owner for key, owner in self._owners.items() if key in present}
        for key in sorted(present - self._owners.keys())[: MOST_NOTES - len(self._owners)]:
            self._owners[key] = read_owner(self.paths.root, self.paths.owner(Rollout(key[0], key[1])))
        found: dict[Owner, int] = {}
        for owner in filter(None, self._owners.values()):
            # One process opens rollouts at different times: it is one writer all the same.
            same = next((known for known in found if (known.host, known.pid) == (owner.host, owner.pid)), owner)
            found[same] = found.get(same, 0) + 1
        return found

    def _plan(self) -> None:
        """Read the manifest where it was replaced: a run may gain cells and samples while it is watched."""
        try:
            facts = self.paths.manifest.lstat()
        except OSError as error:
            raise failed("find", self.paths.manifest, error) from error
        stamp = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if stamp == self._stamp:
            return
        manifest = read_manifest(self.paths)
        self._stamp = stamp
        for plan in manifest.cells:
            length = manifest.transcripts[plan.cell.transcript].total
            self._cells.setdefault(plan.cell, _Seen(plan.cell, length)).plan(plan.samples)

    def _look_at(self, seen: _Seen) -> None:
        seen.notes = {}
        if not seen.waiting:
            return
        where = self.paths.cell(seen.cell)
        try:
            folder = open_folder(self.paths.root, where)
        except FileNotFoundError:
            return
        try:
            present = names_in(folder, where)
            for name in [name for name in seen.waiting if name in present]:
                self._read(seen, folder, name)
        finally:
            release(folder)
        notes = {sample: present.get(sample_name(sample, "lock")) for name, sample in seen.waiting.items() if name in present}
        seen.notes = {sample: inode for sample, inode in notes.items() if inode is not None}

    def _read(self, seen: _Seen, folder: int, name: str) -> None:
        """One rollout, if it has changed."""
        path, sample = self.paths.cell(seen.cell) / name, seen.waiting[name]
        try:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            mark = (facts.st_ino, facts.st_size)
            if seen.marks.get(sample) == mark:
                return
            fd = open_in(folder, path, os.O_RDONLY)
            try:
                done, end = state_of(fd, path)
            finally:
                release(fd)
        except FileNotFoundError:  # a repair moved it away just now
            return
        except StoreError as error:
            seen.damage[sample] = error.what
            return
        except OSError as error:
            raise failed("read", path, error) from error
        seen.newest = max(seen.newest, facts.st_mtime)
        seen.damage.pop(sample, None)
        seen.marks[sample] = mark
        if done:
            seen.done[sample] = done
        if end is not None:
            seen.finished[sample] = end.finish
            del seen.waiting[name]
            seen.marks.pop(sample)
