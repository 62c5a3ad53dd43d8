"""Real worker processes for tests: started in a moment, killed, suspended, and told apart."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drift_cli.store.paths import Store
from drift_cli.store.run import Run


class Stable:
    """See `stable.py`."""

    def __init__(self, *options: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        line = [sys.executable, str(Path(__file__).with_name("stable.py")), *options]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.started: queue.Queue[int] = queue.Queue()
        self.ended: dict[int, int] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, pid, *status = line.split()
            if kind == "start":
                self.started.put(int(pid))
            else:
                self.ended[int(pid)] = int(status[0])

    def start(self, folder: Path, *arguments: str, output: str = "out") -> int:
        """Start `drift`; its pid."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(folder), output, arguments]) + "\n")
        self.process.stdin.flush()
        return self.started.get(timeout=60)

    def wait(self, pid: int, seconds: float = 60.0) -> int:
        """The exit status of a child."""
        until(lambda: pid in self.ended, seconds)
        return self.ended[pid]

    def close(self) -> None:
        """End it, and what it started."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(frozen=True)
class Place:
    """A folder with a run that is made and not begun."""

    folder: Path

    @property
    def run(self) -> Run:
        """The run as it is now."""
        return Run.newest(Store(self.folder / "checkpoints"))

    @property
    def done(self) -> int:
        """Committed turns."""
        return sum(state.done for state in self.run.states())

    @property
    def complete(self) -> bool:
        """Whether every rollout has ended."""
        return all(state.ended for state in self.run.states())

    def files(self) -> dict[str, bytes]:
        """Everything of its rollouts."""
        root = self.run.paths.rollouts_root
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.suffix in {".jsonl", ".f32"}}


def make(folder: Path, *arguments: str) -> Place:
    """A run of a short transcript, made as `drift launch` makes it."""
    from drift_cli.commands.launch import _settings
    from drift_cli.commands.work import Work
    from drift_cli.display import Display, Mode
    from drift_cli.running.experiment import prepare

    folder.mkdir()
    (folder / "short.json").write_text(json.dumps({"users": ["hello there", "who are you"]}))
    line = ["--max-new-tokens", "6", "--batch", "3", "--transcript", str(folder / "short.json"), *arguments]
    Work(Display(Mode.NONE), Store(folder / "checkpoints")).open(prepare(_settings(line, {})))
    return Place(folder)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Look again and again until `condition()` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def kill(pid: int) -> None:
    """SIGKILL, to a process that may have ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
