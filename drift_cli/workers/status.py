"""What a run is doing, from its store alone: how far each cell is, how fast, for how long still, and who works on it. No terminal, nothing is written.

Rates are turns between this process's own looks (its monotonic clock), over the last minutes; before there is such a rate, what workers say of themselves
is taken. Time left supposes that the turns to come take as long as the last ones did.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from drift_cli.spec import Cell
from drift_cli.store.lock import Owner
from drift_cli.store.paths import RunPaths
from drift_cli.workers.leases import Life, Observer, Worker, WorkerState, worker_ids
from drift_cli.workers.survey import CellCount, Survey, Surveyor

WINDOW = 600.0
"""Seconds that a rate looks back: long enough to hold several turns of each rollout, also of large models."""
_POINTS = 60
"""Looks kept of a window."""


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
    """A cell, now."""

    count: CellCount
    rate: float | None
    """Turns a second."""
    left: float | None
    """Seconds."""


@dataclass(frozen=True)
class WorkerStatus:
    """Somebody who works on the run, or did."""

    name: str
    host: str
    state: str
    lost: bool
    """It will not go on with what it holds: its process is gone, or it has not been heard of for too long."""
    left: bool
    """It ended in order."""
    beat: float | None
    """Seconds since its last sign of life, as far as this process has seen: 0 at its first look. None for a process that gives none."""
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
    """A run, now."""

    run_id: str
    cells: tuple[CellStatus, ...]
    workers: tuple[WorkerStatus, ...]
    turns: int
    """Committed."""
    settled: int
    """Committed, or not to be made since their rollout ended early."""
    total: int
    ended: bool
    """Nothing is left to do."""
    rate: float | None
    """Turns a second."""
    left: float | None
    """Seconds."""
    quiet: float | None
    """Seconds since a turn was committed; None before the first."""
    problems: tuple[str, ...]
    """Damage, in words."""

    @property
    def working(self) -> int:
        """Workers that may still go on."""
        return sum(worker.at_work for worker in self.workers)


class Watch:
    """Looks at one run again and again."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._surveyor = Surveyor(paths)
        self._pace = Pace()
        self._paces: dict[Cell, Pace] = {}
        self._observer = Observer(paths)
        self._left: dict[str, Worker] = {}
        self._turns = 0
        self._changed: float | None = None

    def look(self) -> Status:
        """The run's status now. Raises `StoreError` where the run cannot be read."""
        survey = self._surveyor.look()
        now = time.monotonic()
        workers = self._workers(survey)
        working = any(worker.at_work for worker in workers)
        rate = None if survey.ended else self._pace.rate(now, survey.turns, working=working) or _told(workers)
        return Status(
            self._paths.run_id,
            tuple(self._cell(count, now, working=working and count.held > 0) for count in survey.cells),
            workers,
            survey.turns,
            survey.settled,
            survey.total,
            survey.ended,
            rate,
            _left(survey.total - survey.settled, rate),
            self._quiet(survey, now),
            survey.problems,
        )

    def _workers(self, survey: Survey) -> tuple[WorkerStatus, ...]:
        """Those that say what they do; then processes that are only known from the notes at rollouts they write."""
        said = [worker for name in worker_ids(self._paths) if (worker := self._said(name)) is not None]
        named = {(worker.host, worker.pid) for worker in said}
        others = [_process(owner, held) for owner, held in survey.owners if (owner.host, owner.pid) not in named]
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
        beat = None if left else self._observer.age(worker.id)
        return WorkerStatus(worker.id, worker.host, state, lost, left, beat, worker.turns, rate, worker.held)

    def _cell(self, count: CellCount, now: float, *, working: bool) -> CellStatus:
        if count.ended == count.planned:
            self._paces.pop(count.cell, None)
            return CellStatus(count, None, None)
        rate = self._paces.setdefault(count.cell, Pace()).rate(now, count.turns, working=working)
        return CellStatus(count, rate, _left(count.total - count.settled, rate))

    def _quiet(self, survey: Survey, now: float) -> float | None:
        """At the first look the file system's clock has to do, later looks see turns come."""
        if self._changed is None:
            if survey.newest is None:
                return None
            self._changed = now - max(0.0, time.time() - survey.newest)
        elif survey.turns != self._turns:
            self._changed = now
        self._turns = survey.turns
        return now - self._changed


def _process(owner: Owner, held: int) -> WorkerStatus:
    """A process that left notes at the rollouts it writes, and says nothing else of itself."""
    return WorkerStatus(f"process {owner.pid}", owner.host, "gone" if owner.gone else "writing", owner.gone, False, None, None, None, held)


def _told(workers: tuple[WorkerStatus, ...]) -> float | None:
    """The rate that workers say they have, together."""
    return sum(worker.rate or 0.0 for worker in workers if worker.at_work) or None


def _left(turns: int, rate: float | None) -> float | None:
    return None if rate is None else turns / rate
