"""Every test runs in a folder of its own, without the user's environment and without a network."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from drift_cli.models import LoadedModel

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported: without a GPU its kernels run in its interpreter


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DRIFT_") and name != "DRIFT_SEED_DATA"]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it, and tables follow it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder per architecture, made once."""
    import tiny

    root = tmp_path_factory.mktemp("models")
    return {name: tiny.save(name, root / f"tiny-{name}") for name in tiny.ARCHITECTURES}


@pytest.fixture(scope="session")
def loaded(tiny_models: dict[str, Path]) -> dict[str, LoadedModel]:
    """The tiny models in memory, float32."""
    from drift_cli import models

    return {name: models.load(models.describe(str(path)), dtype="float32", device="cpu") for name, path in tiny_models.items()}


@pytest.fixture
def seed_data() -> Path:
    """The real data of the original experiment, where this machine has it."""
    folder = os.environ.get("DRIFT_SEED_DATA")
    if not folder:
        pytest.skip("DRIFT_SEED_DATA is not set")
    return Path(folder)
