"""How far a run is, how fast it goes, for how long still, and who works on it: from its store alone, looked at again and again. Writes nothing.

Rates are turns between this process's own looks (its monotonic clock), over the last minutes; before there is such a rate, what workers say of themselves
is taken. Time left supposes that the turns to come take as long as the last ones did.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from drift_cli.store.lock import Owner
from drift_cli.store.paths import RunPaths
from drift_cli.workers.cells import Cells, CellStatus, Pace
from drift_cli.workers.leases import Life, Observer, Worker, WorkerState, worker_ids


@dataclass(frozen=True)
class WorkerStatus:
    """Somebody who works on the run, or did."""

    name: str
    host: str
    state: str
    lost: bool
    """It will not go on with what it holds: its process is gone, or no heartbeat came for too long."""
    left: bool
    """It ended in order."""
    heartbeat: float | None
    """Seconds since its last one, as far as this process has seen: 0 at its first look. None for a process that gives none."""
    turns: int | None
    rate: float | None
    """Turns a second, since it began."""
    held: int
    """Rollouts."""

    @property
    def at_work(self) -> bool:
        """It may still go on."""
        return not self.lost and not self.left


@dataclass(frozen=True)
class Status:
    """A run, at one look."""

    run_id: str
    cells: tuple[CellStatus, ...]
    workers: tuple[WorkerStatus, ...]
    rate: float | None
    """Turns a second."""
    quiet: float | None
    """Seconds since a turn was committed; None before the first."""
    problems: tuple[str, ...]
    """What is damaged, in words; the first few."""

    @property
    def turns(self) -> int:
        """Committed turns of all cells."""
        return sum(cell.turns for cell in self.cells)

    @property
    def settled(self) -> int:
        """Turns that need no more work."""
        return sum(cell.settled for cell in self.cells)

    @property
    def total(self) -> int:
        """Turns of the whole plan."""
        return sum(cell.total for cell in self.cells)

    @property
    def ended(self) -> bool:
        """Nothing of the plan is left to do."""
        return all(cell.ended == cell.planned for cell in self.cells)

    @property
    def left(self) -> float | None:
        """Seconds."""
        return None if self.rate is None else (self.total - self.settled) / self.rate

    @property
    def working(self) -> int:
        """Workers that may still go on."""
        return sum(worker.at_work for worker in self.workers)


class Watch:
    """Looks at one run again and again."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self._cells, self._observer, self._pace = Cells(paths), Observer(paths), Pace()
        self._left: dict[str, Worker] = {}
        self._turns = 0
        self._changed: float | None = None

    def look(self) -> Status:
        """The run now. Raises `StoreError` where its manifest or a folder cannot be read; damage to rollouts is counted."""
        self._cells.look()
        now, workers = time.monotonic(), self._workers()
        working = any(worker.at_work for worker in workers)
        cells = self._cells.status(now, working=working)
        turns, ended = sum(cell.turns for cell in cells), all(cell.ended == cell.planned for cell in cells)
        told = sum(worker.rate or 0.0 for worker in workers if worker.at_work) or None
        rate = None if ended else self._pace.rate(now, turns, working=working) or told
        return Status(self.paths.run_id, cells, workers, rate, self._quiet(turns, now), self._cells.problems)

    def _workers(self) -> tuple[WorkerStatus, ...]:
        """Those that say what they do; then processes that are only known from the notes at rollouts they write."""
        said = [worker for name in worker_ids(self.paths) if (worker := self._said(name)) is not None]
        named = {(worker.host, worker.pid) for worker in said}
        others = [_process(owner, held) for owner, held in self._cells.writers().items() if (owner.host, owner.pid) not in named]
        return (*(self._worker(worker) for worker in said if worker.state is not WorkerState.LEFT or worker.turns), *others)

    def _said(self, name: str) -> Worker | None:
        """What a worker said last. One that has left says no more."""
        known = self._left.get(name) or self._observer.worker(name)
        if known is not None and known.state is WorkerState.LEFT:
            self._left[name] = known
        return known

    def _worker(self, worker: Worker) -> WorkerStatus:
        left = worker.state is WorkerState.LEFT
        lost = not left and self._observer.life(worker.id) is Life.GONE
        rate = worker.turns / worker.seconds if worker.seconds > 0 and worker.turns and not left else None
        state = "lost" if lost else worker.state.value
        heartbeat = None if left else self._observer.age(worker.id)
        return WorkerStatus(worker.id, worker.host, state, lost, left, heartbeat, worker.turns, rate, worker.held)

    def _quiet(self, turns: int, now: float) -> float | None:
        """At the first look the file system's clock has to do, later looks see turns come."""
        if self._changed is None:
            if (newest := self._cells.newest) is None:
                return None
            self._changed = now - max(0.0, time.time() - newest)
        elif turns != self._turns:
            self._changed = now
        self._turns = turns
        return now - self._changed


def _process(owner: Owner, held: int) -> WorkerStatus:
    """A process that left notes at the rollouts it writes, and says nothing else of itself."""
    return WorkerStatus(f"process {owner.pid}", owner.host, "gone" if owner.gone else "writing", owner.gone, False, None, None, None, held)
