"""Who works on a run, and who still lives: a file per worker, `workers/<id>.json`, which the worker replaces every few seconds as its heartbeat.

A worker's clock means nothing on another machine. So a heartbeat is a counter that changes, and for how long it has not changed is measured by whoever looks,
on a monotonic clock of its own. A worker on this very machine need not be waited for: its process is there or it is not (its start time tells a pid that was
given out again from the one that wrote the file).

An id belongs to one process and is never used again. Files here are news, not results: they are not synced, and a run is the same without them.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from drift_cli.errors import StoreError, UsageError
from drift_cli.store.decode import Malformed, decode, parse
from drift_cli.store.files import read_inside
from drift_cli.store.paths import RunPaths
from drift_cli.workers.files import make_file, names_of, replace_file

HEARTBEAT = 15.0
"""Seconds between two heartbeats."""
LEASE = 90.0
"""Seconds without one after which a worker is taken to be gone. Network file systems may show a file as it was a minute ago."""
_LEASES = (0.5, 3600.0)
_LIMIT = 16384


class WorkerState(StrEnum):
    """What a worker is doing."""

    LOADING = "loading"
    """It reads its model."""
    WORKING = "working"
    WAITING = "waiting"
    """Nothing can be taken now, but another worker may turn out to be gone."""
    LEFT = "left"
    """It ended in order, and holds nothing."""


@dataclass(frozen=True)
class Worker:
    """What a worker says of itself. Its fields are the file's."""

    id: str
    host: str
    pid: int
    place: str
    """Which table of processes the pid is in (boot and pid namespace); empty where the system does not tell."""
    born: int
    """The process's start, in ticks since boot; 0 where the system does not tell."""
    since: str
    """UTC, ISO 8601, by its own clock: for people."""
    launcher: Mapping[str, str] = field(default_factory=dict)
    """What started it, for people: `{"launcher": "slurm", "job": "12_3"}`."""
    lease: float = LEASE
    """Seconds without a heartbeat after which others may take what it holds."""
    state: WorkerState = WorkerState.LOADING
    beat: int = 0
    """Heartbeats so far."""
    turns: int = 0
    """Turns it has committed."""
    seconds: float = 0.0
    """How long it has been at work."""
    held: int = 0
    """Rollouts it holds now."""

    def __post_init__(self) -> None:
        check_lease(self.lease)

    def __str__(self) -> str:
        return f"worker {self.id} (process {self.pid} on {self.host})"

    @property
    def here(self) -> bool | None:
        """Whether its process is there; None where it is another machine's. (A zombie only waits to be counted.)"""
        return born(self.pid) == self.born if self.place and self.place == place() else None

    @property
    def over(self) -> bool:
        """Whether it has left, or its process was one of this machine's and is there no more."""
        return self.state is WorkerState.LEFT or self.here is False


def check_lease(seconds: float) -> None:
    """Raise `UsageError` where a lease is shorter or longer than makes sense."""
    if not _LEASES[0] <= seconds <= _LEASES[1]:
        raise UsageError(f"lease is {seconds:g}", mend=f"Use {_LEASES[0]:g} to {_LEASES[1]:g} seconds.")


def place() -> str:
    """This machine's table of processes: the boot and the pid namespace. Empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except (OSError, UnicodeDecodeError):
        return ""


def born(pid: int) -> int:
    """When a process began, in ticks since boot (proc(5), field 22 of stat); 0 where there is none, or only what is left of one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if len(fields) < 20 or fields[0] in "ZX" else int(fields[19])


def read_worker(paths: RunPaths, worker: str) -> Worker | None:
    """What a worker said last; None where it has no file, or one that says nothing (yet)."""
    try:
        found = decode(Worker, parse(read_inside(paths.root, paths.worker(worker), _LIMIT)))
    except (FileNotFoundError, StoreError, Malformed, UsageError):
        return None
    return found if found.id == worker else None


def worker_ids(paths: RunPaths) -> list[str]:
    """Ids of workers that have a file, sorted. Raises `StoreError`."""
    return sorted(name.removesuffix(".json") for name in names_of(paths.workers_root) if name.endswith(".json"))


def read_workers(paths: RunPaths) -> list[Worker]:
    """What every worker of a run said last, in the order of their ids. Files that say nothing are passed over (`checks` names them)."""
    return [worker for name in worker_ids(paths) if (worker := read_worker(paths, name)) is not None]


class Life(StrEnum):
    """What is known of a worker."""

    ALIVE = "alive"
    """A heartbeat came within its lease, or its process is there to be seen."""
    QUIET = "quiet"
    """None has come yet since it was first looked at: whether it lives is not known."""
    GONE = "gone"
    """It left, its process is no more, or no heartbeat came for as long as its lease."""


