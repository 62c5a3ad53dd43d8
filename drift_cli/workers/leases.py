"""Who works on a run: a file per worker, `workers/<id>.json`, which the worker replaces every few seconds as a sign of life.

A worker's clock means nothing on another machine. So a sign of life is a counter that changes, and how long it has not changed is measured by whoever looks,
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

import orjson

from drift_cli.errors import StoreError, UsageError
from drift_cli.store.decode import Malformed, decode, parse
from drift_cli.store.files import create_inside, failed, open_inside, read_inside, release, write_all
from drift_cli.store.paths import RunPaths
from drift_cli.workers.processes import born, place

BEAT = 15.0
"""Seconds between two signs of life."""
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
    """What a worker says of itself."""

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
    """Seconds without a new beat after which others may take what it holds."""
    state: WorkerState = WorkerState.LOADING
    beat: int = 0
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


def check_lease(seconds: float) -> None:
    """Raise `UsageError` where a lease is shorter or longer than makes sense."""
    if not _LEASES[0] <= seconds <= _LEASES[1]:
        raise UsageError(f"lease is {seconds:g}", mend=f"Use {_LEASES[0]:g} to {_LEASES[1]:g} seconds.")


def read_worker(paths: RunPaths, worker: str) -> Worker | None:
    """What a worker said last; None where it has no file, or one that says nothing (yet)."""
    try:
        path = paths.worker(worker)
        found = decode(Worker, parse(read_inside(paths.root, path, _LIMIT)))
    except (FileNotFoundError, StoreError, Malformed, UsageError):
        return None
    return found if found.id == worker else None


def worker_ids(paths: RunPaths) -> list[str]:
    """Ids of workers that have a file, sorted. Raises `StoreError`."""
    try:
        names = os.listdir(paths.workers_root)  # noqa: PTH208 (names, not paths, are wanted)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise failed("read", paths.workers_root, error) from error
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def read_workers(paths: RunPaths) -> list[Worker]:
    """What every worker of a run said last, in the order of their ids. Files that say nothing are passed over (`verify` names them)."""
    found = (read_worker(paths, name) for name in worker_ids(paths))
    return [worker for worker in found if worker is not None]


def any_at_work(paths: RunPaths) -> bool:
    """Whether any worker has not said that it left, and is not seen to be gone."""
    return any(worker.state is not WorkerState.LEFT and not is_dead(worker) for worker in read_workers(paths))


class Life(StrEnum):
    """What is known of a worker."""

    ALIVE = "alive"
    """It gave a sign of life within its lease, or its process is there to be seen."""
    QUIET = "quiet"
    """It has not given one yet since it was first looked at: whether it lives is not known."""
    GONE = "gone"
    """It left, its process is no more, or it gave no sign of life for as long as its lease."""


@dataclass
class _Sighting:
    beat: int
    since: float
    """When it was first seen to be this, on this process's monotonic clock."""
    changed: bool = False


@dataclass
class Observer:
    """Watches workers' signs of life on a clock of its own. Looks at a file again at most every `pause` seconds."""

    paths: RunPaths
    pause: float = 1.0
    _seen: dict[str, _Sighting] = field(default_factory=dict)
    _read: dict[str, tuple[float, Worker | None]] = field(default_factory=dict)

    def worker(self, worker: str) -> Worker | None:
        """What a worker said last, not longer ago than `pause`."""
        now = time.monotonic()
        known = self._read.get(worker)
        if known is None or now - known[0] >= self.pause:
            known = self._read[worker] = (now, read_worker(self.paths, worker))
            self._sight(worker, -1 if known[1] is None else known[1].beat, now)
        return known[1]

    def life(self, worker: str) -> Life:
        """Whether a worker lives."""
        said = self.worker(worker)
        if said is not None and (said.state is WorkerState.LEFT or is_dead(said)):
            return Life.GONE
        if self.age(worker) >= (LEASE if said is None else said.lease):
            return Life.GONE
        return Life.ALIVE if self._seen[worker].changed or (said is not None and is_here(said)) else Life.QUIET

    def age(self, worker: str) -> float:
        """Seconds since the worker's last sign of life, as far as this observer has seen: 0 at its first look."""
        sighting = self._seen.get(worker)
        return 0.0 if sighting is None else time.monotonic() - sighting.since

    def _sight(self, worker: str, beat: int, now: float) -> None:
        known = self._seen.get(worker)
        if known is None or known.beat != beat:
            self._seen[worker] = _Sighting(beat, now, changed=known is not None)


