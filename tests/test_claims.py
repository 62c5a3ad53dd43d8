"""Claims and heartbeats: one taker of each claim, and only what is gone is taken over."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import CELL, FIRST, OTHER, finish, fork, make_run

from drift_cli.errors import UsageError
from drift_cli.spec import Rollout
from drift_cli.store.manifest import CellPlan
from drift_cli.store.run import Run
from drift_cli.workers import claims as claims_module
from drift_cli.workers import leases as workers_module
from drift_cli.workers.claims import Claims, claimed, claims_of, read_holder
from drift_cli.workers.leases import LEASE, Life, Observer, Presence, Worker, WorkerState, forget_workers, read_worker, read_workers
from drift_cli.workers.queue import Queue, QueueState

ROLLOUTS = [Rollout(CELL, sample) for sample in range(20)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3)
)
"""Values that a worker's file may hold."""


class Clock:
    """A monotonic clock that only we move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (workers_module, claims_module):
        monkeypatch.setattr(module.time, "monotonic", made)
    return made


ELSEWHERE = Worker("far", "n7", 77, "another boot/1", 5, "2026-01-01T00:00:00+00:00", state=WorkerState.WORKING, beat=1)
"""A worker of another machine."""


def say(run: Run, worker: Worker) -> Worker:
    """Write a worker's file, as that worker would."""
    run.paths.workers_root.mkdir(exist_ok=True)
    run.paths.worker(worker.id).write_bytes(orjson.dumps(worker))
    return worker


def claims(run: Run, worker: str) -> Claims:
    return Claims(run.paths, worker, Observer(run.paths, pause=0.0))


# --- races


def race(run: Run, take: Callable[[Claims, Rollout], bool], processes: int = 12) -> list[tuple[int, str]]:
    """Let processes take the same rollouts at the same time. The sample and the worker of each success."""

    def work(name: str) -> Callable[..., object]:
        def inner(say: Callable[[bytes], object], listen: Callable[[], object]) -> None:
            mine = claims(run, name)
            say(b"r")
            listen()
            taken = [str(rollout.sample) for rollout in ROLLOUTS if take(mine, rollout)]
            (run.paths.root / f"{name}.taken").write_text("\n".join(taken))

        return inner

    children = [fork(work(f"w{number}")) for number in range(processes)]
    assert all(child.said() == b"r" for child in children)
    for child in children:
        child.tell()
    assert [child.wait() for child in children] == [0] * processes
    names = [f"w{number}" for number in range(processes)]
    return sorted((int(sample), name) for name in names for sample in (run.paths.root / f"{name}.taken").read_text().split())


def test_of_many_processes_one_gets_each_claim(run: Run) -> None:
    taken = race(run, lambda mine, rollout: mine.take(rollout))
    assert [sample for sample, _ in taken] == [rollout.sample for rollout in ROLLOUTS]
    assert [(rollout.sample, worker) for rollout, worker in claims_of(run.paths)] == taken


def test_of_many_processes_one_ends_up_with_what_a_worker_left_behind(run: Run) -> None:
    """A third may claim in the instant in which a claim that was moved by mistake is not back yet: its first owner is not named any more, and notices."""
    say(run, replace(ELSEWHERE, state=WorkerState.LEFT))
    for rollout in ROLLOUTS:
        assert claims(run, "far").take(rollout)
    taken = race(run, lambda mine, rollout: mine.take_over(rollout))
    held = [(rollout.sample, worker) for rollout, worker in claims_of(run.paths)]
    assert [sample for sample, _ in held] == [rollout.sample for rollout in ROLLOUTS]
    assert set(held) <= set(taken)
    assert not list(run.paths.claims_root.rglob("*.tmp"))


def test_a_claim_made_between_the_look_and_the_move_is_put_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    say(run, replace(ELSEWHERE, state=WorkerState.LEFT))
    claims(run, "far").take(FIRST)
    faster, slower = claims(run, "faster"), claims(run, "slower")
    move = Claims._move_away

    def late(self: Claims, rollout: Rollout, holder: str) -> bool:
        if self.worker == "slower":
            assert faster.take_over(rollout)
        return move(self, rollout, holder)

    monkeypatch.setattr(Claims, "_move_away", late)
    assert not slower.take_over(FIRST)
    assert read_holder(run.paths, FIRST) == "faster"
    assert faster.is_mine(FIRST)
    assert not list(run.paths.claims_root.rglob("*.tmp"))


def test_a_claim_that_others_took_over_is_not_released(run: Run) -> None:
    mine, other = claims(run, "mine"), claims(run, "other")
    mine.take(FIRST)
    run.paths.claim(FIRST).unlink()
    assert other.take(FIRST)
    assert not mine.is_mine(FIRST)
    mine.release(FIRST)
    assert read_holder(run.paths, FIRST) == "other"


# --- who is gone


