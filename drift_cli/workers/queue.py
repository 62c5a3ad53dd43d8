"""What is left of a run, as one worker takes it: claimed a rollout (or a group of them) at a time, in an order of its own.

Nobody deals the work out. Each worker goes through the plan, passes over what has ended and what others hold, and claims what is free, or what a worker
that is gone has left. So that five hundred of them do not all try the same file first, each goes through the cells in an order shuffled by its id, and
through a cell from a sample of its own on. What was held by others is looked at again every now and then.

Costs, for file systems where they count: a listing of two folders and a read per cell and look; a read of the last line of each rollout that was begun and that
no worker said had ended; a file made and removed per rollout taken. What others hold is passed over without a read until nothing else is left; then
claims are read, for a small part of the time (docs/scaling.md has what all this amounts to).
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from drift_cli.spec import Cell, Rollout
from drift_cli.store.paths import RunPaths
from drift_cli.store.run import RolloutState, Run
from drift_cli.store.tails import tail_state
from drift_cli.workers.claims import Claims, claimed, forget_ended, read_holder, seen_ended
from drift_cli.workers.fair import FairShare
from drift_cli.workers.files import names_of
from drift_cli.workers.leases import HEARTBEAT, Life, worker_ids

_FRESH = 5.0
"""Seconds for which a listing of a cell is good enough: what it misses costs a failed claim, no more."""
_SOON = 0.5
"""Seconds to the next look where it is known to find something."""
_FEW_CELLS = 16
"""Cells that a worker looks at before it takes anything, to know what its share is."""
_BUDGET = 0.25
"""Seconds that a look at what others held may take while rollouts of one's own may be waiting for it."""
_REST = 20.0
"""Times as long as such a look took, until it goes on: hundreds of workers leave a file server to those who still commit."""

Unit = tuple[Rollout, ...]
"""What is claimed together."""


class QueueState(StrEnum):
    """Why nothing can be taken."""

    DONE = "done"
    """Every rollout has ended."""
    HELD = "held"
    """What is left is held by workers that live."""
    OPEN = "open"
    """Something is held by a worker of which it is not known whether it lives, or can be taken the next time."""


@dataclass(frozen=True)
class _Listing:
    """A cell's samples at one look."""

    when: float
    claimed: frozenset[int]
    begun: frozenset[int]
    ended: frozenset[int]
    """Begun, and said to have ended."""


