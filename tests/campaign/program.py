"""The whole program under faults: `drift generate` with errors and kills in its system calls, then `drift resume`."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from test_kills import Zygote, _committed, _files

from campaign.tally import Outcome, Tally

FAULTS = (("fsync", "error=EIO"), ("write", "error=ENOSPC"), ("fsync", "signal=SIGKILL"), ("rename", "error=EIO"), ("flock", "error=EIO"))
"""Each at several places; all of them on files of the store alone: `-P` picks the calls that touch it."""


def faults(folder: Path, places: Sequence[float] = (0.1, 0.3, 0.6, 0.99), kinds: Sequence[tuple[str, str]] = FAULTS) -> Tally:
    """Let the program run into each fault at these places (0: the first such call of an uninterrupted run, 1: behind the last)."""
    tally = Tally("`drift generate`: EIO, ENOSPC and kills")
    zygote = Zygote()
    try:
        zygote.start(folder / "whole")
        assert zygote.wait() == 0, (folder / "whole" / "err").read_text()
        expected = _files(folder / "whole")
        for call, fault in kinds:
            made = _calls(zygote, folder, call)
            for place in places:
                number = 1 + int(place * made)
                tally.count(f"{call}, {fault}, number {number}", _one(zygote, folder, (call, fault, number), expected))
    finally:
        zygote.close()
    return tally


def _trace(zygote: Zygote, log: Path, *options: str) -> subprocess.Popen[str]:
    """strace on the zygote and what it forks. (`-ff` keeps each process's record apart: no line is cut in two by another's.)"""
    line = ["strace", "-f", "-ff", "-o", str(log), *options, "-p", str(zygote.process.pid)]
    tracer = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    return tracer


def _stop(tracer: subprocess.Popen[str], log: Path) -> str:
    """End the tracing; what it recorded."""
    tracer.send_signal(signal.SIGINT)
    tracer.wait()
    assert tracer.stderr is not None
    tracer.stderr.close()
    said = ""
    for path in log.parent.glob(f"{log.name}.*"):
        said += path.read_text(errors="replace")
        path.unlink()
    return said


def _calls(zygote: Zygote, folder: Path, call: str) -> int:
    """The most calls of a name that one thread of an uninterrupted run makes."""
    log, place = folder / "log", folder / "counted"
    tracer = _trace(zygote, log, "-e", f"trace={call}")
    zygote.start(place)
    assert zygote.wait() == 0
    tracer.send_signal(signal.SIGINT)
    tracer.wait()
    assert tracer.stderr is not None
    tracer.stderr.close()
    counts = [path.read_text(errors="replace").count(f"{call}(") for path in folder.glob("log.*")]
    for path in folder.glob("log.*"):
        path.unlink()
    shutil.rmtree(place)
    return max(counts)


def _one(zygote: Zygote, folder: Path, what: tuple[str, str, int], expected: Mapping[str, bytes]) -> Outcome:
    call, fault, number = what
    outcome, place = Outcome(), folder / "place"
    tracer = _trace(zygote, folder / "log", "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}")
    zygote.start(place)
    status = zygote.wait()
    said = _stop(tracer, folder / "log")
    if "(INJECTED)" not in said and "+++ killed by SIGKILL +++" not in said:
        outcome.problems.append("the fault did not happen")
    error = (place / "err").read_text()
    if status not in (0, 1, -9) or "Traceback" in error:
        outcome.problems.append(f"it ended with {status}: {error[-500:]}")
    before = _committed(place)
    zygote.start(place)
    if zygote.wait() != 0:
        outcome.problems.append(f"it cannot be gone on with: {(place / 'err').read_text()[-500:]}")
    elif _files(place) != expected:
        outcome.undetected = True
        outcome.problems.append("other bytes")
    outcome.lost = max(0, before - _committed(place))
    shutil.rmtree(place)
    return outcome
