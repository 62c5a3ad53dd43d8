"""Bytes that are not what was written: every length a file may be cut to, every bit that may turn over, zeros in a tail's place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from store_fixtures import TURNS

from campaign.scenes import PLAN, check, files, session
from campaign.tally import Outcome, Tally
from drift_cli.errors import StoreError
from drift_cli.store.line import TurnLine, read
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

Harm = Callable[[bytes], bytes]


@dataclass(frozen=True)
class _Whole:
    """A finished rollout's two files, and how long each was after each turn."""

    lines: bytes
    means: bytes
    marks: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, run: Run) -> _Whole:
        lines, means = run.paths.rollout(PLAN[0]).read_bytes(), run.paths.residuals(PLAN[0]).read_bytes()
        marks, size, counted = [], 0, 0
        for raw in lines.splitlines(keepends=True):
            content, _ = read(raw[:-1])
            size += len(raw)
            if isinstance(content, TurnLine):
                counted += content.stored.size if content.stored is not None else 0
                marks.append((size, counted))
        return cls(lines, means, tuple(marks))

    def intact(self, run: Run) -> int:
        """Turns, from the first on, that a harm has spared."""
        lines, means = run.paths.rollout(PLAN[0]).read_bytes(), run.paths.residuals(PLAN[0]).read_bytes()
        spared = (lines[:a] == self.lines[:a] and means[:b] == self.means[:b] for a, b in self.marks)
        return next((number for number, good in enumerate(spared) if not good), TURNS)


def faults(folder: Path, every: int = 1, first: int = 0) -> list[Tally]:
    """Do every `every`-th of all harms, from number `first` on."""
    place = folder / "place"
    run = session(place)
    expected, whole = files(place), _Whole.of(run)
    tallies: dict[str, Tally] = {}
    for number, (name, path, harm) in enumerate(_harms(run)):
        if (number - first) % every:
            continue
        data = path.read_bytes()
        path.write_bytes(harm(data))
        outcome = _manifest(place, data, path) if path == run.paths.manifest else _rollout(place, run, expected, whole)
        tallies.setdefault(name, Tally(name)).count(f"{path.name}, number {number}", outcome)
        for stored, content in expected.items():
            (place / "checkpoints" / stored).write_bytes(content)
        shutil.rmtree(run.paths.quarantine, ignore_errors=True)
        run.paths.events.unlink(missing_ok=True)
    return list(tallies.values())


def _harms(run: Run) -> Iterator[tuple[str, Path, Harm]]:
    """Name, file, and what happens to its bytes."""
    for kind, path in (("lines", run.paths.rollout(PLAN[0])), ("residual means", run.paths.residuals(PLAN[0]))):
        size = path.stat().st_size
        for length in range(size):
            yield f"{kind} cut to every length", path, lambda data, length=length: data[:length]
        for place in range(size * 8):
            yield f"every bit of {kind} turned over", path, lambda data, place=place: _flipped(data, place)
        for length in range(size):
            yield f"{kind} with zeros from every byte on", path, lambda data, length=length: data[:length] + bytes(len(data) - length)
        for length in (1, 7, 511, 512, 4096, 70_000):
            yield f"zeros behind {kind}", path, lambda data, length=length: data + bytes(length)
    for place in range(run.paths.manifest.stat().st_size * 8):
        yield "every bit of the manifest turned over", run.paths.manifest, lambda data, place=place: _flipped(data, place)


def _flipped(data: bytes, place: int) -> bytes:
    made = bytearray(data)
    made[place // 8] ^= 1 << place % 8
    return bytes(made)


def _rollout(place: Path, run: Run, expected: dict[str, bytes], whole: _Whole) -> Outcome:
    """The harm is noticed, what it spares is kept, and the run is set right and goes on to the same bytes."""
    noticed = bool(run.verify()) or not all(state.ended for state in run.states())
    outcome = check(place, {PLAN[0]: whole.intact(run), PLAN[1]: TURNS}, expected, damage=True)
    if not noticed:
        outcome.undetected = True
        outcome.problems.append("nothing was noticed")
    return outcome


def _manifest(place: Path, data: bytes, path: Path) -> Outcome:
    """A changed manifest is refused by name."""
    outcome = Outcome(named=True)
    try:
        Run.newest(Store(place / "checkpoints"))
    except StoreError as error:
        if str(path) not in error.what:
            outcome.problems.append(f"the error names no file: {error.what}")
    else:
        outcome.undetected = True
        outcome.problems.append("it was read as if nothing had happened")
    path.write_bytes(data)
    return outcome