def test_a_worker_elsewhere_is_gone_when_its_lease_has_passed_without_a_beat(run: Run, clock: Clock) -> None:
    say(run, ELSEWHERE)
    observer = Observer(run.paths)
    assert observer.life("far") is Life.QUIET
    clock.now += LEASE - 1
    assert observer.life("far") is Life.QUIET
    say(run, replace(ELSEWHERE, beat=2))
    clock.now += 1.5
    assert observer.life("far") is Life.ALIVE
    clock.now += LEASE - 1
    assert observer.life("far") is Life.ALIVE
    clock.now += 2
    assert observer.life("far") is Life.GONE
    say(run, replace(ELSEWHERE, beat=3))
    clock.now += 2
    assert observer.life("far") is Life.ALIVE


def test_a_workers_own_lease_counts(run: Run, clock: Clock) -> None:
    say(run, replace(ELSEWHERE, lease=5.0))
    observer = Observer(run.paths)
    assert observer.life("far") is Life.QUIET
    clock.now += 6
    assert observer.life("far") is Life.GONE


@pytest.mark.parametrize("beat", [1, 7])
def test_clocks_of_other_machines_do_not_matter(beat: int, run: Run, clock: Clock) -> None:
    say(run, replace(ELSEWHERE, since="1970-01-01T00:00:00+00:00", seconds=-1e9, beat=beat))
    os.utime(run.paths.worker("far"), (0, 0))
    observer = Observer(run.paths)
    assert observer.life("far") is Life.QUIET
    say(run, replace(ELSEWHERE, since="2099-01-01T00:00:00+00:00", beat=beat - 1))  # a counter that goes backwards has changed, too
    clock.now += 2
    assert observer.life("far") is Life.ALIVE


def test_a_worker_that_left_is_gone_at_once(run: Run) -> None:
    say(run, replace(ELSEWHERE, state=WorkerState.LEFT))
    assert Observer(run.paths).life("far") is Life.GONE


def test_a_process_of_this_machine_that_is_no_more_is_gone_at_once(run: Run) -> None:
    with Presence(run.paths, "here"):
        said = read_worker(run.paths, "here")
    assert said is not None
    child = fork(lambda say, listen: None)
    child.wait()
    say(run, replace(said, id="dead", pid=child.pid, state=WorkerState.WORKING))
    assert Observer(run.paths).life("dead") is Life.GONE
    say(run, replace(said, id="reused", born=said.born - 1, state=WorkerState.WORKING))  # the pid is ours now, and was another's
    assert Observer(run.paths).life("reused") is Life.GONE
    say(run, replace(said, id="other-boot", pid=child.pid, place="another boot/1", state=WorkerState.WORKING))
    assert Observer(run.paths).life("other-boot") is Life.QUIET


def test_a_process_of_this_machine_that_is_there_lives_until_its_lease_has_passed(run: Run, clock: Clock) -> None:
    with Presence(run.paths, "here"):
        said = read_worker(run.paths, "here")
    assert said is not None
    say(run, replace(said, id="asleep", state=WorkerState.WORKING))
    observer = Observer(run.paths)
    assert observer.life("asleep") is Life.ALIVE
    clock.now += LEASE + 1
    assert observer.life("asleep") is Life.GONE  # it does not beat: suspended, or stuck


def test_a_worker_without_a_file_counts_for_as_long_as_a_lease(run: Run, clock: Clock) -> None:
    observer = Observer(run.paths)
    assert observer.life("nobody") is Life.QUIET
    clock.now += LEASE + 1
    assert observer.life("nobody") is Life.GONE


def test_an_id_is_never_used_twice(run: Run) -> None:
    with Presence(run.paths, "same") as first:
        assert first.id == "same"
    with Presence(run.paths, "same") as second:
        assert second.id.startswith("same-")
    assert [worker.state for worker in read_workers(run.paths)] == [WorkerState.LEFT] * 2


def test_a_complete_run_forgets_those_who_left(run: Run) -> None:
    say(run, ELSEWHERE)
    with Presence(run.paths, "here") as here:
        mine = claims(run, here.id)
        mine.take(FIRST)
        mine.release(FIRST)
    forget_workers(run.paths)
    assert [worker.id for worker in read_workers(run.paths)] == ["far"]
    assert not run.paths.claims_root.exists()


# --- hostile files


