"""Real SLURM and real Ray on this machine: `make clusters`. Where they are not installed these tests are skipped, and say what is missing."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import runs
from slurm_cluster import Slurm, missing


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the run as one process makes it, by plain `drift generate`."""
    folder = runs.prepare(tmp_path_factory.mktemp("whole"))
    runs.drift(folder, "generate", *runs.SETTINGS)
    return runs.files(folder)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if missing() or find_spec("submitit") is None:
        pytest.skip(f"SLURM is not installed ({', '.join([*missing(), 'submitit'][:1])} is missing): run `make clusters` as root on Debian")
    if os.getuid() != 0:
        pytest.skip("a SLURM of one's own needs root here: its nodes start jobs as their users")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()


class RayCluster:
    """A head and two nodes, see `ray_cluster.py`. `environment` is what a driver of it needs."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="drift-test-")  # short: sockets are in it
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self.folder,  # where Cluster notes its address for others to find
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "OMP_NUM_THREADS": "1",
        }
        Path(self.folder, "ray").mkdir()
        script = Path(__file__).with_name("ray_cluster.py")
        line = [sys.executable, str(script), self.folder]
        self.errors = (Path(self.folder) / "errors").open("wb")
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=self.environment
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def kill(self, node: int) -> None:
        """A node's processes end as in a power cut."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{node}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == f"killed {node}"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def ray_cluster() -> Iterator[RayCluster]:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: run `make clusters`")
    cluster = RayCluster()
    try:
        assert cluster.address.startswith("127.0.0.1:"), Path(cluster.folder, "errors").read_text()
        yield cluster
    finally:
        cluster.close()
