"""The store against a simple model in memory: whatever sequence of appends, crashes, damage, repairs, resumes and extensions it goes through.

The model keeps what was written, byte for byte, and says from that alone what a reader must find: the turns that are still as they were written, and
whether what follows them is damage or only a write that was cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from campaign.scenes import quick_folder
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_fixtures import CELL, DONE, TURNS, make_run, turn

from drift_cli.errors import StoreError
from drift_cli.spec import Rollout, Turn
from drift_cli.store.log import InUse
from drift_cli.store.manifest import CellPlan
from drift_cli.store.paths import Store
from drift_cli.store.run import Run


@dataclass
class Written:
    """A rollout as it was written: each turn's line and means, and the end's line."""

    lines: list[bytes] = field(default_factory=list)
    means: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What a reader must find."""

    turns: int
    ended: bool
    damaged: bool


class Model(RuleBasedStateMachine):
    """One run of one cell."""

    @initialize()
    def begin(self) -> None:
        self.folder = quick_folder()
        self.run = make_run(Path(self.folder.name), cells=(CellPlan(CELL, 1),))
        self.written: dict[int, Written] = {}
        self.set_aside: dict[Path, bytes] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    # --- what the model says

    def expected(self, sample: int) -> Found:
        written = self.written.get(sample, Written())
        lines, means = (self._bytes(path) for path in self._paths(sample))
        place = whole = 0
        while whole < len(written.lines) and (lines or b"")[place:].startswith(written.lines[whole]):
            place += len(written.lines[whole])
            whole += 1
        turns = min(whole, TURNS)
        damaged = b"\n" in (lines or b"")[place:]
        place = 0
        for number, data in enumerate(written.means[:turns]):
            if data and (means is None or means[place : place + len(data)] != data):
                return Found(number, False, True)
            place += len(data)
        return Found(turns, whole > TURNS, damaged or (lines is None and bool(means)))

    def _paths(self, sample: int) -> tuple[Path, Path]:
        rollout = Rollout(CELL, sample)
        return self.run.paths.rollout(rollout), self.run.paths.residuals(rollout)

    @staticmethod
    def _bytes(path: Path) -> bytes | None:
        return path.read_bytes() if path.exists() else None

    def _samples(self) -> int:
        return self.run.manifest.cells[0].samples

    def _sample(self, choice: int) -> int:
        return choice % self._samples()

    @contextmanager
    def _refused_where_damaged(self, sample: int) -> Iterator[None]:
        """What follows works on a whole rollout and is refused, changing nothing, on a damaged one."""
        if not self.expected(sample).damaged:
            yield
            return
        before = [self._bytes(path) for path in self._paths(sample)]
        with pytest.raises(StoreError):
            yield
        assert [self._bytes(path) for path in self._paths(sample)] == before

    # --- what may happen

    @rule(choice=st.integers(0, 99), number=st.integers(0, TURNS + 1))
    def work(self, choice: int, number: int) -> None:
        """Open a rollout, wherever it is, and write up to so many lines."""
        sample = self._sample(choice)
        rollout, expected = Rollout(CELL, sample), self.expected(sample)
        with self._refused_where_damaged(sample), self.run.writer(rollout) as log:
            assert len(log.record.turns) == expected.turns
            assert (log.record.end is not None) == expected.ended
            written = self.written.setdefault(sample, Written())
            del written.lines[expected.turns + expected.ended :], written.means[expected.turns :]
            for index in range(expected.turns + 1, min(expected.turns + number, TURNS) + 1):
                log.append(turn(index, rollout))
                self._note(sample, turn(index, rollout))
            if len(written.lines) == TURNS and number:
                log.end(DONE)
                self._note(sample, None)

    def _note(self, sample: int, made: Turn | None) -> None:
        """Take down what was just acknowledged, from the files."""
        written = self.written[sample]
        lines, means = (self._bytes(path) or b"" for path in self._paths(sample))
        written.lines.append(lines[sum(map(len, written.lines)) :])
        if made is not None:
            written.means.append(means[sum(map(len, written.means)) :])
            assert len(written.means[-1]) == (0 if made.residual is None else made.residual.nbytes)
        assert written.lines[-1].count(b"\n") == 1

    @rule(choice=st.integers(0, 99), part=st.floats(0, 1), line=st.booleans())
    def crash(self, choice: int, part: float, line: bool) -> None:
        """A process is killed in the middle of the next turn: a part of its means is there, or all of them and a part of its line."""
        sample = self._sample(choice)
        expected = self.expected(sample)
        lines, means = self._paths(sample)
        if expected.damaged or expected.turns == TURNS or not lines.exists():
            return
        made = turn(expected.turns + 1, Rollout(CELL, sample))
        data = b"" if made.residual is None else made.residual.tobytes()
        text = b'{"turn":%d,"finish":"stop","text":"half of a line' % made.index
        with means.open("ab") as file:
            file.write(data if line else data[: int(part * len(data))])
        if line:
            with lines.open("ab") as file:
                file.write(text[: int(part * len(text))])

    @rule(choice=st.integers(0, 99), which=st.integers(0, 1), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def flip(self, choice: int, which: int, place: float, bit: int) -> None:
        """A bit turns over."""
        path = self._paths(self._sample(choice))[which]
        data = bytearray(self._bytes(path) or b"")
        if data:
            data[int(place * len(data))] ^= 1 << bit
            path.write_bytes(data)

    @rule(choice=st.integers(0, 99), which=st.integers(0, 1), part=st.floats(0, 1))
    def cut(self, choice: int, which: int, part: float) -> None:
        """A file loses its end."""
        path = self._paths(self._sample(choice))[which]
        data = self._bytes(path)
        if data is not None:
            path.write_bytes(data[: int(part * len(data))])

    @rule(choice=st.integers(0, 99), which=st.integers(0, 1))
    def remove(self, choice: int, which: int) -> None:
        """A file is gone."""
        self._paths(self._sample(choice))[which].unlink(missing_ok=True)

    @rule()
    def repair(self) -> None:
        """Damage is set aside, every byte of it, and nothing else changes."""
        before = {sample: (self.expected(sample), [self._bytes(path) for path in self._paths(sample)]) for sample in range(self._samples())}
        made, problems = self.run.repair()
        assert problems == []
        assert {repair.rollout.sample for repair in made} == {sample for sample, (found, _) in before.items() if found.damaged}
        aside = {repair.rollout.sample: repair for repair in made}
        for sample, (found, files) in before.items():
            if found.damaged:
                assert aside[sample].kept == found.turns
                for path, was in zip(self._paths(sample), files, strict=True):
                    kept = self._bytes(path) or b""
                    moved = b"".join(file.read_bytes() for file in aside[sample].files if file.suffix == path.suffix)
                    assert kept + moved == (was or b"")
            else:
                assert [self._bytes(path) for path in self._paths(sample)] == files
        for path, data in self.set_aside.items():
            assert path.read_bytes() == data
        self.set_aside |= {file: file.read_bytes() for repair in made for file in repair.files}

    @rule(more=st.integers(1, 2))
    @precondition(lambda self: self._samples() < 4)
    def extend(self, more: int) -> None:
        """The run gains samples."""
        before = {path: path.read_bytes() for path in self.run.paths.rollouts_root.rglob("*") if path.is_file()}
        self.run.update(replace(self.run.manifest, cells=(CellPlan(CELL, self._samples() + more),)))
        assert {path: path.read_bytes() for path in before} == before

    @rule(choice=st.integers(0, 99))
    def two_at_once(self, choice: int) -> None:
        """Whoever comes second is refused."""
        sample = self._sample(choice)
        if not self.expected(sample).damaged:
            with self.run.writer(Rollout(CELL, sample)), pytest.raises(InUse):
                self.run.writer(Rollout(CELL, sample))

    @rule()
    def reopen(self) -> None:
        """Another process looks at the run."""
        self.run = Run.open(Store(self.run.paths.root.parent), self.run.paths.run_id)

    # --- what always holds

    @invariant()
    def readers_find_what_the_model_says(self) -> None:
        if not hasattr(self, "folder"):
            return
        harmed = set()
        for sample in range(self._samples()):
            rollout, expected = Rollout(CELL, sample), self.expected(sample)
            if expected.damaged:
                harmed.add(sample)
                continue
            record = self.run.record(rollout, residuals=True)
            assert record.turns == tuple(turn(index, rollout) for index in range(1, expected.turns + 1))
            for made in record.turns:
                wanted = turn(made.index, rollout).residual
                assert (made.residual is None) == (wanted is None)
                assert wanted is None or np.array_equal(made.residual, wanted)
            assert (record.end is not None) == expected.ended
        fatal = {self.run.paths.rollout_of(finding.file) for finding in self.run.verify() if finding.fatal}
        assert {rollout.sample for rollout in fatal if rollout is not None} == harmed
        assert None not in fatal


Model.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestModel = Model.TestCase
