"""Runs cases and says what broke."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tiny

from hostile.cases import GENERATE, Case, Material, talk
from hostile.server import Server


@dataclass(frozen=True)
class Found:
    """A case and what became of it."""

    case: Case
    code: int
    problem: str | None
    words: str


def material(root: Path) -> Material:
    """A tiny model, and a run of the built-in model with an axis, controls, traces and a reference line."""
    model = tiny.save("llama", root / "model")
    run = root / "run"
    run.mkdir()
    talk(run)
    (run / "done.json").write_text('{"users": ["hello there", "who are you"], "replies": ["yes", "no"]}')
    base = (*GENERATE, "--condition", "baseline", "--condition", "simple", "--samples", "2")
    for line in (base, ("measure", "--controls", "2"), ("measure", "--traces"), ("measure", "--transcript", "done.json")):
        subprocess.run(
            [sys.executable, "-m", "drift_cli", *line], cwd=run, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    return Material(model, run)


def tried(server: Server, case: Case, place: Path) -> Found:
    """Make a case's input, run its line, look at what became of it."""
    place.mkdir(parents=True)
    try:
        case.make(place)
        before = {name: _state(place / name) for name in case.kept}
        targets = {path: _kind(path) for path in place.iterdir() if path.name.startswith("target")}
        outcome = server.run(place, list(case.line))
        problem = outcome.problem
        if problem is None and case.refused and outcome.code == 0:
            problem = "taken without a word"
        if problem is None and any(_state(place / name) != state for name, state in before.items()):
            problem = "wrote to what is not its own"
        if problem is None and any(_kind(path) != kind for path, kind in targets.items()):
            problem = "replaced what was no file"
        return Found(case, outcome.code, problem, (outcome.err.strip() or outcome.out.strip())[-600:])
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _kind(path: Path) -> int:
    return stat.S_IFMT(path.lstat().st_mode) if path.is_symlink() or path.exists() else 0


def _state(path: Path) -> str:
    """A digest of names and contents."""
    found = hashlib.sha256()
    for each in sorted([path, *path.rglob("*")] if path.is_dir() else [path]):
        found.update(str(each).encode())
        if each.is_file():
            found.update(each.read_bytes())
    return found.hexdigest()


def run_all(server: Server, cases: Sequence[Case], root: Path, say: Callable[[Found], None] = lambda found: None) -> list[Found]:
    """Every case, one after another."""
    made = []
    for number, case in enumerate(cases):
        found = tried(server, case, root / str(number))
        say(found)
        made.append(found)
    return made
