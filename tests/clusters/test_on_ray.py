"""A run on a real Ray: nodes that are lost, a private cluster, a stop. Each ends in the bytes of a run that one process made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import runs
from conftest import RayCluster
from slurm_cluster import until

from drift_cli.errors import EXIT_INTERRUPTED

LAUNCH = ("launch", "--launcher", "ray", "--device", "cpu", "--workers", "4", *runs.SETTINGS)
PATIENCE = 420.0


def begin(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "drift_cli", *LAUNCH, *arguments]
    return subprocess.Popen(
        line,
        cwd=runs.prepare(folder),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=PATIENCE)[0]


def test_a_node_that_is_killed_loses_and_doubles_nothing(ray_cluster: RayCluster, whole: dict[str, bytes], tmp_path: Path) -> None:
    launched = begin(tmp_path, ray_cluster.environment, "--ray-address", ray_cluster.address)
    until(lambda: runs.committed(tmp_path) >= 8, "turns of both nodes", PATIENCE)
    ray_cluster.kill(0)
    assert runs.committed(tmp_path) < runs.TURNS
    told = said(launched)
    assert launched.returncode == 0, told
    assert "another is started in its place" in told
    runs.is_whole(tmp_path, whole)


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """What is started within ignores a signal."""
    before = signal.signal(number, signal.SIG_IGN)
    yield
    signal.signal(number, before)


def test_a_private_cluster_joins_nobody_and_leaves_nothing_behind(whole: dict[str, bytes], tmp_path: Path) -> None:
    """RAY_ADDRESS names a cluster that is not there: whoever looked at it would wait for it in vain."""
    pytest.importorskip("ray", reason="Ray is not installed: run `make clusters`")
    (tmp_path / "t").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "127.0.0.1:1", "TMPDIR": "/tmp", "HOME": str(tmp_path / "t")}
    more = ("--samples", "8")  # so that it is far from done when it is asked to stop, however late that comes through
    with ignored(signal.SIGINT):  # as whatever a shell puts in the background finds it
        launched = begin(tmp_path, environment, *more)
    until(lambda: runs.committed(tmp_path) > 0, "turns", PATIENCE)
    launched.send_signal(signal.SIGTERM)  # for which Ray has a handler of its own
    told = said(launched)
    assert launched.returncode == EXIT_INTERRUPTED, told
    assert "Go on with the same line" in told
    assert 0 < runs.committed(tmp_path) < 2 * runs.TURNS
    again = begin(tmp_path, environment, *more)
    told = said(again)
    assert again.returncode == 0, told
    assert runs.committed(tmp_path) == 2 * runs.TURNS
    assert {name: content for name, content in runs.files(tmp_path).items() if name in whole} == whole
    assert not list((tmp_path / "t").iterdir())


def test_an_address_where_nothing_answers_is_an_error_that_names_it(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: run `make clusters`")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = runs.drift(runs.prepare(tmp_path), *LAUNCH, "--ray-address", "127.0.0.1:1", environment=environment, code=1)
    assert "no Ray cluster answers at 127.0.0.1:1" in told
    assert "Traceback" not in told
