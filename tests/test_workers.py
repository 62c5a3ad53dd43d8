"""Many workers on one run: killed, suspended, racing, without locks. What they make is what one process makes."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers import Place, Stable, kill, make, until

from drift_cli.errors import EXIT_INTERRUPTED
from drift_cli.launch import local
from drift_cli.launch.plan import MOST_LOSSES, Plan
from drift_cli.store.epoch import Epoch
from drift_cli.workers.claims import claims_of
from drift_cli.workers.leases import read_workers

SAMPLES = int(os.environ.get("WORKERS_TEST_ROLLOUTS", "32")) // 4
"""Of each of four cells."""
KILL_EVERY = (0.4, 1.0)
"""Seconds from one kill to the next."""


@pytest.fixture(scope="module")
def stable() -> Iterator[Stable]:
    made = Stable()
    yield made
    made.close()


@pytest.fixture(scope="module")
def without_locks() -> Iterator[Stable]:
    made = Stable("no-locks")
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(stable: Stable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a single process makes of a run."""
    place = make(tmp_path_factory.mktemp("alone") / "run", "--samples", str(SAMPLES))
    assert stable.wait(stable.start(place.folder, "resume"), 300) == 0
    return place.files()


def work(stable: Stable, place: Place, name: str, *options: str) -> int:
    return stable.start(place.folder, "work", "--worker", name, "--display", "json", *options, output=f"out-{name}")


def settled(place: Place, expected: dict[str, bytes]) -> None:
    """The run is complete, the same, sound, and nobody's claim is left."""
    assert place.complete
    files = place.files()
    assert {name for name in files if files[name] != expected.get(name)} == set()
    assert set(files) == set(expected)
    assert [finding for finding in place.run.verify() if finding.fatal] == []
    assert list(claims_of(place.run.paths)) == []


def test_four_workers_of_which_one_is_killed_again_and_again_make_what_one_process_makes(
    stable: Stable, alone: dict[str, bytes], tmp_path: Path
) -> None:
    place, chance = make(tmp_path / "run", "--samples", str(SAMPLES)), random.Random(8)
    alive: list[int] = []
    kills = number = 0
    due = time.monotonic() + chance.uniform(*KILL_EVERY)
    while not place.complete:
        for pid in [pid for pid in alive if pid in stable.ended]:
            alive.remove(pid)
            assert stable.ended[pid] in (0, -signal.SIGKILL)
        while len(alive) < 4:
            number += 1
            alive.append(work(stable, place, f"w{number}", "--lease", "3"))
        # Not a wait for anything: the instant is meant to be any.
        if time.monotonic() >= due:
            kill(alive[chance.randrange(4)])
            kills, due = kills + 1, time.monotonic() + chance.uniform(*KILL_EVERY)
        time.sleep(0.02)
    assert [status for pid in alive if (status := stable.wait(pid)) not in (0, -signal.SIGKILL)] == []
    print(f"{kills} kills, {number} workers")
    assert kills >= 4
    settled(place, alone)


@pytest.mark.parametrize("locks", [True, False])
def test_a_worker_that_slept_longer_than_its_lease_leaves_to_others_what_they_took(
    locks: bool, stable: Stable, without_locks: Stable, alone: dict[str, bytes], tmp_path: Path
) -> None:
    place, used = make(tmp_path / "run", "--samples", str(SAMPLES)), stable if locks else without_locks
    sleeper = work(used, place, "sleeper", "--lease", "0.5")
    until(lambda: place.done >= 3)
    os.kill(sleeper, signal.SIGSTOP)
    try:
        held = {rollout for rollout, worker in claims_of(place.run.paths) if worker == "sleeper"}
        assert held
        before = {rollout: place.run.paths.rollout(rollout).read_bytes() for rollout in held if place.run.paths.rollout(rollout).exists()}
        assert used.wait(work(used, place, "other", "--lease", "0.5")) == 0
        if locks:  # nobody can write what the sleeper has locked, claim or not
            assert not place.complete
            assert {rollout: place.run.paths.rollout(rollout).read_bytes() for rollout in before} == before
        else:
            assert place.complete
    finally:
        os.kill(sleeper, signal.SIGCONT)
    assert used.wait(sleeper) == 0
    settled(place, alone)


