"""A repair sets damage aside in a named file, keeps what stands before it, deletes nothing, and says what was lost."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import drift
from store_fixtures import FIRST, OTHER, TURNS, data_of, finish, fork, make_run, open_log, uninterrupted

from drift_cli.errors import StoreError
from drift_cli.spec import Rollout
from drift_cli.store import repair as repairs
from drift_cli.store.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = make_run(tmp_path)
    finish(made)
    return made


def quarantined(run: Run) -> dict[str, bytes]:
    files = run.paths.quarantine.rglob("*")
    return {str(path.relative_to(run.paths.quarantine)): path.read_bytes() for path in files if path.is_file()}


def fatal(run: Run) -> list[str]:
    return [finding.problem for finding in run.verify() if finding.fatal]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_nothing_is_set_aside_of_a_whole_run(run: Run) -> None:
    before = data_of(run)
    assert run.repair() == ([], [])
    assert data_of(run) == before
    assert not run.paths.quarantine.exists()


@pytest.mark.parametrize("line", range(1, TURNS + 2))
def test_a_damaged_line_and_what_follows_it_is_set_aside_and_made_again(run: Run, tmp_path: Path, line: int) -> None:
    path = run.paths.rollout(FIRST)
    lines, means = path.read_bytes().splitlines(keepends=True), data_of(run)[1]
    flip(path, len(b"".join(lines[: line - 1])) + 5)
    harmed = path.read_bytes()
    [done], problems = run.repair()
    assert problems == []
    assert (done.rollout, done.kept, done.lines) == (FIRST, line - 1, TURNS + 2 - line)
    assert f"{path}: line {line} at byte" in done.problem
    kept = data_of(run)
    assert kept[0] == b"".join(lines[: line - 1])
    aside = {file.suffix: file.read_bytes() for file in done.files}
    assert kept[0] + aside[".jsonl"] == harmed
    assert kept[1] + aside.get(".f32", b"") == means
    assert all(file.is_relative_to(run.paths.quarantine) for file in done.files)
    assert fatal(run) == []
    finish(run)
    assert data_of(run) == uninterrupted(tmp_path)


@pytest.mark.parametrize("harm", [lambda path: flip(path, 30), lambda path: path.unlink(), lambda path: os.truncate(path, 40)])
def test_turns_whose_residual_means_are_damaged_are_set_aside_with_them(run: Run, tmp_path: Path, harm: Callable[[Path], Any]) -> None:
    before = data_of(run)
    harm(run.paths.residuals(FIRST))
    [done], _ = run.repair()
    assert done.kept == (2 if run.paths.residuals(FIRST).exists() else 0)
    assert before[0].startswith(run.paths.rollout(FIRST).read_bytes())
    assert fatal(run) == []
    finish(run)
    assert data_of(run) == uninterrupted(tmp_path)


def test_residual_means_without_lines_are_set_aside(run: Run, tmp_path: Path) -> None:
    means = data_of(run)[1]
    run.paths.rollout(FIRST).unlink()
    [done], _ = run.repair()
    assert "missing" in done.problem
    assert list(quarantined(run).values()) == [means]
    assert fatal(run) == []
    finish(run)
    assert data_of(run) == uninterrupted(tmp_path)


def test_an_unfinished_tail_is_no_damage(run: Run) -> None:
    path = run.paths.rollout(FIRST)
    path.write_bytes(path.read_bytes()[:-3])
    assert run.repair() == ([], [])


def test_a_rollout_that_is_being_written_is_not_repaired_and_hides_no_other(run: Run) -> None:
    other = Rollout(OTHER, 0)
    finish(run, other)
    for rollout in (FIRST, other):
        flip(run.paths.rollout(rollout), 5)
    with run.paths.rollout(FIRST).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        [done], [problem] = run.repair()
    assert done.rollout == other
    assert str(FIRST) in problem
    assert "is being written by" in problem


def test_a_link_in_a_damaged_rollouts_place_is_not_followed(run: Run, tmp_path: Path) -> None:
    path, outside = run.paths.rollout(FIRST), tmp_path / "outside"
    path.rename(outside)
    flip(outside, 5)
    before = outside.read_bytes()
    path.symlink_to(outside)
    done, [problem] = run.repair()
    assert done == []
    assert "symbolic link" in problem
    assert outside.read_bytes() == before


def test_a_link_in_the_quarantines_place_is_not_followed(run: Run, tmp_path: Path) -> None:
    flip(run.paths.rollout(FIRST), 5)
    before = data_of(run)
    (tmp_path / "outside").mkdir()
    run.paths.quarantine.symlink_to(tmp_path / "outside")
    done, [problem] = run.repair()
    assert done == []
    assert "symbolic link" in problem
    assert data_of(run) == before
    assert list((tmp_path / "outside").iterdir()) == []


def test_what_cannot_be_written_elsewhere_is_not_cut_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(run.paths.rollout(FIRST), 5)
    before = data_of(run)

    def full(path: Path, parts: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(repairs, "atomic_write_parts", full)
    done, [problem] = run.repair()
    assert done == []
    assert "no space" in problem
    assert data_of(run) == before


def deadly(real: Callable[..., Any], counter: Iterator[int], number: int) -> Callable[..., Any]:
    """A call that kills the process when the counter comes to `number`."""

    def call(*arguments: Any, **options: Any) -> Any:
        if next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    return call


def test_a_repair_killed_at_every_call_loses_no_byte(tmp_path: Path) -> None:
    expected, killed = uninterrupted(tmp_path), 0
    for number in range(1, 500):
        run = make_run(tmp_path / str(number))
        finish(run)
        flip(run.paths.rollout(FIRST), len(run.paths.rollout(FIRST).read_bytes()) // 2)
        lines, means = data_of(run)

        def work(say: Any, listen: Any, run: Run = run, number: int = number) -> None:
            counter = itertools.count(1)
            for name in ("open", "mkdir", "write", "fsync", "ftruncate", "replace"):
                setattr(os, name, deadly(getattr(os, name), counter, number))
            run.repair()

        status = fork(work).wait()
        run.repair()
        kept, aside = data_of(run), quarantined(run)
        assert any(kept[0] + data == lines for name, data in aside.items() if name.endswith(".jsonl"))
        assert any(kept[1] + data == means for name, data in aside.items() if name.endswith(".f32"))
        assert fatal(run) == []
        finish(run)
        assert data_of(run) == expected
        killed += status != 0
        if status == 0:
            break
    assert killed > 20


def test_the_command_says_what_was_wrong_what_was_kept_and_how_to_go_on(run: Run) -> None:
    store = str(run.paths.root.parent)
    path = run.paths.rollout(FIRST)
    flip(path, len(path.read_bytes()) // 2)
    damaged = drift("runs", "verify", "--store", store, code=1)
    assert "--repair" in damaged.out
    assert not run.paths.quarantine.exists()
    mended = drift("runs", "verify", "--repair", "--store", store, code=0)
    for part in ("line 3 at byte", "turns 1 to 2 kept", "3 lines", "quarantine/talk/plain/T0.5/0000", f"drift resume {run.paths.run_id}"):
        assert part in mended.out, part
    assert run.events()[-1]["kind"] == "repaired"
    assert run.events()[-1]["lines"] == 3
    again = drift("runs", "verify", "--repair", "--json", "--store", store).json
    assert again["repairs"] == []
    assert again["ok"]
    assert any("set aside by a repair" in finding["problem"] for finding in again["findings"])


def test_a_damaged_rollout_names_the_repair(run: Run) -> None:
    flip(run.paths.rollout(FIRST), 5)
    with pytest.raises(StoreError, match=f"drift runs verify {run.paths.run_id}.*--repair"):
        open_log(run)
