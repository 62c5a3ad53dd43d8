"""What workers tell each other of rollouts that have ended: it spares reading, and is never believed for longer than it takes to look."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_fixtures import CELL, FIRST, OTHER, finish, make_run

from drift_cli.spec import Rollout
from drift_cli.store.manifest import CellPlan
from drift_cli.store.run import Run
from drift_cli.workers import checks
from drift_cli.workers import queue as queue_module
from drift_cli.workers.claims import Claims, claims_of, seen_ended
from drift_cli.workers.leases import Observer, Presence
from drift_cli.workers.queue import Queue, QueueState, correct_hints


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def claims(run: Run, worker: str) -> Claims:
    return Claims(run.paths, worker, Observer(run.paths, pause=0.0))


def bring_to_end(run: Run, rollout: Rollout) -> None:
    """As a worker does."""
    mine = claims(run, "first")
    assert mine.take(rollout)
    finish(run, rollout)
    mine.finish(rollout)


def read_by(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Rollout]:
    """Rollouts that a function of the queue's was asked for."""
    asked: list[Rollout] = []
    before = getattr(queue_module, name)
    monkeypatch.setattr(queue_module, name, lambda paths, rollout: asked.append(rollout) or before(paths, rollout))
    return asked


def taken(queue: Queue) -> set[Rollout]:
    found = set()
    while (states := queue.take()) is not None:
        found |= {state.rollout for state in states}
    return found


def test_what_another_worker_has_ended_is_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bring_to_end(run, FIRST)
    bring_to_end(run, Rollout(CELL, 1))
    assert seen_ended(run.paths, CELL) == {0, 1}
    assert list(claims_of(run.paths)) == []
    read = read_by(monkeypatch, "tail_state")
    queue = Queue(run, claims(run, "second"), shuffled=True)
    assert taken(queue) == {Rollout(OTHER, 0), Rollout(OTHER, 1)}
    assert set(read) == queue.claims.held  # its own, once claimed
    for rollout in list(queue.claims.held):
        finish(run, rollout)
        queue.ended(rollout)
    assert queue.state() is QueueState.DONE


def test_a_hint_for_a_rollout_without_a_file_is_not_believed(run: Run) -> None:
    bring_to_end(run, FIRST)
    run.paths.rollout(FIRST).unlink()
    run.paths.residuals(FIRST).unlink()
    assert FIRST in taken(Queue(run, claims(run, "second"), shuffled=True))


def test_a_wrong_hint_is_taken_away_by_whoever_looks(run: Run) -> None:
    bring_to_end(run, FIRST)
    path = run.paths.rollout(FIRST)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert FIRST not in taken(Queue(run, claims(run, "second"), shuffled=True))
    assert not correct_hints(run.paths, run.states())
    assert seen_ended(run.paths, CELL) == set()
    assert taken(Queue(run, claims(run, "third"))) >= {FIRST}


def test_a_repair_takes_the_hint_away(run: Run) -> None:
    bring_to_end(run, FIRST)
    path = run.paths.rollout(FIRST)
    path.write_bytes(path.read_bytes()[:-9] + b"xxxxxxxx\n")
    checks.repair(run)
    assert seen_ended(run.paths, CELL) == set()


def test_a_complete_run_keeps_no_hints(run: Run) -> None:
    for cell in (CELL, OTHER):
        for sample in range(2):
            bring_to_end(run, Rollout(cell, sample))
    assert [finding.file.name for finding in checks.verify(run) if "claims" in str(finding.file)] == []
    assert correct_hints(run.paths, run.states())
    assert not run.paths.ended(CELL).exists()
    assert not run.paths.ended(OTHER).exists()


@pytest.mark.parametrize("data", [b"", b"0000", b"\xff\n\n0001\n00x2\n-001\n0003", b"0001 0002\n"])
def test_hints_may_hold_anything(data: bytes, run: Run) -> None:
    bring_to_end(run, FIRST)
    run.paths.ended(CELL).write_bytes(data)
    assert seen_ended(run.paths, CELL) <= {0, 1, 3}
    run.paths.ended(CELL).unlink()
    run.paths.ended(CELL).symlink_to("/etc/passwd")
    assert seen_ended(run.paths, CELL) == set()


def test_what_others_hold_is_asked_for_when_nothing_else_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = read_by(monkeypatch, "read_holder")
    with Presence(run.paths, "first"):
        other = claims(run, "first")
        for sample in range(2):
            assert other.take(Rollout(CELL, sample))
        queue = Queue(run, claims(run, "second"), shuffled=True)
        assert {queue.take()[0].rollout, queue.take()[0].rollout} == {Rollout(OTHER, 0), Rollout(OTHER, 1)}  # type: ignore[index]
        assert asked == []
        assert queue.take() is None  # the end of the first round, or the next
        assert queue.take() is None
        assert sorted(asked) == [FIRST, Rollout(CELL, 1)]
        assert queue.state() is QueueState.HELD


def test_looking_at_what_others_hold_takes_a_small_part_of_the_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(queue_module.time, "monotonic", lambda: now[0])
    before = queue_module.read_holder

    def slow(paths: object, rollout: Rollout) -> str | None:
        now[0] += 0.2
        return before(paths, rollout)  # type: ignore[arg-type]

    monkeypatch.setattr(queue_module, "read_holder", slow)
    run = make_run(run.paths.root.parent.parent / "wide", cells=(CellPlan(CELL, 12),))
    with Presence(run.paths, "first"):
        other = claims(run, "first")
        for sample in range(12):
            assert other.take(Rollout(CELL, sample))
        queue, started = Queue(run, claims(run, "second"), shuffled=True), now[0]
        assert queue.take() is None
        assert now[0] == started
        for _ in range(100):
            assert queue.take() is None
        assert now[0] - started == pytest.approx(0.4)  # two claims, then a rest
        assert queue.state() is QueueState.OPEN
        now[0] += 9.0
        assert queue.take() is None
        assert now[0] - started == pytest.approx(9.8)
