"""Workers as a SLURM job array, one task each, submitted through submitit (`pip install 'drift-cli[slurm]'`).

What a task runs is a command line (see `slurm_job`), so the batch script is all there is: nothing is pickled, no state is kept beside the run, and the script
that `--dry-run` prints can be given to `sbatch` by hand. `--requeue` and `--open-mode=append` are always in it: a task that is preempted, whose node fails or
whose time is over runs again, in the same log.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift_cli.errors import DriftError, UsageError
from drift_cli.launch.plan import Plan, worker_command

SIGNAL_BEFORE = 90
"""Seconds before the end of a job's time at which SLURM is asked to tell the worker (it may be a minute early). Only to be prompt: see `slurm_job`."""
_TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d+(:\d{1,2}){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_KEY = re.compile(r"[a-z][a-z0-9-]*")
_OURS = {
    "array": "--workers and --max-parallel",
    "requeue": "nothing: it is always on",
    "no-requeue": "nothing: a job that is not queued again does not go on",
    "open-mode": "nothing: logs are always appended to",
    "output": "nothing: where logs go is printed",
    "error": "nothing: where logs go is printed",
    "signal": "nothing: it is always on",
    "time": "--time",
    "ntasks": "--workers",
    "nodes": "--workers: a worker has one node",
}


@dataclass(frozen=True)
class Request:
    """What SLURM is asked for, for each worker. None leaves it to the partition."""

    partition: str | None = None
    time: str | None = None
    """As SLURM writes it: minutes, H:MM:SS, D-HH:MM:SS."""
    gres: str | None = None
    """Instead of the GPUs that the plan asks for, where a cluster wants them named: `gpu:a100:1`."""
    constraint: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus: int | None = None
    memory: str | None = None
    at_once: int | None = None
    """How many tasks of the array may run at a time."""
    setup: tuple[str, ...] = ()
    """Lines of shell that come before the worker: `module load cuda`."""
    other: tuple[str, ...] = ()
    """Further options of sbatch, `KEY=VALUE` or `KEY`."""

    def __post_init__(self) -> None:
        texts = (self.partition, self.time, self.gres, self.constraint, self.account, self.qos, self.memory, *self.setup, *self.other)
        for text in texts:
            if text is not None and (not text.strip() or not text.isprintable()):
                raise UsageError(f"{text!r} cannot stand in a batch script", mend="Give one line of text for each of SLURM's options.")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise UsageError(
                f"--time {self.time} is none of SLURM's", mend="Write minutes (90), H:MM:SS (12:00:00) or D-HH:MM:SS (1-00:00:00)."
            )
        for count, name in ((self.cpus, "--cpus-per-worker"), (self.at_once, "--max-parallel")):
            if count is not None and count < 1:
                raise UsageError(f"{name} {count} is less than one", mend=f"Use {name} 1 or more.")
        for text in self.other:
            key = text.partition("=")[0].removeprefix("--")
            if not _KEY.fullmatch(key):
                raise UsageError(
                    f"--sbatch {text} is no option of sbatch", mend="Write KEY=VALUE or KEY, as in --sbatch reservation=night."
                )
            if key in _OURS:
                raise UsageError(f"--sbatch {text}: drift sets --{key} itself", mend=f"Use {_OURS[key]}.")


@dataclass(frozen=True)
class Submitted:
    """A job array in SLURM's queue."""

    job: str
    tasks: int
    logs: Path
    """The folder of its logs and its batch script."""


def task_command(plan: Plan, run_folder: Path) -> tuple[str, ...]:
    """The command line of one task: a worker, and what sees to its time."""
    return (sys.executable, "-u", "-m", "drift_cli.launch.slurm_job", str(run_folder), *worker_command(plan))


def script(plan: Plan, request: Request, run_folder: Path, logs: Path) -> str:
    """The batch script. `UsageError` where an option or a path cannot stand in one, `DriftError` without submitit."""
    executor = _executor(plan, request, logs)
    return str(executor._make_submission_file_text(shlex.join(task_command(plan, run_folder)), ""))


def check_here() -> None:
    """Raise `DriftError` where jobs cannot be submitted from this machine."""
    if shutil.which("sbatch") is None:
        raise DriftError(
            "sbatch was not found: this machine is not part of a SLURM cluster",
            mend="Run this where `sbatch` works, or see the batch script with --dry-run; on this machine alone: drift launch --launcher local.",
        )


def submit(plan: Plan, request: Request, run_folder: Path, logs: Path) -> Submitted:
    """Put the workers into SLURM's queue.

    Raises:
        UsageError: an option or a path cannot stand in a batch script.
        DriftError: there is no submitit or no SLURM here, or SLURM refuses the job; the message has its words.
    """
    executor = _executor(plan, request, logs)
    check_here()
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    logs.mkdir(parents=True, exist_ok=True)
    said = io.StringIO()  # submitit prints what sbatch complains of, which is also in its error
    try:
        with redirect_stderr(said):
            job = executor._submit_command(shlex.join(task_command(plan, run_folder)))
    except (FailedJobError, FailedSubmissionError) as error:
        reason = " ".join(line.removeprefix("sbatch: error: ") for line in str(error).strip().splitlines())
        raise DriftError(
            f"SLURM did not take the job: {reason or 'sbatch gave no reason'}",
            mend="`sinfo` lists partitions; --dry-run prints the batch script that was given to sbatch.",
        ) from error
    for link in logs.glob(".submission_file_*.sh"):  # the script's second name, which submitit leaves behind
        if link.is_symlink() and link.resolve() == job.paths.submission_file.resolve():
            link.unlink(missing_ok=True)
    return Submitted(job.job_id, plan.workers, logs)


def _executor(plan: Plan, request: Request, logs: Path) -> Any:
    """submitit's own executor, told what the batch script is to say."""
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError as error:
        raise DriftError("submitit is not installed, which submits jobs to SLURM", mend="pip install 'drift-cli[slurm]'") from error
    for path in (logs, Path(sys.executable)):
        if "%" in str(path) or "\\" in str(path) or not str(path).isprintable():
            raise UsageError(
                f"{path} cannot stand in a batch script", mend="SLURM reads % and \\ in names as its own: use a store without."
            )

    # Its script is made on any machine: whether there is a SLURM is asked when it is submitted.
    array: Any = type("Array", (SlurmExecutor,), {"affinity": classmethod(lambda cls: 2)})
    executor = array(folder=logs)
    executor.update_parameters(**_parameters(plan, request))
    executor.parameters["map_count"] = plan.workers
    return executor


def _parameters(plan: Plan, request: Request) -> dict[str, Any]:
    other = {key.removeprefix("--"): value if equals else True for key, equals, value in (text.partition("=") for text in request.other)}
    return {
        "job_name": f"drift-{plan.run_id}",
        "partition": request.partition,
        "time": request.time,  # None: the partition's own, where submitit would say five minutes
        "gres": request.gres,
        "gpus_per_node": plan.gpus_per_worker if plan.gpus_per_worker and request.gres is None else None,
        "constraint": request.constraint,
        "account": request.account,
        "qos": request.qos,
        "cpus_per_task": request.cpus,
        "mem": request.memory,
        "array_parallelism": request.at_once or plan.workers,
        "signal_delay_s": SIGNAL_BEFORE,
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": list(request.setup) or None,
        # Since 22.05 srun does not take over how many CPUs its job has.
        "srun_args": [f"--cpus-per-task={request.cpus}"] if request.cpus else None,
        "additional_parameters": {"requeue": True, **other},
    }