def is_here(worker: Worker) -> bool:
    """Whether a worker's process is one of this machine's, and there."""
    return worker.place != "" and worker.place == place() and born(worker.pid) == worker.born


def is_dead(worker: Worker) -> bool:
    """Whether a worker's process was one of this machine's, and is there no more. (A zombie only waits to be counted.)"""
    return worker.place != "" and worker.place == place() and born(worker.pid) != worker.born


class Presence:
    """This process as a worker: its file, which a thread renews. A context manager; on leaving, the file says that the worker left."""

    def __init__(self, paths: RunPaths, name: str, *, lease: float = LEASE, launcher: Mapping[str, str] | None = None) -> None:
        """`name` becomes the worker's id, with something added where that id was used before."""
        pid = os.getpid()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._paths = paths
        self._said = Worker(name, socket.gethostname(), pid, place(), born(pid), since, launcher or {}, lease)
        self._started = time.monotonic()
        self._left = threading.Event()
        self._mutex = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="drift-beat", daemon=True)

    @property
    def id(self) -> str:
        """The worker's id, final once entered."""
        return self._said.id

    @property
    def lease(self) -> float:
        """Seconds after which others may take what this worker holds, should it give no sign of life."""
        return self._said.lease

    def now(self, state: WorkerState | None = None, *, turns: int | None = None, held: int | None = None) -> None:
        """What the next sign of life is to say. A new state is said at once, as is the first turn: a worker that made one can work."""
        if state in (None, self._said.state) and turns in (None, self._said.turns) and held in (None, self._said.held):
            return  # asked once a token
        with self._mutex:
            before = self._said
            self._said = replace(
                before,
                state=before.state if state is None else state,
                turns=before.turns if turns is None else turns,
                held=before.held if held is None else held,
            )
        if self._said.state is not before.state or (self._said.turns and not before.turns):
            self._say()

    def __enter__(self) -> Presence:
        create_inside(self._paths.root, self._paths.workers_root)
        self._said = replace(self._said, id=_reserve(self._paths, self._said.id))
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()
        self.now(WorkerState.LEFT, held=0)

    def _beat(self) -> None:
        # A fifth of the lease at most, so that one late beat takes nothing away.
        while not self._left.wait(min(BEAT, self._said.lease / 5)):
            self._say()

    def _say(self) -> None:
        """Renew the file. Where that fails nothing is lost: others may take this worker's rollouts, which it notices before it commits."""
        with suppress(StoreError, FileNotFoundError):
            self._write()

    def _write(self) -> None:
        with self._mutex:
            seconds = round(time.monotonic() - self._started, 1)
            self._said = replace(self._said, beat=self._said.beat + 1, seconds=seconds)
            _replace(self._paths, self._paths.worker(self._said.id), orjson.dumps(self._said))


def forget_workers(paths: RunPaths) -> None:
    """Remove the files of workers that have left or whose process is seen to be gone, and claims' folders that are empty. For a run that is complete."""
    for worker in read_workers(paths):
        if worker.state is WorkerState.LEFT or is_dead(worker):
            with suppress(OSError):
                paths.worker(worker.id).unlink()
    for folder, _, _ in os.walk(paths.claims_root, topdown=False, followlinks=False):
        with suppress(OSError):
            Path(folder).rmdir()
    with suppress(OSError):
        paths.workers_root.rmdir()


def default_name() -> str:
    """A worker's id where nobody gave one: host, process, and something that no other has."""
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:40].lstrip("._-")
    return f"{host or 'host'}-{os.getpid()}-{secrets.token_hex(3)}"


def _reserve(paths: RunPaths, name: str) -> str:
    """An id that no worker had before, made of `name`; its file is there then, empty."""
    wanted = name
    while True:
        try:
            _create(paths, wanted)
        except FileExistsError:
            wanted = f"{name[:70]}-{secrets.token_hex(3)}"
        else:
            return wanted


def _create(paths: RunPaths, worker: str) -> None:
    path = paths.worker(worker)
    try:
        release(open_inside(paths.root, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except StoreError:
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        raise


def _replace(paths: RunPaths, path: Path, data: bytes) -> None:
    """Make `data` the content of a worker's file, as a whole. Not synced: after a power cut there is no worker left to speak of."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = open_inside(paths.root, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        write_all(fd, data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise failed("write", path, error) from error
    finally:
        release(fd)
