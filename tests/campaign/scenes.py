"""The small run that faults happen to, what state it begins in, and the check that follows every fault."""

from __future__ import annotations

import mmap
import os
import select
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from store_fixtures import CELL, DIRECTION, OTHER, finish, manifest

from campaign.tally import Outcome
from drift_cli.axis import Axis
from drift_cli.errors import DriftError, StoreError
from drift_cli.spec import Rollout
from drift_cli.store.manifest import AxisEntry, CellPlan
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

AXIS = Axis("made", (5,), DIRECTION)
PLAN = (Rollout(CELL, 0), Rollout(OTHER, 0))
MANIFEST = manifest(cells=(CellPlan(CELL, 1), CellPlan(OTHER, 1)), axes=(AxisEntry("made", 5, AXIS.digest),))

DONE, REFUSED, CRASHED = 0, 3, 4
"""Exit statuses of a child: all done, a `StoreError`, anything else."""

Acknowledge = Callable[[Rollout, int], object]


def quick_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder where fsync costs nothing, if this machine has one: what reaches a disk is decided by the faults, not by a disk."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="drift-", dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None)


def session(folder: Path, acknowledge: Acknowledge = lambda rollout, index: None, *, repair: bool = False, text: str = "") -> Run:
    """A process's whole work: make the run or open it, give it its axis, write every rollout to its end, record an event."""
    run = Run.create(Store(folder / "checkpoints"), MANIFEST)
    try:
        Axis.load(run.paths.axis("made"))
    except DriftError:
        AXIS.save(run.paths.axis("made"))
    if repair:
        run.repair()
    for rollout in PLAN:
        finish(run, rollout, lambda index, rollout=rollout: acknowledge(rollout, index), text)
    run.event("done", turns=8)
    return run


def files(folder: Path) -> dict[str, bytes]:
    """Everything of a run that must be the same to the bit whatever happened, by path. (An axis file's header has no order; `verify` checks its digest.)"""
    store = folder / "checkpoints"
    kept = (path for path in store.rglob("*") if path.suffix in {".jsonl", ".f32"} or path.name == "run.json")
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(kept)
        if path.name != "events.jsonl" and "quarantine" not in path.parts
    }


# --- where a run stands when the fault comes


def fresh(folder: Path) -> None:
    """Nothing is there."""
    folder.mkdir(parents=True)


def recovering(folder: Path) -> None:
    """A process was killed in the middle of a turn, and another in the middle of replacing the manifest."""
    run = session(folder)
    lines, means = run.paths.rollout(PLAN[0]), run.paths.residuals(PLAN[0])
    whole = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(b"".join(whole[:2]) + whole[2][:40])  # of its means, those of turns 3 and 4 are too many
    means.write_bytes(means.read_bytes()[:-7])
    run.paths.owner(PLAN[0]).write_bytes(b'{"host":"gone","pid":1,"since":"2026-01-01T00:00:00+00:00"}')
    run.paths.manifest.with_name(".run.json.0123456789ab.tmp").write_bytes(b"{")
    shutil.rmtree(run.paths.cell(OTHER))


def damaged(folder: Path) -> None:
    """A bit of the third line has turned over."""
    run = session(folder)
    path = run.paths.rollout(PLAN[0])
    data = bytearray(path.read_bytes())
    data[sum(map(len, bytes(data).splitlines(keepends=True)[:2])) + 30] ^= 4
    path.write_bytes(data)


SCENES: Mapping[str, Callable[[Path], None]] = {"fresh": fresh, "recovering": recovering, "damaged": damaged}


def uninterrupted(folder: Path, text: str = "") -> dict[str, bytes]:
    """The files of a run that nothing happened to."""
    session(folder, text=text)
    made = files(folder)
    shutil.rmtree(folder)
    return made


# --- after the fault


