"""Disks that fill up, that are read-only, that have no locks; clocks that jump; file size limits, which cut writes short."""

from __future__ import annotations

import datetime
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from campaign.inject import Call, run_with
from campaign.scenes import CRASHED, DONE, REFUSED, SCENES, Working, check, fatal, quick_folder, session, uninterrupted, working
from campaign.tally import Outcome, Tally
from drift_cli.store import events, lock
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

_PAGE = 4096


@contextmanager
def small_disk(folder: Path, pages: int) -> Iterator[Path]:
    """A file system of its own of so many pages of 4 KiB, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={pages * _PAGE}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True, text=True)


@cache
def cannot_mount() -> str | None:
    """Why no file system can be mounted here; None where one can. Tried, not guessed."""
    if os.geteuid() or shutil.which("mount") is None:
        return "mounting a file system takes root"
    with quick_folder() as folder:
        try:
            with small_disk(Path(folder) / "disk", 4):
                return None
        except subprocess.CalledProcessError as error:
            return f"no file system can be mounted here: {error.stderr}"


def full_disks(folder: Path, every: int = 1) -> Tally:
    """A file system that has 0, 1, 2, … pages left when a run begins on it; then there is space again."""
    tally = Tally("file system full after every page")
    long = "a long reply " * 1000
    expected = uninterrupted(folder / "uninterrupted", long)
    for pages in range(2, 100, every):
        with small_disk(folder / "disk", pages) as disk:
            place = disk / "place"
            status, worker = _work(place, text=long)
            said = worker.said
            _mount("-o", f"remount,size={1 << 24}", str(disk))
            outcome = check(place, worker.acknowledged, expected, text=long) if place.exists() or status == DONE else Outcome()
            _judge(outcome, status, said, "No space left on device")
        if status == DONE:
            break  # from here on there is room enough
        tally.count(f"{pages} pages", outcome)
    return tally


def read_only_disk(folder: Path) -> Tally:
    """A file system that turns read-only: everything on it is read, writing says so."""
    tally = Tally("file system read-only")
    expected = uninterrupted(folder / "uninterrupted")
    for scene in ("recovering", "damaged"):
        with small_disk(folder / "disk", 1000) as disk:
            SCENES[scene](disk / "place")
            _mount("-o", "remount,ro", str(disk))
            run = Run.newest(Store(disk / "place" / "checkpoints"))
            outcome = Outcome(problems=[] if bool(fatal(run)) == (scene == "damaged") else ["verify cannot be relied on"])
            status, worker = _work(disk / "place")
            _judge(outcome, status, worker.said, "read-only")
            _mount("-o", "remount,rw", str(disk))
            after = check(disk / "place", worker.acknowledged, expected, damage=True)
            outcome.problems += after.problems
            tally.count(scene, outcome)
    return tally


def short_writes(folder: Path, every: int = 1, first: int = 0) -> Tally:
    """A limit on file sizes at every byte of the largest file: writes stop short there, the next fails."""
    tally = Tally("writes cut short at every byte")
    expected = uninterrupted(folder / "uninterrupted")
    for limit in range(first, max(map(len, expected.values())), every):
        place = folder / "place"
        status, worker = _work(place, limit)
        outcome = check(place, worker.acknowledged, expected)
        _judge(outcome, status, worker.said, "File too large")
        tally.count(f"byte {limit}", outcome)
        shutil.rmtree(place)
    return tally


def no_locks(folder: Path) -> list[Tally]:
    """File systems where locks are refused, or granted to everybody. (Two writers there: see `races`.)"""
    expected = uninterrupted(folder / "uninterrupted")
    tallies = []
    for name, fault in (("a file system without locks", "error=ENOLCK"), ("locks that silently do nothing", "retval=0")):
        tally = Tally(name)
        for scene in SCENES:
            place = folder / "place"
            SCENES[scene](place)
            worker = working(lambda acknowledge, scene=scene, place=place: session(place, acknowledge, repair=scene == "damaged"))
            status, happened = run_with(worker, Call("flock", 1), fault, folder / "log", lasting=True)
            outcome = check(place, worker.acknowledged, expected)
            if status != DONE or not happened:
                outcome.problems.append(f"it ended with {status}: {worker.said}")
            tally.count(scene, outcome)
            shutil.rmtree(place)
        tallies.append(tally)
    return tallies


def jumping_clocks(folder: Path, number: int = 40) -> Tally:
    """Every clock that the store reads jumps by up to a century, forwards and backwards, whenever it is read."""
    tally = Tally("clocks that jump")
    expected = uninterrupted(folder / "uninterrupted")
    for seed in range(number):
        for scene in SCENES:
            place = folder / "place"
            SCENES[scene](place)

            def work(acknowledge: Any, seed: int = seed, scene: str = scene, place: Path = place) -> None:
                _break_clocks(random.Random(seed))
                session(place, acknowledge, repair=scene == "damaged")

            worker = working(work)
            status = worker.go()
            stamp = random.Random(seed).uniform(0, 4e9)
            for path in place.rglob("*"):
                os.utime(path, (stamp, stamp))
            outcome = check(place, worker.acknowledged, expected)
            if status != DONE:
                outcome.problems.append(f"it ended with {status}: {worker.said}")
            tally.count(f"{scene}, seed {seed}", outcome)
            shutil.rmtree(place)
    return tally


def _break_clocks(chance: random.Random) -> None:
    class Broken(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime(1970, 1, 2, tzinfo=tz) + datetime.timedelta(days=chance.uniform(0, 36_500))

    for module in (events, lock):
        module.datetime = Broken  # type: ignore[attr-defined]
    time.time = time.monotonic = lambda: chance.uniform(0, 4e9)


def _work(place: Path, limit: int | None = None, text: str = "") -> tuple[int, Working]:
    """A session in a process, with a limit on the size of files."""

    def work(acknowledge: Any) -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        session(place, acknowledge, text=text)

    worker = working(work)
    return worker.go(), worker


def _judge(outcome: Outcome, status: int, said: str, reason: str) -> None:
    """Refused for this reason, or not at all."""
    if status == CRASHED or (status == REFUSED and reason.casefold() not in said.casefold()) or status not in (DONE, REFUSED):
        outcome.problems.append(f"it ended with {status}: {said[-500:]}")
