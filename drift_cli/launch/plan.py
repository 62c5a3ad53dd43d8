"""What a launch starts: so many workers of one run, and the command line of each. No torch.

Launchers start these commands, see to it that each has GPUs of its own, and start again those that die. They coordinate nothing: workers do that
themselves, through the run's folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from drift_cli.errors import UsageError

LAUNCHER = "DRIFT_LAUNCHER"
"""The environment variable by which a launcher tells a worker what started it (`local`, `ray`); it is shown with the worker."""
MOST_LOSSES = 3
"""Workers lost in a row, with no turn committed in between, after which none is started again."""


class Launcher(StrEnum):
    """Where workers are started."""

    LOCAL = "local"
    """On this machine, one process each."""
    SLURM = "slurm"
    """As the tasks of a job array."""
    RAY = "ray"
    """As Ray tasks."""


@dataclass(frozen=True)
class Plan:
    """Workers of one run, all alike."""

    run_id: str
    store: Path
    """Absolute, and seen under this name by every worker."""
    workers: int
    gpus_per_worker: int = 0
    """GPUs that a worker sees and uses, 0 for none: it works on the CPU then. With more than one, its model is spread over them."""
    device: str | None = None
    """What each worker is told of devices, beyond the GPUs it sees; None for the run's own setting."""
    batch: int | None = None
    engine: str | None = None
    """The rollout engine: auto, slots or reference; None for the run's own setting."""
    lease: float | None = None
    """Seconds without a heartbeat after which a worker is taken to be gone; None for the default."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"{self.workers} workers were asked for", mend="Use --workers 1 or more.")
        if self.gpus_per_worker < 0:
            raise UsageError(f"{self.gpus_per_worker} GPUs per worker were asked for", mend="Use --gpus-per-worker 0 or more.")
        if not self.store.is_absolute():
            raise ValueError(f"the store {self.store} is not absolute: workers start in other folders")


@dataclass(frozen=True)
class Finished:
    """How a launch ended."""

    done: int
    """Workers that left because nothing was left to take."""
    lost: int
    """Workers that ended otherwise and were started again."""
    failed: tuple[str, ...] = ()
    """Logs of workers that failed and were not started again."""
    interrupted: bool = False


class Crew(Protocol):
    """A plan's workers, wherever they run."""

    def run(self, stop: Callable[[], bool], look: Callable[[], None]) -> Finished:
        """Start the workers and see them through. `look` is called now and then; `stop` ends them in order."""


def worker_command(plan: Plan, worker: str | None = None) -> tuple[str, ...]:
    """The command line of one worker, with this Python. Without `worker` it finds an id for itself (see `launcher_of`)."""
    line = [sys.executable, "-m", "drift_cli", "work", plan.run_id, "--store", str(plan.store)]
    options = {
        "--worker": worker,
        "--device": plan.device,
        "--gpus": plan.gpus_per_worker if plan.gpus_per_worker > 1 else None,
        "--batch": plan.batch,
        "--engine": plan.engine,
        "--lease": plan.lease,
        "--among": plan.workers if plan.workers > 1 else None,
    }
    return (*line, *(part for option, value in options.items() if value is not None for part in (option, str(value))))


def launcher_of(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What started this process, for people: SLURM's job where there is one, else what `DRIFT_LAUNCHER` says; empty for a worker started by hand."""
    if job := environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID"):
        task, restarts = environment.get("SLURM_ARRAY_TASK_ID"), environment.get("SLURM_RESTART_COUNT")
        facts = {"launcher": "slurm", "job": job if task is None else f"{job}_{task}", "restarts": restarts or "0"}
        return {key: value[:80] for key, value in facts.items()}
    named = environment.get(LAUNCHER)
    return {"launcher": named[:80]} if named else {}
