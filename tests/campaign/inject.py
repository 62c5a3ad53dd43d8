"""Faults in system calls, by strace: the kernel's own boundary, so nothing that the program does in between can hide from them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from campaign.scenes import Working, working


@cache
def missing() -> str | None:
    """Why faults cannot be injected on this machine; None where they can. Tried, not guessed: containers may forbid ptrace."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    process = working(lambda acknowledge: Path("/").stat())
    said = attach(process, ["-e", "trace=none"], Path("/dev/null"))
    status = process.go()
    finish(said)
    return None if status == 0 and said.returncode == 0 else f"strace cannot attach here: {said.args}"


def attach(process: Working, options: list[str], log: Path) -> subprocess.Popen[str]:
    """strace on a process that has not been told to go yet."""
    line = ["strace", "-o", str(log), *options, "-p", str(process.pid)]
    tracer = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    first = tracer.stderr.readline()
    if "attached" not in first:
        process.go()
        raise RuntimeError(f"strace could not attach: {first}{tracer.stderr.read()}")
    return tracer


@dataclass(frozen=True)
class Call:
    """One system call: its name, and its number among those of this name (1 for the first)."""

    name: str
    number: int


def calls_of(work: Working, names: tuple[str, ...], log: Path) -> list[Call]:
    """Every call of these names that a process makes, in order."""
    tracer = attach(work, ["-e", f"trace={','.join('?' + name for name in names)}"], log)
    work.go()
    finish(tracer)
    seen: dict[str, int] = {}
    made = []
    for line in log.read_text().splitlines():
        found = re.match(r"([a-z0-9_]+)\(", line)
        if found is not None:
            seen[found[1]] = seen.get(found[1], 0) + 1
            made.append(Call(found[1], seen[found[1]]))
    return made


def run_with(work: Working, call: Call, fault: str, log: Path, *, lasting: bool = False) -> tuple[int, bool]:
    """Let a process work with a fault (`error=EIO`, `signal=SIGKILL`) at a call, or from it on. Its exit status, and whether the fault happened."""
    when = f"{call.number}+" if lasting else str(call.number)
    tracer = attach(work, ["-e", f"trace={call.name}", "-e", f"inject={call.name}:{fault}:when={when}"], log)
    status = work.go()
    finish(tracer)
    said = log.read_text()
    return status, "(INJECTED)" in said or "+++ killed by SIGKILL +++" in said


def finish(tracer: subprocess.Popen[str]) -> None:
    """Wait for strace."""
    tracer.wait()
    assert tracer.stderr is not None
    tracer.stderr.close()
