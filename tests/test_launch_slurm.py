"""Batch scripts, and what a SLURM job does when its time is over; SLURM's programs are shell scripts here (`tests/clusters` has the real ones)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from cli import drift

from drift_cli.errors import EXIT_INTERRUPTED, UsageError
from drift_cli.launch.plan import Plan
from drift_cli.launch.slurm import Request, script

needs_submitit = pytest.mark.skipif(subprocess.run([sys.executable, "-c", "import submitit"], capture_output=True, check=False).returncode != 0,
                                    reason="submitit is not installed: pip install 'drift-cli[slurm]'")  # fmt: skip
PLAN = Plan("demo-00000000", Path("/a store"), 4, gpus_per_worker=2)


def options(plan: Plan, request: Request) -> list[str]:
    text = script(plan, request, Path("/a store/demo-00000000"), Path("/a store/logs/demo-00000000"))
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


@needs_submitit
def test_a_script_asks_for_what_was_asked_for_and_always_to_be_queued_again() -> None:
    request = Request(
        "gpu", "1-00:00:00", None, "a100&nvlink", "lab", "high", 8, "64G", 2, ("module load cuda",), ("exclusive", "reservation=x")
    )
    found = options(PLAN, request)
    wanted = (
        "array=0-3%2 constraint='a100&nvlink' account=lab qos=high cpus-per-task=8 mem=64G gpus-per-node=2 time=1-00:00:00 partition=gpu"
    )
    assert {*wanted.split(), "exclusive", "reservation=x", "requeue", "open-mode=append"} <= set(found)
    text = script(PLAN, request, Path("/a store/demo-00000000"), Path("/a store/logs/demo-00000000"))
    assert text.index("module load cuda") < text.index("drift_cli work demo-00000000 --store '/a store'")


@needs_submitit
def test_what_nobody_asked_for_is_left_to_the_partition() -> None:
    found = " ".join(options(replace(PLAN, gpus_per_worker=0), Request()))
    assert not re.search(r"\b(time|partition|gpus|gres|mem|wckey|account)\b", found.replace("requeue", ""))
    assert "gres=gpu:a100:1" in options(PLAN, Request(gres="gpu:a100:1"))
    assert "gpus-per-node=2" not in options(PLAN, Request(gres="gpu:a100:1"))


@needs_submitit
def test_a_dry_run_prints_a_script_that_bash_understands_and_writes_nothing(tmp_path: Path) -> None:
    said = drift("launch", "--launcher", "slurm", "--workers", "3", "--device", "cpu", "--dry-run", "--json").json
    assert said["workers"] == 3
    assert "#SBATCH --array=0-2%3" in said["script"]
    assert subprocess.run(["bash", "-n"], input=said["script"], text=True, check=False).returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "request_",
    [
        {"time": "soon"},
        {"partition": "a\nb"},
        {"cpus": 0},
        {"at_once": 0},
        {"other": ("array=1",)},
        {"other": ("a b=c",)},
        {"setup": ("",)},
    ],
)
def test_what_cannot_stand_in_a_script_is_refused(request_: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Request(**request_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (["--launcher", "local", "--partition", "gpu"], "--launcher slurm"),
        (["--launcher", "slurm", "--ray-address", "auto"], "--launcher ray"),
        (["--launcher", "slurm"], "--workers"),
    ],
)
def test_options_of_another_launcher_are_refused(line: list[str], word: str) -> None:
    assert word in drift("launch", *line, code=2).err


# --- the process around a worker


class Job:
    """A SLURM job as its own processes see it."""

    def __init__(self, folder: Path, *, left: float | None, turns: int) -> None:
        self.folder, self.run = folder, folder / "demo-00000000"
        (self.run / "workers").mkdir(parents=True)
        worker = {"id": "w", "host": "h", "pid": 1, "place": "", "born": 0, "since": "", "turns": turns, "state": "left"}
        launcher = {"launcher": "slurm", "job": "7_3", "restarts": "0"}
        (self.run / "workers" / "w.json").write_bytes(orjson.dumps({**worker, "launcher": launcher}))
        end = "N/A" if left is None else (datetime.now(UTC).astimezone() + timedelta(seconds=left)).strftime("%Y-%m-%dT%H:%M:%S")
        self._program("squeue", f"echo {end}")
        self._program("scontrol", f'echo "$@" >> {folder}/asked')

    def _program(self, name: str, line: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.folder / name).chmod(0o755)

    def start(self, shell: str) -> subprocess.Popen[str]:
        facts = {"SLURM_JOB_ID": "11", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
        made = {**os.environ, **facts, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        line = [sys.executable, "-m", "drift_cli.launch.slurm_job", str(self.run), "bash", "-c", shell]
        return subprocess.Popen(line, env=made, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def asked(self) -> str:
        return (self.folder / "asked").read_text() if (self.folder / "asked").exists() else ""


STUBBORN = "trap 'exit 75' TERM; trap '' USR2; echo up; while :; do sleep 0.1; done"
"""A worker that stops when it is asked to by its own launcher, and takes no notice of SLURM's signal."""


def test_a_job_is_queued_again_by_its_own_clock_without_any_signal(tmp_path: Path) -> None:
    job = Job(tmp_path, left=3.0, turns=5)
    process = job.start(STUBBORN)
    said = process.communicate()[1]
    assert process.returncode == EXIT_INTERRUPTED
    assert job.asked == "requeue 7_3\n"
    assert "queued again" in said


def test_a_job_that_finished_no_turn_in_its_time_is_not_queued_for_ever(tmp_path: Path) -> None:
    job = Job(tmp_path, left=3.0, turns=0)
    process = job.start(STUBBORN)
    said = process.communicate()[1]
    assert process.returncode == EXIT_INTERRUPTED
    assert job.asked == ""
    assert "longer --time" in said


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_news_that_time_is_up_queues_again_and_a_cancelled_job_ends(number: signal.Signals, again: bool, tmp_path: Path) -> None:
    job = Job(tmp_path, left=None, turns=5)
    process = job.start("trap 'exit 75' USR2 TERM; echo up; while :; do sleep 0.1; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    process.communicate()
    assert process.returncode == EXIT_INTERRUPTED
    assert bool(job.asked) == again


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_worker_that_ends_by_itself_ends_its_job_as_it_did(status: int, tmp_path: Path) -> None:
    job = Job(tmp_path, left=600.0, turns=5)
    process = job.start(f"exit {status}")
    process.communicate()
    assert (process.returncode, job.asked) == (status, "")
