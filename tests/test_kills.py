"""Runs that are killed or asked to stop, and gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drift_cli.errors import EXIT_INTERRUPTED
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

LINE = ["generate", "--samples", "4", "--max-new-tokens", "8", "--transcript", "short.json", "--batch", "3", "--display", "json"]
TURNS = 4 * 4 * 3
KILLS = 30


class Zygote:
    """See `zygote.py`."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        script = Path(__file__).with_name("zygote.py")
        self.process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def start(self, folder: Path, arguments: list[str] = LINE) -> int:
        """Start `drift`; its pid."""
        folder.mkdir(exist_ok=True)
        (folder / "short.json").write_text(json.dumps({"users": ["hello there", "who are you", "and the light"]}))
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(folder), arguments]) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """The exit status of the child started last; minus the signal's number where one ended it."""
        return int(self._line())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def _files(folder: Path) -> dict[str, bytes]:
    root = folder / "checkpoints"
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.suffix in {".jsonl", ".f32"} and p.name not in {"events.jsonl", "looks.jsonl"}
    }


def _run(folder: Path) -> Run:
    return Run.newest(Store(folder / "checkpoints"))


def _committed(folder: Path) -> int:
    return sum(
        path.read_bytes().count(b'\n{"turn"') + path.read_bytes().startswith(b'{"turn"')
        for path in (folder / "checkpoints").rglob("0*.jsonl")
    )


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    zygote.start(folder)
    assert zygote.wait() == 0
    files = _files(folder)
    assert len(files) == 2 * 16
    return files


def test_killed_at_thirty_random_instants_a_run_ends_with_the_same_bytes(
    zygote: Zygote, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    chance = random.Random(20260101)
    kills, attempt, finished, lost = 0, 0, 0, 0
    while kills < KILLS or finished == 0:
        folder = tmp_path / f"run{attempt}"
        before = _committed(folder)
        pid = zygote.start(folder)
        # Not a wait for anything: the instant is meant to be any.
        timer = threading.Timer(chance.uniform(0.05, 1.6), os.kill, (pid, signal.SIGKILL)) if kills < KILLS else None
        if timer is not None:
            timer.start()
        status = zygote.wait()
        if timer is not None:
            timer.cancel()
        assert status in (0, -signal.SIGKILL), (folder / "err").read_text()
        lost += _committed(folder) < before
        kills += status == -signal.SIGKILL
        if status == 0:
            assert _files(folder) == uninterrupted
            finished, attempt = finished + 1, attempt + 1
    assert lost == 0
    assert kills == KILLS


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_a_signal_stops_after_the_token_in_progress_and_says_how_to_go_on(
    name: str, zygote: Zygote, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    pid = zygote.start(tmp_path / "run")
    _until(lambda: _committed(tmp_path / "run") >= 1)
    os.kill(pid, getattr(signal, name))
    assert zygote.wait() == EXIT_INTERRUPTED
    run = _run(tmp_path / "run")
    done = sum(state.done for state in run.states())
    assert 1 <= done < TURNS
    said = [json.loads(line) for line in (tmp_path / "run" / "err").read_text().splitlines()]
    assert any(
        line["kind"] == "interrupted" and f"drift resume {run.paths.run_id}" in line["text"] and name in line["text"] for line in said
    )
    assert [event["kind"] for event in run.events()] == ["start", "interrupted"]
    zygote.start(tmp_path / "run", ["resume"])
    assert zygote.wait() == 0
    assert _files(tmp_path / "run") == uninterrupted


def test_a_second_interrupt_stops_at_once_and_loses_nothing(zygote: Zygote, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    pid = zygote.start(tmp_path / "run")
    _until(lambda: _committed(tmp_path / "run") >= 1)
    for _ in range(2):
        os.kill(pid, signal.SIGINT)
    assert zygote.wait() == EXIT_INTERRUPTED
    zygote.start(tmp_path / "run", ["resume"])
    assert zygote.wait() == 0
    assert _files(tmp_path / "run") == uninterrupted


def test_a_second_process_on_the_same_run_does_what_is_left_and_is_told_of_the_first(zygote: Zygote, tmp_path: Path) -> None:
    pid = zygote.start(tmp_path / "run")
    _until(lambda: _committed(tmp_path / "run") >= 1)
    os.kill(pid, signal.SIGSTOP)
    try:
        line = [sys.executable, "-m", "drift_cli", *LINE[:-2]]
        second = subprocess.run(line, cwd=tmp_path / "run", capture_output=True, text=True, check=False)
        assert second.returncode == EXIT_INTERRUPTED
        assert f"process {pid} on" in second.stderr
        assert f"drift resume {_run(tmp_path / 'run').paths.run_id}" in second.stderr
        assert {state.ended for state in _run(tmp_path / "run").states()} == {True, False}
        assert "Traceback" not in second.stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    assert zygote.wait() == 0
    assert sum(state.done for state in _run(tmp_path / "run").states()) == TURNS
    assert not [finding for finding in _run(tmp_path / "run").verify() if finding.fatal]


def test_adding_samples_and_conditions_leaves_every_byte_as_it_was(zygote: Zygote, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    for extra in (["--samples", "2", "--condition", "simple"], ["--condition", "simple"], ["--batch", "5"]):
        before = _files(tmp_path / "run") if (tmp_path / "run").exists() else {}
        zygote.start(tmp_path / "run", [*LINE, *extra])
        assert zygote.wait() == 0, (tmp_path / "run" / "err").read_text()
        after = _files(tmp_path / "run")
        assert {name: after[name] for name in before} == before
    assert set(_files(tmp_path / "run")) == set(uninterrupted)


def _until(condition: object, seconds: float = 60.0) -> None:
    """Look again and again until `condition()` holds; fail after `seconds`."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)