class Queue:
    """A run's rollouts that have not ended, for one worker."""

    def __init__(
        self, run: Run, claims: Claims, *, size: int = 1, shuffled: bool = False, pause: float = HEARTBEAT, fair: FairShare | None = None
    ) -> None:
        """`size` planned rollouts are claimed together; where it is more than 1, they are the same groups in every worker. `pause`: seconds between looks.
        `fair` says how much of the run is this worker's; without it, all that it can get.
        """
        self.run, self.claims, self.pause, self.fair = run, claims, pause, fair
        self.totals = {name: transcript.total for name, transcript in run.manifest.transcripts.items()}
        self._untried = deque(_units(run, size, random.Random(claims.worker) if shuffled else None))
        self._planned = sum(map(len, self._untried))
        self._held: list[Unit] = []
        self._taken: dict[Rollout, Unit] = {}
        self._ended: set[Rollout] = set()
        self._holders: dict[Rollout, str] = {}
        self._locked: set[Rollout] = set()
        self._listings: dict[Cell, _Listing] = {}
        self._lazy = shuffled
        """Whether what others hold is passed over unasked: by one of many workers, in its first round."""
        self._first, self._again, self._rest = True, 0.0, 0.0
        # Seen now, and again when their claims are asked for: by then those without a heartbeat in between are known to be gone.
        for worker in worker_ids(run.paths) if shuffled else ():
            claims.observer.worker(worker)

    def take(self) -> list[RolloutState] | None:
        """Claim what comes next: its rollouts as they are now, of which those that have not ended are claimed. None where nothing can be taken now.

        Raises `StoreError` where a rollout's file is damaged; the next call goes on behind it.
        """
        if self.fair is not None and not self.fair.allows(len(self.claims.held), self._all_left()):
            return None
        self._look_again()
        started = time.monotonic()
        if not self._first and started < self._rest:
            return None
        while self._untried:
            if (states := self._claim(self._next())) is not None:
                return states
            spent = time.monotonic() - started
            if not self._first and spent > _BUDGET:
                self._rest = time.monotonic() + _REST * spent
                break
        return None

    def is_open(self) -> bool:
        """Whether something could be taken now. Nothing is claimed. Raises as `take`."""
        self._look_again()
        while self._untried:
            unit = self._next()
            left = self._left(unit)
            if left and not any(self._is_held(rollout) for rollout in left):
                self._untried.appendleft(unit)
                return True
            self._held += [unit] if left else []
        return False

    def put_back(self, rollouts: Iterable[Rollout]) -> None:
        """Rollouts that were taken and given up again are to be tried another time, with what was claimed together with them."""
        self._held += dict.fromkeys(self._taken[rollout] for rollout in rollouts)
        self._again = max(self._again, time.monotonic() + self.pause)

    def locked(self, rollouts: Sequence[Rollout]) -> None:
        """Rollouts that were taken and put back turned out to be locked: whoever writes them lives, claim or not."""
        self._locked.update(rollouts)

    def ended(self, rollout: Rollout) -> None:
        """A rollout has ended: nobody needs to look at it again."""
        self._ended.add(rollout)

    def state(self) -> QueueState:
        """Why nothing can be taken, once `take` or `is_open` has found nothing."""
        lives = [self._life(unit) for unit in (*self._untried, *self._held) if not self._ended.issuperset(unit)]
        if Life.GONE in lives:
            # Somebody left or died since the last look: no need to wait for the next one to be due.
            self._again = min(self._again, time.monotonic() + _SOON)
        return QueueState.OPEN if {Life.GONE, Life.QUIET} & {*lives} else QueueState.HELD if lives else QueueState.DONE

    def others(self) -> dict[str, int]:
        """Who holds what is left, as far as this worker knows: ids ("" for a process that has no claim) and how many rollouts."""
        found: Counter[str] = Counter()
        for unit in self._held:
            left = [rollout for rollout in unit if rollout not in self._ended]
            known = (self._holders[rollout] for rollout in left if rollout in self._holders and rollout not in self._locked)
            found[next(known, "")] += len(left)
        return dict(+found)

    def _life(self, unit: Unit) -> Life:
        """Whether somebody is at a unit that could not be taken."""
        lives = {self.claims.observer.life(self._holders[rollout]) for rollout in unit if rollout in self._holders}
        if not self._locked.isdisjoint(unit):
            return Life.ALIVE
        return next((life for life in (Life.ALIVE, Life.QUIET) if life in lives), Life.GONE)

    def _all_left(self) -> int:
        """Rollouts of the run that have not ended, as far as this worker knows. Where there are few cells, it looks at each once."""
        cells = {plan.cell for plan in self.run.manifest.cells}
        for cell in cells - self._listings.keys() if len(cells) <= _FEW_CELLS else ():
            self._ended.update(Rollout(cell, sample) for sample in self._listing(cell).ended)
        return self._planned - len(self._ended)

    def _look_again(self) -> None:
        """Begin another round with what was held by others, if the last one is long enough ago."""
        if not self._untried and time.monotonic() >= self._again:
            self._untried, self._held, self._first, self._lazy = deque(self._held), [], False, False
            self._listings.clear()

    def _next(self) -> Unit:
        unit = self._untried.popleft()
        if not self._untried:
            self._again = time.monotonic() + (0.0 if self._lazy else self.pause)
        return unit

    def _claim(self, unit: Unit) -> list[RolloutState] | None:
        """Claim what has not ended of a unit: all or nothing. None where all of it has, or somebody holds a part."""
        left, surplus = self._left(unit), list[Rollout]()
        try:
            for rollout in left:
                if self._is_held(rollout) or not self.claims.take_over(rollout):
                    self._held.append(unit)
                    return None
                surplus.append(rollout)
            states = [self._state(rollout) for rollout in unit] if left else []
            # What ended between the look and the claim needs no claim.
            surplus = [state.rollout for state in states if state.ended and state.rollout in surplus]
            self._locked.difference_update(unit)
            self._taken.update(dict.fromkeys(unit, unit))
            return None if all(state.ended for state in states) else states
        finally:
            for rollout in surplus:
                self.claims.release(rollout)

    def _left(self, unit: Unit) -> Unit:
        """What has not ended of a unit. Rollouts that others hold count as not ended; their files are not read."""
        self._ended.update(rollout for rollout in unit if rollout.sample in self._listing(rollout.cell).ended)
        return tuple(
            rollout for rollout in unit if rollout not in self._ended and (self._is_claimed(rollout) or not self._state(rollout).ended)
        )

    def _is_held(self, rollout: Rollout) -> bool:
        """Whether a worker that may be alive holds a rollout."""
        if not self._is_claimed(rollout) or self._lazy:
            return self._is_claimed(rollout)
        known = self._holders.pop(rollout, None)
        # While a worker lives, what it was once seen to hold is not read again.
        if known is None or self.claims.observer.life(known) is Life.GONE:
            known = read_holder(self.claims.paths, rollout)
        if known:
            self._holders[rollout] = known
        return known is not None and self.claims.life_of(rollout, known) is not Life.GONE

    def _is_claimed(self, rollout: Rollout) -> bool:
        return rollout.sample in self._listing(rollout.cell).claimed

    def _state(self, rollout: Rollout) -> RolloutState:
        """How far a rollout is now. Raises `StoreError` where its file is damaged."""
        done, end = (0, None)
        if rollout.sample in self._listing(rollout.cell).begun or rollout in self.claims.held:
            done, end = tail_state(self.run.paths, rollout)
        if end is not None:
            self._ended.add(rollout)
        return RolloutState(rollout, done, self.totals[rollout.cell.transcript], end)

    def _listing(self, cell: Cell) -> _Listing:
        known = self._listings.get(cell)
        if known is None or time.monotonic() - known.when > _FRESH:
            # In this order: what ends meanwhile is seen claimed, or ended, and never free.
            held, begun = frozenset(claimed(self.run.paths, cell)), _begun(self.run.paths, cell)
            known = _Listing(time.monotonic(), held, begun, begun & seen_ended(self.run.paths, cell))
            self._listings[cell] = known
        return known


