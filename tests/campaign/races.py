"""Two processes on one run at the same instant, with locks and with locks that silently do nothing."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from campaign.scenes import CRASHED, DONE, PLAN, REFUSED, SCENES, Working, check, session, uninterrupted, working
from campaign.tally import Tally
from drift_cli.spec import Rollout


def with_locks(folder: Path, number: int, first: int = 0) -> Tally:
    """Two processes do the whole of a run's work at once. Nothing is damaged, nothing mixed; the run is finished by whoever gets to it."""
    return _races("two processes at once", folder, range(first, first + number), lambda chance: None, damage=False)


def without_locks(folder: Path, number: int, first: int = 0) -> Tally:
    """The same where every lock is granted to everybody: size checks and the chain must expose the second writer."""

    def lie(chance: random.Random) -> None:
        fcntl.flock = lambda fd, how: None  # type: ignore[assignment]

    return _races("two processes at once, locks do nothing", folder, range(first, first + number), lie, damage=True)


def _races(name: str, folder: Path, seeds: Sequence[int], prepare: Callable[[random.Random], object], *, damage: bool) -> Tally:
    tally = Tally(name)
    expected = uninterrupted(folder / "uninterrupted")
    for seed in seeds:
        chance = random.Random(seed)
        place = folder / "place"
        SCENES[chance.choice(("fresh", "recovering"))](place)
        workers = [_racer(place, seed * 2 + side, prepare) for side in range(2)]
        statuses = _both(workers)
        outcome = check(place, _least(workers, damage), expected, damage=damage)
        outcome.named |= any(status == REFUSED for status in statuses)
        for worker, status in zip(workers, statuses, strict=True):
            if status == CRASHED or (status != DONE and not _named(worker.said)):
                outcome.problems.append(f"one ended with {status}: {worker.said[-500:]}")
        tally.count(f"seed {seed}", outcome)
        shutil.rmtree(place)
    return tally


def _racer(place: Path, seed: int, prepare: Callable[[random.Random], object]) -> Working:
    """A session that pauses at random, by giving the processor away, wherever it calls the system."""

    def work(acknowledge: Any) -> None:
        chance = random.Random(seed)
        prepare(chance)
        for call in ("open", "write", "fsync", "fstat", "ftruncate", "replace"):
            setattr(os, call, _hesitant(getattr(os, call), chance))
        session(place, acknowledge)

    return working(work)


def _hesitant(real: Callable[..., Any], chance: random.Random) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        for _ in range(chance.choice((0, 0, 1, 3))):
            os.sched_yield()
        return real(*arguments, **options)

    return call


def _both(workers: Sequence[Working]) -> list[int]:
    for worker in workers:
        os.write(worker.start, b"!")
        os.close(worker.start)
    return [os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1]) for worker in workers]


def _least(workers: Sequence[Working], lying: bool) -> dict[Rollout, int]:
    """Turns that must be there. Where locks lie and both wrote, a writer that was exposed had its turns acknowledged before: at least one's count."""
    each = [worker.acknowledged for worker in workers]
    return {rollout: (min if lying else max)(found[rollout] for found in each) for rollout in PLAN}


def _named(said: str) -> bool:
    """Whether an error is about the other process."""
    return any(part in said for part in ("is being written by", "another process", "does not follow", "damage", "replaced by another file"))


def stale_locks(folder: Path) -> Tally:
    """Notes left by a dead process, by a process of another host, and by a pid that some other program has now: none keeps anybody out."""
    tally = Tally("stale notes of a dead process, another host, a reused pid")
    expected = uninterrupted(folder / "uninterrupted")
    gone = working(lambda acknowledge: None)
    gone.go()
    host = socket.gethostname()
    for pid, where in ((gone.pid, host), (os.getppid(), host), (os.getpid(), "another-host"), (1, host), (2**40, "")):
        place = folder / "place"
        SCENES["recovering"](place)
        note = orjson.dumps({"host": where, "pid": pid, "since": "2026-01-01T00:00:00+00:00"})
        for path in place.rglob("0000.jsonl"):
            path.with_suffix(".lock").write_bytes(note)
        worker = working(lambda acknowledge, place=place: session(place, acknowledge))
        status = worker.go()
        outcome = check(place, worker.acknowledged, expected)
        if status != DONE:
            outcome.problems.append(f"it ended with {status}: {worker.said}")
        tally.count(f"pid {pid} on {where!r}", outcome)
        shutil.rmtree(place)
    return tally
