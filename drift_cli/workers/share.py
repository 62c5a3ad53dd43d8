"""How a process takes part in a run: as a worker with a file and claims, in which order it takes rollouts, and what it waits for.

A process that was asked for a run (`drift generate`) takes rollouts in the plan's order; one of many workers (`drift work`) takes them in an order of its own.
Both claim what they take, so that any number of either can be at one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from drift_cli.engine.contract import Stopped
from drift_cli.errors import StoreError
from drift_cli.store.run import Run
from drift_cli.workers.claims import Claims
from drift_cli.workers.fair import FairShare
from drift_cli.workers.leases import HEARTBEAT, LEASE, Observer, Presence, WorkerState, default_name, forget_workers, read_workers
from drift_cli.workers.queue import Queue, QueueState, correct_hints

_STEP = 0.1
"""Seconds between two questions whether to stop, while waiting."""


@dataclass
class Share:
    """One worker's part in a run."""

    presence: Presence
    claims: Claims
    shuffled: bool = False
    """Whether it takes rollouts in an order of its own, not in the plan's."""
    turns: tuple[int, int] | None = None
    """All turns of the run, and how many are done, where that is known: what progress is shown over. None: over those of the rollouts it takes."""
    among: int = 1
    """Workers that were started together with this one, itself included."""
    complete: bool = False
    """Whether every rollout of the run was seen to have ended."""

    def queue(self, run: Run, size: int) -> Queue:
        """What is left of the run, `size` rollouts claimed together."""
        pause = min(HEARTBEAT, self.presence.lease / 6)
        fair = FairShare(self.claims.observer, self.presence.id, self.among, pause)
        return Queue(run, self.claims, size=size, shuffled=self.shuffled, pause=pause, fair=fair)

    def wait(self, note: Callable[[str], object], queue: Queue, ready: Callable[[], bool], stop: Callable[[], bool]) -> bool:
        """True once `ready()`; False where there is nothing to wait for: all has ended, or what is left is held by workers that live.

        `note` is told what it waits for. Raises `Stopped` where `stop()` turns true.
        """
        said = False
        while not ready():
            state = queue.state()
            if state is not QueueState.OPEN:
                self.complete = state is QueueState.DONE
                return False
            if not said and (others := self.named(queue.others())):
                note(f"waiting to see whether others are still at work: {others}")
                said = True
            self.presence.now(WorkerState.WAITING)
            if stop():
                raise Stopped
            time.sleep(_STEP)
        return True

    def named(self, others: Mapping[str, int]) -> str:
        """Who holds what, in words; empty where nobody is known by name."""
        said = {worker: self.claims.observer.worker(worker) for worker in others if worker}
        parts = [f"{worker or name} ({others[name]} rollouts)" for name, worker in said.items()]
        if "" in others:
            parts.append(f"a process without a claim ({others['']} rollouts)")
        return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")


@contextmanager
def take_part(
    run: Run,
    name: str | None = None,
    *,
    lease: float = LEASE,
    launcher: Mapping[str, str] | None = None,
    shuffled: bool = False,
    among: int = 1,
) -> Iterator[Share]:
    """Be a worker of a run, as long as the context lasts. The last one to leave clears away what workers left behind, where the run is complete.

    Where it is not, hints that say otherwise are taken away, so that the next worker looks for itself.
    """
    with Presence(run.paths, name or default_name(), lease=lease, launcher=launcher) as presence:
        share = Share(presence, Claims(run.paths, presence.id, Observer(run.paths)), shuffled, among=among)
        yield share
    # That all has ended it knows from others, too. Only the last one looks: five hundred would keep a file server busy for longer than the run.
    if share.complete and all(worker.over for worker in read_workers(run.paths)) and _is_complete(run):
        forget_workers(run.paths)


def _is_complete(run: Run) -> bool:
    """Whether every rollout has ended, by its file; wrong hints are taken away. Damage, of which whoever met it has told, is not complete."""
    try:
        return correct_hints(run.paths, run.states())
    except StoreError:
        return False