def _hostile(run: Run, path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = run.paths.root.parent / "outside"
    outside.write_text("kept")
    contents = {
        "empty": b"",
        "no-newline": b"far",
        "binary": bytes(range(256)),
        "huge": b"x" * (1 << 20),
        "path": b"../../../outside\n",
        "two-lines": b"far\nnear\n",
        "nul": b"far\0\n",
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "link":
        path.symlink_to(outside)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["empty", "no-newline", "binary", "huge", "path", "two-lines", "nul", "link", "folder", "fifo"])
def test_a_claim_that_may_hold_anything_keeps_others_away_for_a_lease_and_no_longer(kind: str, run: Run, clock: Clock) -> None:
    _hostile(run, run.paths.claim(FIRST), kind)
    mine = claims(run, "mine")
    assert not mine.take(FIRST)
    assert not mine.take_over(FIRST)
    assert read_holder(run.paths, FIRST) == ""
    assert all(not finding.fatal or kind == "link" for finding in run.verify())
    clock.now += LEASE + 1
    assert mine.take_over(FIRST)
    assert mine.is_mine(FIRST)
    assert (run.paths.root.parent / "outside").read_text() == "kept"


@pytest.mark.parametrize("kind", ["empty", "binary", "huge", "path", "link", "folder", "fifo"])
def test_a_workers_file_that_may_hold_anything_says_nothing(kind: str, run: Run) -> None:
    _hostile(run, run.paths.worker("far"), kind)
    assert read_worker(run.paths, "far") is None
    assert read_workers(run.paths) == []
    assert Observer(run.paths).life("far") is Life.QUIET
    with Presence(run.paths, "far") as here:
        assert here.id != "far"


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"lease": 1e300},
        {"lease": -1.0},
        {"beat": "1"},
        {"state": "dancing"},
        {"extra": 1},
        {"launcher": {"a": 1}},
        {"pid": None},
    ],
)
def test_a_workers_file_that_says_what_cannot_be_is_not_believed(change: dict[str, object], run: Run) -> None:
    run.paths.workers_root.mkdir()
    run.paths.worker("far").write_bytes(orjson.dumps({**orjson.loads(orjson.dumps(ELSEWHERE)), **change}))
    assert read_worker(run.paths, "far") is None


@given(st.binary(max_size=300) | st.builds(orjson.dumps, st.dictionaries(st.sampled_from(sorted(vars(ELSEWHERE))), JSON)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_a_reader_gives_a_worker_or_nobody(run: Run, data: bytes) -> None:
    run.paths.workers_root.mkdir(exist_ok=True)
    run.paths.worker("far").write_bytes(data)
    said = read_worker(run.paths, "far")
    assert said is None or said.id == "far"
    assert Observer(run.paths).life("far") in Life
    run.paths.claim(FIRST).parent.mkdir(parents=True, exist_ok=True)
    run.paths.claim(FIRST).write_bytes(data)
    holder = read_holder(run.paths, FIRST)
    assert holder == "" or (holder is not None and data == f"{holder}\n".encode() and run.paths.worker(holder))


@pytest.mark.parametrize("name", ["../far", "", "a/b", "x" * 81, "-far"])
def test_names_that_cannot_be_files_are_refused(name: str, run: Run) -> None:
    with pytest.raises(UsageError):
        run.paths.worker(name)


def test_a_folder_of_claims_that_is_a_link_is_not_followed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run.paths.claims_root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(claims_module.StoreError):
        claims(run, "mine").take(FIRST)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- what is left


def taken_by(queue: Queue) -> list[Rollout]:
    found = []
    while (states := queue.take()) is not None:
        found += [state.rollout for state in states]
    return found


def test_a_queue_takes_in_the_plans_order_what_has_not_ended(run: Run) -> None:
    finish(run, Rollout(CELL, 1))
    queue = Queue(run, claims(run, "a"))
    assert taken_by(queue) == [FIRST, Rollout(OTHER, 0), Rollout(OTHER, 1)]
    assert queue.state() is QueueState.DONE
    assert {rollout for rollout, _ in claims_of(run.paths)} == queue.claims.held


def test_workers_begin_at_different_places_and_take_everything_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, cells=(CellPlan(CELL, 40), CellPlan(OTHER, 40)))
    queues = [Queue(run, claims(run, f"w{number}"), shuffled=True) for number in range(8)]
    first = [queue.take() for queue in queues]
    assert len({states[0].rollout for states in first if states}) == 8
    rest = [rollout for queue in queues for rollout in taken_by(queue)]
    assert len(rest) + 8 == len({*rest, *(states[0].rollout for states in first if states)}) == 80


def test_a_group_is_claimed_as_a_whole_or_not_at_all(run: Run) -> None:
    say(run, ELSEWHERE)
    claims(run, "far").take(Rollout(CELL, 1))
    queue = Queue(run, claims(run, "mine"), size=2)
    assert taken_by(queue) == [Rollout(OTHER, 0), Rollout(OTHER, 1)]
    assert claimed(run.paths, CELL) == {1}
    assert queue.state() is QueueState.OPEN  # nobody knows yet whether the other lives
    assert queue.others() == {"far": 2}


def test_what_living_workers_hold_is_not_waited_for(run: Run, clock: Clock) -> None:
    with Presence(run.paths, "here"):
        other = claims(run, "here")
        for sample in range(2):
            assert other.take(Rollout(CELL, sample))
        queue = Queue(run, claims(run, "mine"))
        assert taken_by(queue) == [Rollout(OTHER, 0), Rollout(OTHER, 1)]
        assert queue.state() is QueueState.HELD
    clock.now += 2
    assert queue.state() is QueueState.OPEN
    clock.now += 2
    assert taken_by(queue) == [FIRST, Rollout(CELL, 1)]
    assert queue.state() is QueueState.DONE


def test_looking_claims_nothing(run: Run) -> None:
    queue = Queue(run, claims(run, "mine"))
    assert queue.is_open()
    assert list(claims_of(run.paths)) == []
    for sample in range(2):
        finish(run, Rollout(CELL, sample))
        finish(run, Rollout(OTHER, sample))
    late = Queue(run, claims(run, "mine"))
    assert not late.is_open()
    assert late.state() is QueueState.DONE