def correct_hints(paths: RunPaths, states: Sequence[RolloutState]) -> bool:
    """Take away what workers told each other of rollouts that have ended (see `claims`), where it is wrong, and where nothing is left to do.

    Returns whether nothing is.
    """
    left = {state.rollout for state in states if not state.ended}
    for cell in dict.fromkeys(state.rollout.cell for state in states):
        if not left or any(Rollout(cell, sample) in left for sample in seen_ended(paths, cell)):
            forget_ended(paths, cell)
    return not left


def _begun(paths: RunPaths, cell: Cell) -> frozenset[int]:
    """Samples of a cell that have a file of lines."""
    folder = paths.cell(cell)
    found = (paths.rollout_of(folder / name) for name in names_of(folder) if name.endswith(".jsonl"))
    return frozenset(rollout.sample for rollout in found if rollout is not None)


def _units(run: Run, size: int, chance: random.Random | None) -> list[Unit]:
    """A run's plan in units, in the manifest's order or, with `chance`, in an order of one's own."""
    if size == 1 and chance is not None:
        made: list[Unit] = []
        for plan in chance.sample(run.manifest.cells, len(run.manifest.cells)):
            first = chance.randrange(plan.samples)
            made += [(Rollout(plan.cell, (first + place) % plan.samples),) for place in range(plan.samples)]
        return made
    planned = [Rollout(plan.cell, sample) for plan in run.manifest.cells for sample in range(plan.samples)]
    groups = [tuple(planned[start : start + size]) for start in range(0, len(planned), size)]
    first = 0 if chance is None else chance.randrange(len(groups))
    return groups[first:] + groups[:first]
