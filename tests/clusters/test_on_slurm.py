"""A run on a real SLURM: arrays, preemption, time limits, cancelled jobs. Each ends in the bytes of a run that one process made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import runs
from slurm_cluster import Slurm, until

LAUNCH = ("launch", "--launcher", "slurm", "--device", "cpu", "--partition", "low", *runs.SETTINGS)
PATIENCE = 420.0
"""Seconds for four workers to do what one does in some 20, on a machine that does other things too."""


def submit(slurm: Slurm, folder: Path, *arguments: str) -> str:
    """`drift launch`; the job's number."""
    said = runs.drift(runs.prepare(folder), *LAUNCH, *arguments, environment=slurm.environment)
    found = re.search(r"SLURM has job (\d+)", said)
    assert found is not None, said
    return found[1]


def logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted((folder / "checkpoints" / "logs").rglob("*.out")))


def is_over(slurm: Slurm, job: str, folder: Path) -> None:
    try:
        until(lambda: not slurm.queue(job), "the job to be over", PATIENCE)
    except AssertionError as error:
        pytest.fail(f"{error}\n{logs(folder)}\n{slurm.said()}")


def begun(slurm: Slurm, job: str, folder: Path, turns: int = 4) -> None:
    until(lambda: runs.committed(folder) >= turns, f"{turns} turns of job {job}", PATIENCE)


def test_an_array_of_four_finishes_a_run(slurm: Slurm, whole: dict[str, bytes], tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, "--workers", "4")
    is_over(slurm, job, tmp_path)
    runs.is_whole(tmp_path, whole)
    told = logs(tmp_path)
    assert len(set(re.findall(r"^worker (\S+) on cpu", told, re.MULTILINE))) == 4
    assert not list((tmp_path / "checkpoints" / "logs").rglob("*.pkl"))


def test_a_preempted_job_is_queued_again_and_goes_on_in_the_same_bytes(slurm: Slurm, whole: dict[str, bytes], tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, "--workers", "4")
    begun(slurm, job, tmp_path)
    urgent = slurm.do("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
    until(lambda: slurm.restarts(job) >= 4, "all four tasks to be preempted", 120)
    assert runs.committed(tmp_path) < runs.TURNS
    until(lambda: not slurm.queue(urgent), "the urgent job to be over", 120)
    is_over(slurm, job, tmp_path)
    runs.is_whole(tmp_path, whole)
    assert "DUE TO PREEMPTION" in logs(tmp_path)  # in the same log as what came after


def test_a_job_whose_time_is_over_is_queued_again(slurm: Slurm, whole: dict[str, bytes], tmp_path: Path) -> None:
    """SLURM's shortest limit is a minute; its signal comes earlier (see `test_launch_slurm.py` for the job's own clock)."""
    job = submit(slurm, tmp_path, "--workers", "1", "--time", "1", "--samples", "16")
    begun(slurm, job, tmp_path)
    until(lambda: slurm.restarts(job) >= 1, "the job to be queued again", 240)
    assert "is queued again" in logs(tmp_path)
    slurm.do("scancel", job)
    is_over(slurm, job, tmp_path)
    runs.drift(tmp_path, "runs", "verify")


def test_a_cancelled_array_ends_and_the_same_line_goes_on(slurm: Slurm, whole: dict[str, bytes], tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, "--workers", "4", "--max-parallel", "2")
    begun(slurm, job, tmp_path)
    slurm.do("scancel", job)
    is_over(slurm, job, tmp_path)
    assert 0 < runs.committed(tmp_path) < runs.TURNS
    again = submit(slurm, tmp_path, "--workers", "4")
    is_over(slurm, again, tmp_path)
    runs.is_whole(tmp_path, whole)


def test_what_slurm_refuses_is_said_in_its_words(slurm: Slurm, tmp_path: Path) -> None:
    said = runs.drift(runs.prepare(tmp_path), *LAUNCH, "--workers", "2", "--partition", "nowhere", environment=slurm.environment, code=1)
    assert "SLURM did not take the job: invalid partition specified: nowhere" in said
    assert "sinfo" in said
    assert "Traceback" not in said
