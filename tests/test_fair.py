"""Each of several workers takes its share of a run, however many slots it has, and nothing is left lying for it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest
from store_fixtures import CELL, OTHER, finish, make_run

from drift_cli.launch.plan import Plan, worker_command
from drift_cli.spec import Rollout
from drift_cli.store.manifest import CellPlan
from drift_cli.store.run import Run
from drift_cli.workers import fair as fair_module
from drift_cli.workers.claims import Claims
from drift_cli.workers.fair import FairShare
from drift_cli.workers.leases import Observer, Presence, worker_ids
from drift_cli.workers.queue import Queue
from drift_cli.workers.share import take_part


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path, cells=(CellPlan(CELL, 12), CellPlan(OTHER, 12)))


def queue_of(run: Run, worker: str, among: int = 1) -> Queue:
    observer = Observer(run.paths, pause=0.0)
    return Queue(run, Claims(run.paths, worker, observer), shuffled=True, pause=0.0, fair=FairShare(observer, worker, among, pause=0.0))


def taken(queue: Queue) -> int:
    found = 0
    while queue.take() is not None:
        found += 1
    return found


def end_all(run: Run, queue: Queue) -> None:
    for rollout in list(queue.claims.held):
        finish(run, rollout)
        queue.claims.finish(rollout)
        queue.ended(rollout)


def test_one_worker_takes_everything(run: Run) -> None:
    with Presence(run.paths, "a"):
        assert taken(queue_of(run, "a")) == 24


def test_workers_that_are_there_share_what_has_not_ended(run: Run) -> None:
    finish(run, Rollout(CELL, 0))
    with ExitStack() as stack:
        queues = [queue_of(run, stack.enter_context(Presence(run.paths, name)).id) for name in "abcd"]
        assert [taken(queue) for queue in queues] == [6, 6, 6, 5]
        end_all(run, queues[0])
        assert taken(queues[0]) == 0


def test_those_that_left_or_died_count_for_nothing(run: Run) -> None:
    with Presence(run.paths, "left"):
        pass
    with Presence(run.paths, "dead"):
        path = run.paths.worker("dead")
        said = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**said, "state": "working", "born": said["born"] + 1}))
    with Presence(run.paths, "a"), Presence(run.paths, "b"):
        assert len(worker_ids(run.paths)) == 4
        assert taken(queue_of(run, "a")) == 12


def test_what_is_started_together_leaves_the_others_their_share_for_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with Presence(run.paths, "a"):
        queue = queue_of(run, "a", among=4)
        assert taken(queue) == 6
        monkeypatch.setattr(fair_module, "_SETTLING", 0.0)
        assert taken(queue) == 18


def test_a_worker_goes_on_with_what_is_left_until_nothing_is(run: Run) -> None:
    with Presence(run.paths, "a"), Presence(run.paths, "idle"):
        queue, rounds = queue_of(run, "a"), []
        while found := taken(queue):
            rounds.append(found)
            end_all(run, queue)
    assert sum(rounds) == 24
    assert rounds[0] == 12


def test_of_hundreds_of_workers_few_are_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(fair_module, "worker_ids", lambda paths: [f"w{number}" for number in range(500)])
    monkeypatch.setattr(Observer, "life", lambda self, worker: read.append(worker))
    fair = FairShare(Observer(run.paths), "w0")
    assert fair.allows(48, 100_000)
    assert read == []
    assert not fair.allows(48, 1000)
    assert not fair.allows(48, 1000)
    assert len(read) == 32


def test_launched_workers_are_told_how_many_they_are_and_share_accordingly(run: Run) -> None:
    line = worker_command(Plan(run.paths.run_id, run.paths.root.parent, 3, batch=48))
    assert line[line.index("--among") + 1] == "3"
    assert "--among" not in worker_command(Plan(run.paths.run_id, run.paths.root.parent, 1))
    with take_part(run, "first", shuffled=True, among=3) as share:
        assert taken(share.queue(run, 1)) == 8
