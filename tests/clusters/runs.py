"""A small run on the built-in model, and how it is looked at from outside: its files, its turns, whether it verifies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SETTINGS = ("--samples", "4", "--max-new-tokens", "40", "--transcript", "short.json", "--batch", "2")
USERS = ["hello there", "who are you", "and the light", "what is kind", "tell me more", "please help"]
TURNS = 4 * 4 * len(USERS)
"""Four conditions of the demo, four samples, and the script's turns."""


def prepare(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "short.json").write_text(json.dumps({"users": USERS}))
    return folder


def drift(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, code: int = 0) -> str:
    """A command as a user types it; what it wrote to both streams."""
    made = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    line = [sys.executable, "-m", "drift_cli", *arguments]
    done = subprocess.run(line, cwd=folder, env=made, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code, f"exit {done.returncode}\n{said}"
    return said


def run_folder(folder: Path) -> Path:
    (manifest,) = (folder / "checkpoints").glob("*/run.json")
    return manifest.parent


def files(folder: Path) -> dict[str, bytes]:
    """Rollouts' lines and residual means."""
    root = folder / "checkpoints"
    found = (path for path in sorted(root.glob("*/rollouts/**/*")) if path.suffix in {".jsonl", ".f32"})
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def committed(folder: Path) -> int:
    """Turns on disk."""
    return sum(data.count(b'{"turn":') for name, data in files(folder).items() if name.endswith(".jsonl"))


def is_whole(folder: Path, whole: Mapping[str, bytes]) -> None:
    """Nothing is lost, nothing doubled, every byte is that of a run of one process, and `verify` finds nothing wrong."""
    assert committed(folder) == TURNS
    found = files(folder)
    assert set(found) == set(whole)
    assert [name for name in whole if found[name] != whole[name]] == []
    drift(folder, "runs", "verify")