@dataclass
class _Seen:
    """A worker as an observer has seen it; times are on the observer's monotonic clock."""

    said: Worker | None
    read: float
    changed: float
    """When its file was first seen to say this."""
    ever: bool = False
    """Whether it has been seen to change at all."""


@dataclass
class Observer:
    """Watches workers' heartbeats on a clock of its own. Reads a file again at most every `pause` seconds."""

    paths: RunPaths
    pause: float = 1.0
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def worker(self, worker: str) -> Worker | None:
        """What a worker said last, not longer ago than `pause`."""
        now, seen = time.monotonic(), self._seen.get(worker)
        if seen is None or now - seen.read >= self.pause:
            said = read_worker(self.paths, worker)
            if seen is None:
                seen = self._seen[worker] = _Seen(said, now, now)
            elif (said and said.beat) != (seen.said and seen.said.beat):
                seen.changed, seen.ever = now, True
            seen.said, seen.read = said, now
        return seen.said

    def life(self, worker: str) -> Life:
        """Whether a worker lives."""
        said = self.worker(worker)
        if (said is not None and said.over) or self.age(worker) >= (LEASE if said is None else said.lease):
            return Life.GONE
        return Life.ALIVE if self._seen[worker].ever or (said is not None and said.here) else Life.QUIET

    def age(self, worker: str) -> float:
        """Seconds since the worker's last heartbeat, as far as this observer has seen: 0 at its first look."""
        return time.monotonic() - self._seen[worker].changed if worker in self._seen else 0.0


class Presence:
    """This process as a worker: its file, which a thread renews. A context manager; on leaving, the file says that the worker left."""

    def __init__(self, paths: RunPaths, name: str, *, lease: float = LEASE, launcher: Mapping[str, str] | None = None) -> None:
        """`name` becomes the worker's id, with something added where that id was used before."""
        pid, since = os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
        self._paths = paths
        self._said = Worker(name, socket.gethostname(), pid, place(), born(pid), since, launcher or {}, lease)
        self._started = time.monotonic()
        self._left = threading.Event()
        self._mutex = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="drift-heartbeat", daemon=True)

    @property
    def id(self) -> str:
        """The worker's id, final once entered."""
        return self._said.id

    @property
    def lease(self) -> float:
        """Seconds after which others may take what this worker holds, should no heartbeat come."""
        return self._said.lease

    def now(self, state: WorkerState | None = None, *, turns: int | None = None, held: int | None = None) -> None:
        """What the next heartbeat is to say. A new state is said at once, as is the first turn: a worker that made one can work."""
        before = self._said
        if state in (None, before.state) and turns in (None, before.turns) and held in (None, before.held):
            return  # asked once a token
        news: dict[str, Any] = {"state": state, "turns": turns, "held": held}
        with self._mutex:
            self._said = replace(self._said, **{name: value for name, value in news.items() if value is not None})
        if self._said.state is not before.state or (self._said.turns and not before.turns):
            self._say()

    def __enter__(self) -> Presence:
        name, wanted = self.id, self.id
        while not make_file(self._paths.root, self._paths.worker(wanted)):
            wanted = f"{name[:70]}-{secrets.token_hex(3)}"
        self._said = replace(self._said, id=wanted)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()
        self.now(WorkerState.LEFT, held=0)

    def _renew(self) -> None:
        # A fifth of the lease at most, so that one late heartbeat takes nothing away.
        while not self._left.wait(min(HEARTBEAT, self._said.lease / 5)):
            self._say()

    def _say(self) -> None:
        """Renew the file. Where that fails nothing is lost: others may take this worker's rollouts, which it notices before it commits."""
        with suppress(StoreError, FileNotFoundError):
            self._write()

    def _write(self) -> None:
        with self._mutex:
            self._said = replace(self._said, beat=self._said.beat + 1, seconds=round(time.monotonic() - self._started, 1))
            replace_file(self._paths.root, self._paths.worker(self.id), orjson.dumps(self._said))


def forget_workers(paths: RunPaths) -> None:
    """Remove the files of workers that have left or whose process is seen to be gone, and claims' folders that are empty. For a run that is complete."""
    for worker in read_workers(paths):
        if worker.over:
            with suppress(OSError):
                paths.worker(worker.id).unlink()
    empty = [Path(folder) for folder, _, _ in os.walk(paths.claims_root, topdown=False, followlinks=False)]
    for folder in (*empty, paths.workers_root):
        with suppress(OSError):
            folder.rmdir()


def default_name() -> str:
    """A worker's id where nobody gave one: host, process, and something that no other has."""
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:40].lstrip("._-")
    return f"{host or 'host'}-{os.getpid()}-{secrets.token_hex(3)}"
