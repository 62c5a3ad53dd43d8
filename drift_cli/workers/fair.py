"""How many rollouts one of several workers takes, so that there is something for each of them: a GPU may have slots for all that a run has.

A worker that holds its share of what is left takes no more, until others have left or what is left is more than it thought. Nothing hangs on it but speed: a
worker that holds nothing may always take something.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from drift_cli.workers.leases import HEARTBEAT, Life, Observer, worker_ids

_SETTLING = 60.0
"""Seconds after its start for which a worker leaves their share to those that were started with it and are yet to come."""
_SAMPLE = 32
"""Workers whose files are read to see how many of all live."""


@dataclass
class FairShare:
    """One worker's view of how many share a run."""

    observer: Observer
    worker: str
    among: int = 1
    """Workers that were started together with this one, itself included."""
    pause: float = HEARTBEAT
    """Seconds between looks."""
    _started: float = field(default_factory=time.monotonic)
    _ids: tuple[float, list[str]] | None = None
    _living: tuple[float, int] | None = None

    def allows(self, held: int, left: int) -> bool:
        """Whether a worker that holds `held` of `left` rollouts that have not ended may take another. Raises `StoreError`."""
        if held == 0:
            return True
        expected = self.among if time.monotonic() - self._started < _SETTLING else 1
        # How many live is asked only where it decides: it takes reads, and of hundreds of workers each would ask.
        return held < _part(left, max(len(self._known()), expected)) or held < _part(left, max(self._alive(), expected))

    def _known(self) -> list[str]:
        """Ids of workers that have a file, living or not."""
        now = time.monotonic()
        if self._ids is None or now - self._ids[0] >= self.pause:
            self._ids = now, worker_ids(self.observer.paths)
        return self._ids[1]

    def _alive(self) -> int:
        """How many of them live, or may; an estimate where there are many."""
        now, known = time.monotonic(), self._known()
        if self._living is None or now - self._living[0] >= self.pause:
            sample = known if len(known) <= _SAMPLE else random.Random(self.worker).sample(known, _SAMPLE)
            alive = sum(self.observer.life(worker) is not Life.GONE for worker in sample)
            self._living = now, round(len(known) * alive / max(1, len(sample)))
        return self._living[1]


def _part(left: int, workers: int) -> int:
    return -(-left // max(1, workers))