def check(
    folder: Path, acknowledged: Mapping[Rollout, int], expected: Mapping[str, bytes], *, damage: bool = False, text: str = ""
) -> Outcome:
    """What was acknowledged is there, what is wrong is named, going on finishes, and the bytes are those of an uninterrupted run.

    Args:
        folder: where the run is.
        acknowledged: turns that the process had been told are on disk.
        expected: `files` of an uninterrupted run.
        damage: whether the fault may have left damage, which is named and set aside before the run goes on.
        text: as it was given to `session`.
    """
    outcome = Outcome()
    try:
        _look(folder, acknowledged, outcome, damage)
        session(folder, text=text)
    except StoreError as error:
        outcome.problems.append(f"it cannot be gone on with: {error.what}")
        return outcome
    found = files(folder)
    if found != expected:
        wrong = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
        outcome.undetected = True
        outcome.problems.append(f"other bytes in {', '.join(wrong)}")
    outcome.problems += [f"in the end, {problem}" for problem in fatal(Run.newest(Store(folder / "checkpoints")))]
    return outcome


def _look(folder: Path, acknowledged: Mapping[Rollout, int], outcome: Outcome, damage: bool) -> None:
    store = Store(folder / "checkpoints")
    if not store.run_ids():
        outcome.lost = sum(acknowledged.values())
    else:
        run = Run.newest(store)
        begun = any(acknowledged.values())
        problems = fatal(run, begun=begun)
        if problems and damage:
            outcome.named = True
            run.repair()
            problems = fatal(run, begun=begun)
        outcome.problems += problems
        outcome.lost = sum(max(0, number - _done(run, rollout)) for rollout, number in acknowledged.items())
    if outcome.lost:
        outcome.problems.append(f"{outcome.lost} acknowledged turns are gone")


def _done(run: Run, rollout: Rollout) -> int:
    try:
        return len(run.record(rollout, residuals=True).turns)
    except StoreError:
        return 0


def fatal(run: Run, *, begun: bool = True) -> list[str]:
    """Damage that `verify` names. Before anything is acknowledged, an axis that is not there yet is none: the next session puts it there."""
    return [f"{f.file}: {f.problem}" for f in run.verify() if f.fatal and (begun or f.file.parent.name != "axes" or f.file.exists())]


# --- in a process of its own

_SAID = 8
"""Where, in the memory shared with a worker, an error's text begins; acknowledged turns, a byte for each rollout, stand before it."""


@dataclass(frozen=True)
class Working:
    """A forked process that waits until it is told to go, then works, and what it says: turns acknowledged, and an error's text."""

    pid: int
    start: int
    shared: mmap.mmap

    def go(self) -> int:
        """Let it work; its exit status, minus the number of the signal that ended it."""
        os.write(self.start, b"!")
        os.close(self.start)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def acknowledged(self) -> dict[Rollout, int]:
        """Turns that it was told are on disk."""
        return dict(zip(PLAN, self.shared[:_SAID], strict=False))

    @property
    def said(self) -> str:
        """Its error."""
        return self.shared[_SAID:].rstrip(b"\0").decode(errors="replace")


def working(work: Callable[[Acknowledge], object]) -> Working:
    """Fork a process that will do `work`.

    What it says goes through shared memory, and it waits in `poll`: no system call of its own that a fault could hit.
    """
    shared = mmap.mmap(-1, _SAID + 8192)
    started, start = os.pipe()
    ready, is_ready = os.pipe()
    pid = os.fork()
    if pid:
        os.close(started)
        os.close(is_ready)
        os.read(ready, 1)
        os.close(ready)
        return Working(pid, start, shared)

    def acknowledge(rollout: Rollout, index: int) -> None:
        shared[PLAN.index(rollout)] = index

    status = CRASHED
    try:
        waiting = select.poll()
        waiting.register(started, select.POLLIN)
        os.write(is_ready, b"!")
        waiting.poll()
        work(acknowledge)
        status = DONE
    except StoreError as error:
        status = REFUSED
        _say(shared, str(error))
    except BaseException:  # noqa: BLE001 (the worker's outermost edge: what it says is judged by the parent)
        _say(shared, traceback.format_exc())
    finally:
        os._exit(status)


def _say(shared: mmap.mmap, text: str) -> None:
    data = text.encode(errors="replace")[-8000:]
    shared[_SAID : _SAID + len(data)] = data
