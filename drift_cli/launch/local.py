"""Workers on this machine, each a process of its own with GPUs of its own.

A worker that dies is started again, unless that happens again and again and it commits nothing in between. What it held is free for the others at once, since
they see that its process is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drift_cli.errors import EXIT_USAGE, UsageError
from drift_cli.files import create_folder
from drift_cli.launch.plan import LAUNCHER, MOST_LOSSES, Finished, Plan, worker_command
from drift_cli.store.manifest import read_manifest
from drift_cli.store.paths import RunPaths
from drift_cli.workers.leases import read_worker

_GRACE = 20.0
"""Seconds that a worker has to stop when it is asked to. It needs two."""
_LOOK = 0.1
"""Seconds between two looks at the workers."""


def visible_gpus() -> list[str]:
    """The GPUs that may be used here, as `CUDA_VISIBLE_DEVICES` calls them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def check_gpus(workers: int, each: int) -> list[str]:
    """The GPUs of this machine, as `visible_gpus`, where workers are to have so many each. Raises `UsageError` where there are too few."""
    gpus = visible_gpus() if each else []
    if workers * each > len(gpus):
        raise UsageError(
            f"{workers} workers with {each} GPUs each need {workers * each}; this machine shows {len(gpus)}",
            mend="Use fewer --workers, or --gpus-per-worker 0 to work on the CPU.",
        )
    return gpus


@dataclass
class _Place:
    """Where one worker runs, and the one that runs there now."""

    number: int
    gpus: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    worker: str = ""
    started: int = 0
    losses: int = 0


@dataclass
class Workers:
    """A plan's workers on this machine. `tell` is given a sentence whenever something happens."""

    plan: Plan
    paths: RunPaths
    tell: Callable[[str], None]
    places: list[_Place] = field(default_factory=list)
    done: int = 0
    lost: int = 0
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises `UsageError` where this machine has too few GPUs."""
        each = self.plan.gpus_per_worker
        gpus = check_gpus(self.plan.workers, each)
        self.places = [_Place(number, gpus[number * each : (number + 1) * each]) for number in range(self.plan.workers)]

    def run(self, stop: Callable[[], bool], look: Callable[[], object]) -> Finished:
        """Start the workers and see them through. `look` is called now and then; `stop` ends them in order."""
        create_folder(self.paths.workers_root)
        try:
            for place in self.places:
                self._start(place)
            while any(place.process for place in self.places) and not stop():
                for place in self.places:
                    self._see_to(place)
                look()
                time.sleep(_LOOK)
        finally:
            self._end()
        return Finished(self.done, self.lost, tuple(self.failed), interrupted=stop())

    def _start(self, place: _Place) -> None:
        place.started += 1
        place.worker = f"local-{os.getpid()}-{place.number}-{place.started}"
        with self.paths.worker_log(place.worker).open("ab") as log:
            place.process = subprocess.Popen(
                worker_command(self.plan, place.worker), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(place)
            )

    def _environment(self, place: _Place) -> dict[str, str]:
        made = {**os.environ, LAUNCHER: "local", "DRIFT_DISPLAY": "plain", "CUDA_VISIBLE_DEVICES": ",".join(place.gpus)}
        if not place.gpus and "OMP_NUM_THREADS" not in os.environ:
            made["OMP_NUM_THREADS"] = str(threads(self.paths, self.plan.workers))
        return made

    def _see_to(self, place: _Place) -> None:
        """Notice that a worker has ended, and start it again where it did not end in order."""
        status = None if place.process is None else place.process.poll()
        if status is None:
            return
        place.process = None
        log = self.paths.worker_log(place.worker)
        if status == 0:
            self.done += 1
            log.unlink(missing_ok=True)
            return
        said = read_worker(self.paths, place.worker)
        place.losses = 0 if said is not None and said.turns else place.losses + 1
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
        if status == EXIT_USAGE or place.losses >= MOST_LOSSES:
            self.failed.append(str(log))
            self.tell(f"worker {place.worker} {how} and is not started again: {_last_line(log)} (all it said: {log})")
            return
        self.lost += 1
        self.tell(f"worker {place.worker} {how}: another one is started in its place")
        self._start(place)

    def _end(self) -> None:
        """Ask whoever still runs to stop, and see that they do."""
        running = [place.process for place in self.places if place.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + _GRACE
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for place in self.places:
            if place.process is not None:
                place.process = None
                self.paths.worker_log(place.worker).unlink(missing_ok=True)


def threads(paths: RunPaths, workers: int) -> int:
    """Threads of each of so many workers on this machine's CPU: as many as the run was made with so far, since its bits depend on that; else a fair share."""
    try:
        known = read_manifest(paths).threads
    except FileNotFoundError:
        known = None
    return known or max(1, (os.cpu_count() or 1) // workers)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "it said nothing"
    return lines[-1] if lines else "it said nothing"
