"""Watching a run: counts follow what is committed, little is read, nothing is written, and whoever is gone is called lost."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import drift
from rich.console import Console
from store_fixtures import CELL, FIRST, OTHER, TURNS, finish, fork, make_run, open_log, turn

from drift_cli.commands.watch import rate_of, summary, tables
from drift_cli.display import Display, Mode
from drift_cli.screen import Screen
from drift_cli.spec import Cell, Condition, Finish, Rollout
from drift_cli.store.lock import Owner
from drift_cli.store.log import End
from drift_cli.store.manifest import CellPlan
from drift_cli.store.paths import Store
from drift_cli.store.run import Run
from drift_cli.workers import cells as cells_module
from drift_cli.workers import progress as progress_module
from drift_cli.workers.cells import WINDOW, CellStatus, Pace
from drift_cli.workers.leases import Presence, WorkerState
from drift_cli.workers.progress import Status, Watch, WorkerStatus

SECOND = Rollout(CELL, 1)
COMMAND = [sys.executable, "-m", "drift_cli", "runs", "watch"]


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("early", [End(Finish.CONTEXT, 3, 99), End(Finish.TEMPLATE, 3, None)])
def test_counts_follow_what_is_committed(tmp_path: Path, early: End) -> None:
    run = make_run(tmp_path)
    watch = Watch(run.paths)
    status = watch.look()
    assert (status.turns, status.total, status.ended, status.quiet) == (0, 4 * TURNS, False, None)
    with open_log(run) as log:
        log.append(turn(1))
        log.append(turn(2))
        status = watch.look()
        assert (status.turns, status.cells[0].begun, status.cells[0].held) == (2, 1, 1)
        assert status.workers[0].name == f"process {os.getpid()}"
        log.end(early)
    finish(run, SECOND)
    status = watch.look()
    assert (status.cells[0].ended, status.cells[0].complete, status.cells[0].held) == (2, 1, 0)
    assert (status.turns, status.settled) == (2 + TURNS, 2 * TURNS)
    for sample in range(2):
        finish(run, Rollout(OTHER, sample))
    status = watch.look()
    assert status.ended
    assert status.settled == status.total


def test_only_what_has_changed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    finish(run)
    read: list[str] = []
    before = cells_module.state_of
    monkeypatch.setattr(cells_module, "state_of", lambda fd, path: read.append(path.name) or before(fd, path))
    with open_log(run, SECOND) as log:
        log.append(turn(1, SECOND))
        watch = Watch(run.paths)
        watch.look()
        assert sorted(read) == ["0000.jsonl", "0001.jsonl"]
        watch.look()
        assert len(read) == 2
        log.append(turn(2, SECOND))
        assert watch.look().turns == TURNS + 2
        assert read[2:] == ["0001.jsonl"]


def test_many_cells_at_a_time_are_counted_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    finish(run)
    finish(run, Rollout(OTHER, 1))
    expected = Watch(run.paths).look().cells
    monkeypatch.setattr(cells_module, "_PATIENCE", -1.0)
    monkeypatch.setattr(cells_module.time, "thread_time", lambda: 0.0)
    assert Watch(run.paths).look().cells == expected


def test_damage_is_counted_and_hides_no_other(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    finish(run, SECOND)
    path = run.paths.rollout(FIRST)
    path.write_bytes(path.read_bytes()[:-9] + b"xxxxxxxx\n")
    status = Watch(run.paths).look()
    assert (status.cells[0].damaged, status.cells[0].ended) == (1, 1)
    assert str(path) in status.problems[0]
    assert "1 rollout damaged" in summary(status)
    assert "verify" in str(tables(status, 80)[-1])


def test_a_run_may_grow_while_it_is_watched(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    watch = Watch(run.paths)
    watch.look()
    more = Cell("talk", "later", 0.5)
    conditions = {**run.manifest.conditions, "later": Condition("later")}
    changed = {"cells": (CellPlan(CELL, 5), CellPlan(OTHER, 2), CellPlan(more, 1)), "conditions": conditions}
    elsewhere = Run.open(Store(tmp_path / "checkpoints"), run.paths.run_id)
    elsewhere.update(type(run.manifest)(**{**vars(run.manifest), **changed}))
    status = watch.look()
    assert [count.planned for count in status.cells] == [5, 2, 1]
    assert status.turns == TURNS


def test_watching_writes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with open_log(run) as log, Presence(run.paths, "w1"):
        log.append(turn(1))
        before = _files(tmp_path)
        watch = Watch(run.paths)
        watch.look()
        watch.look()
        assert _files(tmp_path) == before


def test_a_rate_is_turns_between_looks_while_somebody_works() -> None:
    pace = Pace()
    assert pace.rate(0.0, 100, working=True) is None
    assert pace.rate(1.0, 100, working=True) is None
    assert pace.rate(20.0, 140, working=True) == 2.0
    assert pace.rate(25.0, 140, working=False) is None
    assert pace.rate(100.0, 150, working=True) is None
    assert pace.rate(110.0, 160, working=True) == 1.0
    for step in range(1000):
        rate = pace.rate(110.0 + step * 10, 160 + step * 30, working=True)
    assert rate == pytest.approx(3.0)
    assert pace.seen[-1][0] - pace.seen[0][0] <= WINDOW + 30


def test_time_left_is_what_remains_at_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    watch = Watch(run.paths)
    with open_log(run) as log:
        log.append(turn(1))
        assert watch.look().rate is None
        log.append(turn(2))
        log.append(turn(3))
        now[0] += 20
        status = watch.look()
    assert status.rate == pytest.approx(0.1)
    assert status.left == pytest.approx((4 * TURNS - 3) / 0.1)
    assert status.cells[0].left == pytest.approx((2 * TURNS - 3) / 0.1)
    assert status.cells[1].left is None
    assert status.quiet == 0.0
    now[0] += 30
    assert watch.look().quiet == 30.0


def test_workers_are_shown_with_what_they_say_and_what_they_hold(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with Presence(run.paths, "w1") as presence:
        presence.now(turns=7, held=3)
        presence.now(WorkerState.WORKING)
        with open_log(run):  # this process's notes are the worker's: it is listed once
            (worker,) = Watch(run.paths).look().workers
        assert (worker.name, worker.state, worker.lost, worker.left, worker.turns, worker.held) == ("w1", "working", False, False, 7, 3)
    status = Watch(run.paths).look()
    assert (status.workers[0].left, status.working) == (True, 0)
    assert "nobody works on it" in summary(status)


def test_a_worker_that_was_killed_is_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    def work(say, listen) -> None:  # type: ignore[no-untyped-def]
        with Presence(run.paths, "w1") as presence:
            presence.now(WorkerState.WORKING)
            say(b"!")
            listen()

    child = fork(work)
    assert child.said() == b"!"
    watch = Watch(run.paths)
    assert not watch.look().workers[0].lost
    child.kill()
    child.wait()
    deadline = time.monotonic() + 10
    while not (status := watch.look()).workers[0].lost and time.monotonic() < deadline:
        pass
    assert (status.workers[0].state, status.working) == ("lost", 0)
    assert "(1 lost)" in summary(status)


def test_the_note_of_a_dead_process_says_that_it_is_gone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    child = fork(lambda say, listen: (open_log(run).append(turn(1)), say(b"!"), listen()))
    assert child.said() == b"!"
    assert Watch(run.paths).look().workers[0].state == "writing"
    child.kill()
    child.wait()
    (worker,) = Watch(run.paths).look().workers
    assert (worker.state, worker.lost, worker.held) == ("gone", True, 1)


@pytest.mark.parametrize(("pid", "gone"), [(0, True), (-5, True), (1 << 40, True), (None, False)])
def test_numbers_that_are_no_process_are_gone(pid: int | None, gone: bool) -> None:
    import socket

    pid = os.getpid() if pid is None else pid
    assert Owner(socket.gethostname(), pid, "").gone is gone
    assert not Owner("elsewhere", pid, "").gone


def test_files_of_workers_may_hold_anything(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with Presence(run.paths, "w1"):
        said = json.loads(run.paths.worker("w1").read_text())
    run.paths.worker("w2").write_text(json.dumps({**said, "id": "w2", "state": "working", "host": "\x1b]0;owned\x07[bold]"}))
    run.paths.worker("w3").write_bytes(b"\x00" * 50)
    run.paths.worker("w4").symlink_to("/etc/passwd")
    done = drift("runs", "watch", "--once")
    assert "\x1b" not in done.out
    assert "[bold]" in done.out
    assert "w3" not in done.out


def _status(cells: int) -> Status:
    def cell(number: int) -> CellStatus:
        done = (64 if number < 40 else 7 if number < 43 else 0) * 18
        name = Cell("a-transcript-with-a-long-name", f"condition-{number:03d}", 0.5)
        return CellStatus(name, 64, min(64, done), done // 18, done // 18, 0, 0, done, done, 64 * 18, 57 * 18 / 12345)

    workers = tuple(WorkerStatus(f"w{n}", f"a-long-host-name-{n:03d}", "working", n == 3, False, 12.0, 99, 0.5, 48) for n in range(30))
    return Status("demo-12345678", tuple(cell(n) for n in range(cells)), workers, 3.0, 2.0, ())


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (140, 40)])
def test_a_terminal_shows_what_is_in_progress_and_never_more_than_fits(
    columns: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(Display(Mode.RICH))
    screen._console = Console(width=columns, height=lines, force_terminal=True, color_system=None)
    screen._view = lambda width, height: tables(_status(100), width, height)
    screen._console.print(screen._drawn())
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= lines
    assert max(map(len, shown)) <= columns
    assert any("and" in line and "cells more" in line and "done" in line for line in shown)
    assert any("3 h 25 min" in line for line in shown)  # what is known of a cell is not cut; its name is
    assert any("/condition-042/T0.5 " in line for line in shown)
    assert any("w0" in line and "30 turns/min" in line for line in shown)


def test_everything_is_shown_where_there_is_room() -> None:
    shown = tables(_status(100), 200)
    assert len(shown[3].rows) == 100  # type: ignore[union-attr]
    assert len(shown[5].rows) == 30  # type: ignore[union-attr]


@pytest.mark.parametrize(("rate", "text"), [(7.66, "7.7 turns/s"), (0.2, "12 turns/min"), (0.001, "3.6 turns/h"), (None, ""), (0.0, "")])
def test_rates_have_a_digit_before_the_point(rate: float | None, text: str) -> None:
    assert rate_of(rate) == text


def test_a_complete_run_is_said_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for cell in (CELL, OTHER):
        for sample in range(2):
            finish(run, Rollout(cell, sample))
    done = drift("runs", "watch")
    assert done.out.splitlines() == [done.out.strip()]
    assert done.out.endswith("16/16 turns, complete, last turn 0 s ago\n") or "16/16 turns, complete" in done.out
    found = drift("runs", "watch", "--once", "--json").json
    assert (found["ended"], found["turns"], len(found["cells"])) == (True, 16, 2)
    assert drift("runs", "watch", "nothing", code=2).err
    assert drift("runs", "watch", "--every", "0", code=2).err


def test_in_a_pipe_it_writes_whole_lines_until_it_is_interrupted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with subprocess.Popen([*COMMAND, "--json", "--every", "0.1"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["turns"] == 0
        with open_log(run) as log:
            log.append(turn(1))
            while json.loads(process.stdout.readline())["turns"] == 0:
                pass
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait() == 0
    assert all(json.loads(line) for line in rest.splitlines())


def test_it_ends_when_nobody_reads_any_more(tmp_path: Path) -> None:
    make_run(tmp_path)
    with subprocess.Popen([*COMMAND, "--every", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "0/16 turns, nobody works on it" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_it_draws_in_place_and_leaves_the_last_state(tmp_path: Path, number: signal.Signals) -> None:
    make_run(tmp_path)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--every", "0.1"], stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    while b"talk/kind/T0.5" not in shown:
        shown += os.read(ours, 65536)
    assert b"\x1b[?1049h" in shown
    process.send_signal(number)
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # what a terminal says when its last program has gone
            break
    os.close(ours)
    assert process.wait() == 0
    after = shown.rpartition(b"\x1b[?1049l")[2]
    assert b"talk/kind/T0.5" in after
    assert b"Traceback" not in after
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
