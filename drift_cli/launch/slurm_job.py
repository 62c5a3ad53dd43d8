"""Runs one worker inside a SLURM job, and has the job queued again when its time is over. `python -m drift_cli.launch.slurm_job RUN_FOLDER COMMAND…`

SLURM queues a job again that it preempts, or whose node fails; one whose time limit is reached it ends for good. So this process asks SLURM once when that
will be and, a little before, ends the worker and asks for the job to be queued again. It does so by its own clock: the signal that SLURM may send before is
taken as the same news, earlier. A job that is cancelled ends; a worker that fails ends its job as failed; a job in whose whole time no turn was committed is
not queued again, since it would be for ever. Whatever happens here, committed turns are on disk.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from drift_cli.errors import EXIT_INTERRUPTED
from drift_cli.launch.plan import launcher_of
from drift_cli.store.paths import RunPaths
from drift_cli.workers.leases import read_workers

MARGIN = 60.0
"""Seconds before the end of the job's time at which its worker is stopped; at most a tenth of the time there is."""
_GRACE = 20.0
"""Seconds that a worker has to stop. It needs two."""
_LEAVE = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_TIME_UP = signal.SIGUSR2
"""What the batch script asks SLURM to send before the job's time is over."""


def job_id(environment: Mapping[str, str]) -> str:
    """This job as scontrol calls it. A task's own number would do but for one task of each array, which has the number of the whole."""
    job, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task else environment["SLURM_JOB_ID"]


def seconds_left(job: str) -> float | None:
    """Seconds until SLURM ends this job, None where it has no limit or SLURM does not say."""
    try:
        asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%e"], capture_output=True, text=True, check=True, timeout=60)
        # Local time, as SLURM writes it; both clocks are this node's but for what differs between it and the controller.
        return datetime.fromisoformat(asked.stdout.strip()).timestamp() - time.time()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


class Task:
    """A worker's process, its deadline, and whether it is to run again."""

    def __init__(self, command: Sequence[str], left: float | None) -> None:
        self.time_up = False
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        for number in (*_LEAVE, _TIME_UP):
            signal.signal(number, self._pass_on)
        self._deadline = None if left is None else time.monotonic() + left - min(MARGIN, left / 10)
        self._child = subprocess.Popen(command)
        for early in self._early:  # what came while there was no process yet to pass it on to
            self._child.send_signal(early)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.time_up = self.time_up or number == _TIME_UP
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)

    def wait(self) -> int:
        """The worker's exit status, once it is gone."""
        assert self._child is not None
        try:
            return self._child.wait(None if self._deadline is None else max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _say("the job's time is nearly over: the worker is stopped")
        self.time_up = True
        self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            return EXIT_INTERRUPTED


def main(arguments: Sequence[str]) -> int:
    """The worker's exit status, or the one that means interrupted."""
    run, job = RunPaths(Path(arguments[0])), job_id(os.environ)
    task = Task(arguments[1:], seconds_left(job))
    status = task.wait()
    if status == 0 or not task.time_up:
        return status if status >= 0 else 128 - status
    if not _turns_made(run):
        _say(
            f"no turn was finished in the time this job has, so it is not queued again. Start workers with a longer --time for {run.run_id}"
        )
        return EXIT_INTERRUPTED
    asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        _say(f"job {job} is queued again")
    else:
        _say(
            f"SLURM does not queue job {job} again: {asked.stderr.strip()}\nThe same `drift launch` starts workers again; turns that are done are kept."
        )
    return EXIT_INTERRUPTED


def _turns_made(run: RunPaths) -> bool:
    """Whether the worker of this very job, since it last began, has committed a turn; true where that is not known."""
    me = launcher_of()
    mine = [worker.turns for worker in read_workers(run) if dict(worker.launcher) == me]
    return not mine or sum(mine) > 0


def _say(text: str) -> None:
    print(f"drift: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