def test_where_locks_do_nothing_workers_still_make_what_one_process_makes(
    without_locks: Stable, alone: dict[str, bytes], tmp_path: Path
) -> None:
    place = make(tmp_path / "run", "--samples", str(SAMPLES))
    pids = [work(without_locks, place, f"w{number}", "--lease", "3") for number in range(3)]
    until(lambda: place.done >= 5)
    kill(pids[0])
    assert [without_locks.wait(pid) for pid in pids[1:]] == [0, 0]
    assert without_locks.wait(work(without_locks, place, "last")) == 0
    settled(place, alone)


def test_groups_of_the_reference_engine_keep_their_company(stable: Stable, tmp_path: Path) -> None:
    """Bits of a batch depend on who is in it, so a group is claimed as a whole, also after a kill in its middle."""
    one = make(tmp_path / "one", "--samples", "4", "--engine", "reference")
    assert stable.wait(stable.start(one.folder, "resume")) == 0
    place = make(tmp_path / "run", "--samples", "4", "--engine", "reference")
    pids = [work(stable, place, f"w{number}", "--lease", "3") for number in range(2)]
    until(lambda: place.done >= 4)
    kill(pids[0])
    stable.wait(pids[0])
    assert stable.wait(pids[1]) == 0
    assert stable.wait(work(stable, place, "last")) == 0
    settled(place, one.files())


def test_a_worker_that_is_asked_to_stop_gives_up_what_it_holds(stable: Stable, tmp_path: Path) -> None:
    place = make(tmp_path / "run", "--samples", "8")
    pid = work(stable, place, "w")
    until(lambda: place.done >= 2)
    assert [worker.state for worker in read_workers(place.run.paths)] == ["working"]
    os.kill(pid, signal.SIGTERM)
    assert stable.wait(pid) == EXIT_INTERRUPTED
    assert [(worker.id, worker.state, worker.held) for worker in read_workers(place.run.paths)] == [("w", "left", 0)]
    assert list(claims_of(place.run.paths)) == []


def test_a_launch_ends_with_the_whole_run(stable: Stable, alone: dict[str, bytes], tmp_path: Path) -> None:
    place = make(tmp_path / "run", "--samples", str(SAMPLES))
    assert stable.wait(stable.start(place.folder, "launch", "--workers", "1", place.run.paths.run_id, "--json")) == 0
    assert '"complete": 8' in (place.folder / "out").read_text()
    settled(place, alone)
    assert not place.run.paths.workers_root.exists()


def test_a_launch_starts_again_what_dies_and_stops_what_it_started(stable: Stable, tmp_path: Path) -> None:
    place = make(tmp_path / "run", "--samples", "500")
    launch = stable.start(place.folder, "launch", "--workers", "1", place.run.paths.run_id, "--display", "json")
    until(lambda: place.done >= 2)
    (victim,) = read_workers(place.run.paths)
    assert victim.launcher == {"launcher": "local"}
    kill(victim.pid)
    until(lambda: len(read_workers(place.run.paths)) == 2)
    os.kill(launch, signal.SIGTERM)
    assert stable.wait(launch) == EXIT_INTERRUPTED
    said = (place.folder / "out").read_text()
    assert f"{victim.id} was killed by SIGKILL: another one is started in its place" in said
    assert "stopped by SIGTERM" in said
    assert not any(Path(f"/proc/{worker.pid}").exists() for worker in read_workers(place.run.paths))


def test_workers_on_a_cpu_keep_the_number_of_threads_that_a_run_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.os, "cpu_count", lambda: 12)
    run = make(tmp_path / "run").run
    assert local.threads(run.paths, 4) == 3
    assert local.threads(run.paths, 40) == 1
    run.begin(Epoch({}, "cpu (7 threads)", "slots", 3))
    run.begin(Epoch({}, "NVIDIA H200", "slots", 3))
    assert local.threads(run.paths, 4) == 7


def test_a_launch_whose_workers_fail_again_and_again_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make(tmp_path / "run")
    failing = (sys.executable, "-c", "import sys; sys.exit('the weights are not there')")
    monkeypatch.setattr(local, "worker_command", lambda plan, worker: failing)
    said: list[str] = []
    finished = local.Workers(Plan(place.run.paths.run_id, place.folder / "checkpoints", 2), place.run.paths, said.append).run(
        lambda: False, lambda: None
    )
    assert (finished.done, finished.lost, len(finished.failed)) == (0, 2 * (MOST_LOSSES - 1), 2)
    assert "is not started again: the weights are not there" in said[-1]
    assert all(Path(log).read_text() == "the weights are not there\n" for log in finished.failed)
