"""A run of 10,000 rollouts of 18 turns: everything that looks at it stays quick and small.

Times are the process's own (a busy machine takes nothing away from them), memory is what it needed beyond what it had.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from campaign.scenes import quick_folder
from store_fixtures import fork, manifest

from drift_cli.analysis.summary import summarize
from drift_cli.analysis.table import load
from drift_cli.axis import Axis
from drift_cli.commands.runs import _listed
from drift_cli.spec import Cell, Condition, Finish, Rollout, Transcript, Turn
from drift_cli.store.line import EndLine, TurnLine, encode, first_link, link
from drift_cli.store.log import End
from drift_cli.store.manifest import AxisEntry, CellPlan
from drift_cli.store.paths import Store
from drift_cli.store.residuals import pack
from drift_cli.store.run import Run

CELLS, SAMPLES, TURNS, WIDTH = 20, 500, 18, 16
ROOM = 3
"""The stated times are of a machine that does nothing else; these tests run beside others on shared cores, and under a coverage tracer."""
UNFINISHED = 1000
"""Every tenth rollout lacks its last turns."""
WORDS = "and then the light came back to the garden " * 12


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """The run, its files written without the store's own care: fsync after every line would take an hour."""
    with quick_folder() as folder:
        chance = np.random.default_rng(7)
        vector = chance.normal(size=(1, WIDTH)).astype(np.float32)
        axis = Axis("made", (5,), (vector / np.linalg.norm(vector)).astype(np.float32))
        cells = [Cell("talk", f"c{number}", 0.5) for number in range(CELLS)]
        made = Run.create(
            Store(Path(folder) / "checkpoints"),
            manifest(
                layers=(5,),
                conditions={cell.condition: Condition(cell.condition) for cell in cells},
                transcripts={"talk": Transcript("talk", tuple(f"question {number}" for number in range(TURNS)))},
                cells=tuple(CellPlan(cell, SAMPLES) for cell in cells),
                axes=(AxisEntry("made", 5, axis.digest),),
                model=None,
            ),
        )
        axis.save(made.paths.axis("made"))
        means = chance.normal(size=(TURNS, 1, WIDTH)).astype(np.float32)
        bodies = list(_bodies(means, axis.vectors[0]))
        for number, cell in enumerate(cells):
            made.paths.cell(cell).mkdir(parents=True)
            for sample in range(SAMPLES):
                short = (number * SAMPLES + sample) % (CELLS * SAMPLES // UNFINISHED) == 0
                _write(made, Rollout(cell, sample), bodies[: -4 if short else None], means)
        yield made


def _bodies(means: np.ndarray, vector: np.ndarray) -> Iterator[bytes]:
    """Lines up to where they are chained."""
    offset = 0
    for index, mean in enumerate(means, 1):
        _, stored = pack(mean, offset, 1, WIDTH)
        offset += stored.size
        projection = float(mean[0].astype(np.float64) @ vector.astype(np.float64))
        turn = Turn(index, f"{index} {WORDS}", Finish.STOP, tuple(range(150)), 100 * index, "ab" * 16, None, {"made": projection})
        yield _body(encode(TurnLine(turn, stored, 0), "0" * 32))
    yield _body(encode(EndLine(End(Finish.COMPLETE, TURNS, None), 0), "0" * 32))


def _body(line: bytes) -> bytes:
    return line[: line.index(b'"prev":"') + len(b'"prev":"')]


def _write(run: Run, rollout: Rollout, bodies: list[bytes], means: np.ndarray) -> None:
    prev, lines = first_link(run.paths.run_id, rollout), []
    for body in bodies:
        covered = body + prev.encode() + b'"'
        lines.append(covered + b',"crc":"%08x"}' % crc32(covered))
        prev = link(lines[-1])
    run.paths.rollout(rollout).write_bytes(b"\n".join(lines) + b"\n")
    run.paths.residuals(rollout).write_bytes(means[: min(len(bodies), TURNS)].tobytes())


def costs(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of processor time and MiB of additional memory that `work` takes, in a process of its own."""
    reader, writer = os.pipe()

    def measured(say: object, listen: object) -> None:
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        work()
        seconds, after = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(writer, f"{seconds} {(after - before) / 1024}".encode())

    assert fork(measured).wait() == 0
    os.close(writer)
    with os.fdopen(reader) as pipe:
        seconds, mebibytes = map(float, pipe.read().split())
    print(f"{seconds:.2f} s, {mebibytes:.0f} MiB")
    return seconds, mebibytes


def test_listing_takes_less_than_a_second(run: Run) -> None:
    store = Store(run.paths.root.parent)

    def listing() -> None:
        _row, facts = _listed(store, run.paths.run_id)
        assert facts["ended"] == CELLS * SAMPLES - UNFINISHED
        assert facts["turns"] == CELLS * SAMPLES * TURNS - 3 * UNFINISHED

    seconds, mebibytes = costs(listing)
    assert seconds < 1 * ROOM
    assert mebibytes < 64


def test_planning_a_resume_takes_less_than_five_seconds(run: Run) -> None:
    """Find what is left, and open a thousand unfinished rollouts, each checked in full."""

    def planning() -> None:
        waiting = [state.rollout for state in run.states() if not state.ended]
        assert len(waiting) == UNFINISHED
        logs = [run.writer(rollout) for rollout in waiting]
        assert {len(log.record.turns) for log in logs} == {TURNS - 3}
        for log in logs:
            log.close()

    seconds, mebibytes = costs(planning)
    assert seconds < 5 * ROOM
    assert mebibytes < 256


def test_verifying_takes_less_than_a_minute_and_little_memory(run: Run) -> None:
    def verifying() -> None:
        assert run.verify() == []

    seconds, mebibytes = costs(verifying)
    assert seconds < 60 * ROOM
    assert mebibytes < 64


def test_statistics_take_less_than_half_a_minute_and_little_memory(run: Run) -> None:
    def statistics() -> None:
        summary = summarize(load(run))
        assert len(summary.cells) == CELLS

    seconds, mebibytes = costs(statistics)
    assert seconds < 30 * ROOM
    assert mebibytes < 256


def test_files_per_folder_stay_few(run: Run) -> None:
    most = max(len(names) + len(folders) for _, folders, names in os.walk(run.paths.root))
    assert most == 2 * SAMPLES  # lines and means of a cell; notes of who writes are there only while somebody does
