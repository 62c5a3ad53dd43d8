"""Errors and kills at every occurrence of every relevant system call of a small run."""

from __future__ import annotations

import shutil
from pathlib import Path

from campaign.inject import Call, calls_of, run_with
from campaign.scenes import CRASHED, DONE, REFUSED, SCENES, check, session, uninterrupted, working
from campaign.tally import Tally

ERRORS = {
    "openat": ("EIO", "ENOSPC", "EMFILE"),
    "mkdir": ("EIO", "ENOSPC"),
    "mkdirat": ("EIO", "ENOSPC"),
    "write": ("EIO", "ENOSPC", "EDQUOT"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO",),
    "flock": ("EIO", "ENOLCK"),
    "pread64": ("EIO",),
    "read": ("EIO",),
    "lseek": ("EIO",),
    "getdents64": ("EIO",),
    "unlink": ("EIO",),
    "close": ("EIO",),
    "newfstatat": ("EIO",),
    "fstat": ("EIO",),
}
"""Call → what it may fail with. Kills come at each of them too."""


def faults(folder: Path, every: int = 1, first: int = 0) -> list[Tally]:
    """Inject every `every`-th of all faults, from number `first` on."""
    expected = uninterrupted(folder / "uninterrupted")
    log = folder / "log"
    made: dict[str, Tally] = {}
    number = 0
    for scene, begin in SCENES.items():
        template = folder / scene
        begin(template)
        place = folder / "place"
        shutil.copytree(template, place)
        calls = calls_of(_worker(place, scene), tuple(ERRORS), log)
        shutil.rmtree(place)
        for call in calls:
            for fault, lasting in _faults(call):
                number += 1
                if (number - 1 - first) % every:
                    continue
                shutil.copytree(template, place)
                kind = "kill" if fault.startswith("signal") else fault.removeprefix("error=")
                name = (
                    f"{kind} at {_family(call.name)}"
                    if kind == "kill"
                    else f"{kind}{' from then on' if lasting else ''} at {_family(call.name)}"
                )
                tally = made.setdefault(name, Tally(name))
                _one(place, scene, call, fault, lasting, log, tally, expected)
                shutil.rmtree(place)
    return sorted(made.values(), key=lambda tally: tally.name)


def _family(name: str) -> str:
    """Calls that are one to a person: `mkdirat` is `mkdir`."""
    return {"mkdirat": "mkdir", "newfstatat": "stat", "fstat": "stat", "pread64": "read", "getdents64": "read"}.get(name, name)


def _faults(call: Call) -> list[tuple[str, bool]]:
    errors = [(f"error={error}", lasting) for error in ERRORS[call.name] for lasting in (False, True)]
    return [("signal=SIGKILL", False), *errors]


def _worker(place: Path, scene: str) -> object:
    return working(lambda acknowledge: session(place, acknowledge, repair=scene == "damaged"))


def _one(place: Path, scene: str, call: Call, fault: str, lasting: bool, log: Path, tally: Tally, expected: dict[str, bytes]) -> None:
    worker = _worker(place, scene)
    status, happened = run_with(worker, call, fault, log, lasting=lasting)
    outcome = check(place, worker.acknowledged, expected, damage=scene == "damaged")
    if not happened:
        outcome.problems.append("the fault did not happen")
    if status == CRASHED:
        outcome.problems.append(f"it ended with something that is no StoreError: {worker.said[-400:]}")
    elif status == REFUSED and str(place) not in worker.said:
        outcome.problems.append(f"its error names no file: {worker.said}")
    elif status not in (DONE, REFUSED, -9):
        outcome.problems.append(f"it ended with {status}")
    tally.count(f"{scene}, {call.name} number {call.number}", outcome)
