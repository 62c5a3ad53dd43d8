"""Command lines in forked processes, each watched: its exit status, its words, its time and its memory.

Run as a program, this is the process that has everything imported: a line in, `[folder, arguments, seconds]` as JSON; a line out, what became of it.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 10.0
"""Longer is a hang; of processor time, so that a busy machine is none."""
MEMORY = 1 << 30
"""Bytes beside what the process begins with."""


@dataclass(frozen=True)
class Outcome:
    """What became of one command line."""

    code: int
    """Negative: the signal it died of."""
    seconds: float
    """Processor time of the command and its children."""
    waited: float
    memory: int
    """Bytes at its largest, beside what it began with."""
    out: str
    err: str

    @property
    def problem(self) -> str | None:
        """What is wrong whatever was put in, in words; None where nothing is."""
        if self.seconds > SECONDS or self.waited > 12 * SECONDS:
            return f"took {self.seconds:.0f} s ({self.waited:.0f} s on the clock)"
        if self.memory > MEMORY:
            return f"took {self.memory / 1e9:.1f} GB"
        if "Traceback" in self.err or "Traceback" in self.out:
            return "traceback: " + self.err.strip().splitlines()[-1][:200]
        if self.code not in (0, 1, 2, 75):
            return f"exit status {self.code}"
        if self.code and not self.err.strip():
            return "refused without a word"
        return None


class Server:
    """The process that forks; `run` sends it a command line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, arguments: list[str]) -> Outcome:
        """Run `drift` with these arguments in a folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), arguments]) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


@contextmanager
def served() -> Iterator[Server]:
    """A server for as long as it is needed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


def _child(folder: str, arguments: list[str], out: int, err: int) -> None:
    from drift_cli.__main__ import main

    os.chdir(folder)
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["drift", *arguments]
    status = 0
    try:
        main()
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    except BaseException:  # noqa: BLE001 (it is what is looked for)
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(200_000).decode(errors="replace")


def _watched(folder: str, arguments: list[str], scratch: Path) -> Outcome:
    out, err = scratch / "out", scratch / "err"
    descriptors = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in (out, err)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(folder, arguments, *descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    end = started + 12 * SECONDS + 1
    handle = os.pidfd_open(pid)
    if not select.select([handle], [], [], end - time.monotonic())[0]:
        os.killpg(pid, signal.SIGKILL)
    os.close(handle)
    _, status, usage = os.wait4(pid, 0)
    seconds = usage.ru_utime + usage.ru_stime
    return Outcome(
        os.waitstatus_to_exitcode(status),
        seconds,
        time.monotonic() - started,
        max(0, usage.ru_maxrss - before) * 1024,
        _read(out),
        _read(err),
    )


def _serve() -> None:
    import tempfile

    import scipy.stats
    import statsmodels.api
    import transformers.models.llama.modeling_llama

    import drift_cli.__main__  # noqa: F401

    del scipy, statsmodels, transformers
    with tempfile.TemporaryDirectory() as scratch:
        for line in sys.stdin:
            folder, arguments = json.loads(line)
            outcome = _watched(folder, arguments, Path(scratch))
            print(json.dumps(outcome.__dict__), flush=True)


if __name__ == "__main__":
    _serve()
