"""Nothing acknowledged is lost: kills, full disks, failing syncs and short writes at every call of a small run."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_fixtures import DONE, FIRST, TURNS, data_of, finish, fork, make_run, manifest, open_log, turn, uninterrupted

from drift_cli.errors import StoreError
from drift_cli.files import atomic_write, create_folder
from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store.log import End, read_rollout
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

CALLS = ("open", "mkdir", "write", "fsync", "ftruncate", "replace", "rename", "fstat", "lstat", "pread")


@contextmanager
def faults(before: Callable[[str, tuple[Any, ...]], None], calls: tuple[str, ...] = CALLS) -> Iterator[None]:
    """Call `before(name, arguments)` ahead of every one of these calls of the store."""
    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, _wrapped(name, getattr(os, name), before))
        yield


def _wrapped(name: str, real: Callable[..., Any], before: Callable[[str, tuple[Any, ...]], None]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        before(name, arguments)
        return real(*arguments, **options)

    return call


def committed(run: Run) -> int:
    return len(read_rollout(run.paths, FIRST, layers=2, width=3, residuals=True).turns)


def session(folder: Path, acknowledge: Callable[[int], object]) -> None:
    """A process's whole work on a run: make it, write a rollout, record an event."""
    run = Run.create(Store(folder / "checkpoints"), manifest())
    finish(run, acknowledge=acknowledge)
    run.event("done", turns=TURNS)


def check_and_go_on(folder: Path, acknowledged: int, expected: tuple[bytes, bytes]) -> None:
    """What was acknowledged is there; the same work again ends in the same bytes."""
    store = Store(folder / "checkpoints")
    if store.run_ids():
        assert committed(Run.newest(store)) >= acknowledged
    else:
        assert acknowledged == 0
    session(folder, lambda index: None)
    run = Run.newest(store)
    assert data_of(run) == expected
    assert [finding for finding in run.verify() if finding.fatal and "axes" not in finding.file.parts] == []
    assert run.events()[-1]["turns"] == TURNS


# --- kills


@pytest.mark.parametrize("half", [False, True], ids=["before the call", "in the middle of a write"])
def test_killed_at_every_call_nothing_acknowledged_is_lost(tmp_path: Path, half: bool) -> None:
    expected = uninterrupted(tmp_path)
    calls = ("write",) if half else ("open", "mkdir", "write", "fsync", "ftruncate", "replace", "rename")
    killed = 0
    for number in range(1, 1000):
        folder = tmp_path / str(number)

        reader, said = os.pipe()

        def work(say: Any, listen: Any, number: int = number, folder: Path = folder, said: int = said) -> None:
            count, real = 0, os.write

            def before(name: str, arguments: tuple[Any, ...]) -> None:
                nonlocal count
                count += 1
                if count == number:
                    if half:
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)

            with faults(before, calls):
                session(folder, lambda index: real(said, b"x"))

        child = fork(work)
        os.close(said)
        status = child.wait()
        with os.fdopen(reader, "rb") as pipe:
            acknowledged = len(pipe.read())
        check_and_go_on(folder, acknowledged, expected)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        killed += 1
    assert killed > (TURNS + 5 if half else 30)


def test_killed_at_random_instants_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path)
    chance = random.Random(7)
    for trial in range(40):
        run = make_run(tmp_path / str(trial))
        acknowledged = 0
        child = fork(lambda say, listen, run=run: finish(run, acknowledge=lambda index: say(b"x")))
        for _ in range(chance.randrange(TURNS)):
            acknowledged += len(child.said())
        until = time.perf_counter() + chance.random() * 0.002
        while time.perf_counter() < until:
            pass
        child.kill()
        while child.said():
            acknowledged += 1
        child.wait()
        done = committed(run)
        assert acknowledged <= done <= acknowledged + 1
        finish(run)
        assert data_of(run) == expected


def test_a_rollout_killed_again_and_again_ends_in_the_same_bytes(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path)
    run = make_run(tmp_path)
    for _ in range(TURNS):
        child = fork(lambda say, listen: finish(run, acknowledge=lambda index: (say(b"x"), listen())))
        child.said()
        child.kill()
        child.wait()
    assert committed(run) == TURNS
    finish(run)
    assert data_of(run) == expected


# --- errors


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_an_error_at_every_call_is_reported_and_loses_nothing(tmp_path: Path, lasting: bool) -> None:
    expected = uninterrupted(tmp_path)
    failures = 0
    for place in range(1, 1000):
        folder, count, acknowledged = tmp_path / str(place), 0, []

        def before(name: str, arguments: tuple[Any, ...], place: int = place) -> None:
            nonlocal count
            count += 1
            if count == place or (lasting and count > place):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        problem = None
        with faults(before):
            try:
                session(folder, acknowledged.append)
            except StoreError as error:
                problem = error.what
        assert problem is None or str(tmp_path) in problem
        check_and_go_on(folder, len(acknowledged), expected)
        if count < place:
            break
        failures += problem is not None
    assert place > 100
    assert failures > place - 12  # the others are attempts to tidy up, whose failure costs nothing


def fail_once(monkeypatch: pytest.MonkeyPatch, call: str, path: Path, error: int, *, after: int = 0) -> list[int]:
    """Let one call on `path` fail after writing `after` bytes. Returns a list that grows with each call on it."""
    real, seen = getattr(os, call), []

    def failing(fd: int, *arguments: Any) -> Any:
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            seen.append(fd)
            if len(seen) == 1 + bool(after):
                raise OSError(error, os.strerror(error))
            if after and len(seen) == 1:
                return real(fd, arguments[0][:after])
        return real(fd, *arguments)

    monkeypatch.setattr(os, call, failing)
    return seen


@pytest.mark.parametrize("kind", ["rollout", "residuals"])
@pytest.mark.parametrize("after", [0, 7])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_is_taken_back_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, after: int, error: int
) -> None:
    expected = uninterrupted(tmp_path)
    run = make_run(tmp_path)
    path = getattr(run.paths, kind)(FIRST)
    with open_log(run) as log:
        log.append(turn(1))
        before = data_of(run)
        with monkeypatch.context() as patched:
            calls = fail_once(patched, "write", path, error, after=after)
            with pytest.raises(StoreError) as caught:
                log.append(second_with_means())
            assert calls
        assert str(path) in caught.value.what
        assert {errno.ENOSPC: "Free some space", errno.EDQUOT: "quota", errno.EIO: "reports an error"}[error] in str(caught.value.mend)
        assert data_of(run) == before
        for index in range(2, TURNS + 1):  # there is space again
            log.append(turn(index))
        log.end(DONE)
    assert data_of(run) == expected


def second_with_means() -> Turn:
    return replace(turn(3), index=2)


def test_a_write_that_cannot_be_taken_back_ends_the_log_and_is_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = uninterrupted(tmp_path)
    run = make_run(tmp_path)
    path = run.paths.rollout(FIRST)

    def no(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "no")

    with open_log(run) as log:
        log.append(turn(1))
        before = data_of(run)[0]
        with monkeypatch.context() as patched:
            fail_once(patched, "write", path, errno.ENOSPC, after=7)
            patched.setattr(os, "ftruncate", no)
            with pytest.raises(StoreError, match="No space left"):
                log.append(turn(2))
        with pytest.raises(StoreError, match="could not be taken back"):
            log.append(turn(2))
    assert path.read_bytes() == before + b'{"turn"'
    assert committed(run) == 1
    finish(run)
    assert data_of(run) == expected


def test_bytes_of_another_writer_are_not_taken_back_with_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    path = run.paths.rollout(FIRST)

    def race(fd: int, data: Any) -> int:
        with path.open("ab") as file:
            file.write(b"somebody else's")
        raise OSError(errno.ENOSPC, "full")

    with open_log(run) as log:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", race)
            with pytest.raises(StoreError):
                log.append(replace(turn(1), residual=None))
        with pytest.raises(StoreError, match="could not be taken back"):
            log.append(replace(turn(1), residual=None))
    assert path.read_bytes() == b"somebody else's"


def test_a_limit_on_file_sizes_is_met_like_a_full_disk(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path)
    run = make_run(tmp_path)
    with open_log(run) as log:
        log.append(turn(1))
    before = data_of(run)

    def write_beyond(say: Any, listen: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) + 20, resource.RLIM_INFINITY))
        with open_log(run) as log:
            for _ in range(2):
                with pytest.raises(StoreError, match="File too large") as caught:
                    log.append(turn(2))
                assert str(run.paths.rollout(FIRST)) in caught.value.what
                assert "ulimit -f" in str(caught.value.mend)
                assert data_of(run) == before

    assert fork(write_beyond).wait() == 0
    assert data_of(run) == before
    finish(run)
    assert data_of(run) == expected


@pytest.mark.parametrize("kind", ["rollout", "residuals"])
def test_a_failed_fsync_is_never_tried_again_and_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    expected = uninterrupted(tmp_path)
    run = make_run(tmp_path)
    path = getattr(run.paths, kind)(FIRST)
    with open_log(run) as log:
        log.append(turn(1))
        before = data_of(run)
        calls = fail_once(monkeypatch, "fsync", path, errno.EIO)
        with pytest.raises(StoreError) as caught:
            log.append(second_with_means())
        assert str(path) in caught.value.what
        for again in (lambda: log.append(second_with_means()), lambda: log.append(turn(2)), lambda: log.end(End(Finish.COMPLETE, 1, None))):
            with pytest.raises(StoreError, match=f"{path} cannot be written any more: an earlier fsync"):
                again()
        assert len(calls) == 1
        assert data_of(run) == before  # what the disk may not have is not left to be read from memory
    assert len(calls) == 1
    monkeypatch.undo()
    finish(run)
    assert data_of(run) == expected


def test_residuals_are_on_disk_before_their_line_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    names = {}
    order: list[tuple[str, str]] = []

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        facts = fstat(arguments[0])
        order.append((name, names.get((facts.st_dev, facts.st_ino), "other")))

    fstat = os.fstat
    with open_log(run) as log:
        for kind in ("rollout", "residuals"):
            facts = getattr(run.paths, kind)(FIRST).stat()
            names[facts.st_dev, facts.st_ino] = kind
        with faults(before, ("write", "fsync")):
            log.append(turn(1))
    assert order == [("write", "residuals"), ("fsync", "residuals"), ("write", "rollout"), ("fsync", "rollout")]


def test_a_new_files_name_is_made_durable_up_to_the_store(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    synced = set()

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        synced.add(os.fstat(arguments[0]).st_ino)

    with faults(before, ("fsync",)), open_log(run):
        pass
    folder = run.paths.rollout(FIRST).parent
    wanted = [folder, *folder.parents]
    wanted = wanted[: wanted.index(run.paths.root.parent) + 1]
    assert {path.stat().st_ino for path in wanted} <= synced


def test_whole_lines_that_a_killed_process_left_unsynced_are_synced_before_they_count(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finish(run)
    synced = set()

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        synced.add(os.fstat(arguments[0]).st_ino)

    with faults(before, ("fsync",)), open_log(run):
        pass
    assert {run.paths.rollout(FIRST).stat().st_ino, run.paths.residuals(FIRST).stat().st_ino} <= synced


@pytest.mark.parametrize("most", [1, 7])
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    expected = uninterrupted(tmp_path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:most]))
    run = make_run(tmp_path)
    finish(run)
    assert data_of(run) == expected
    assert Run.open(Store(run.paths.root.parent), run.paths.run_id).manifest == run.manifest


def test_an_append_that_is_interrupted_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = uninterrupted(tmp_path)
    run = make_run(tmp_path)

    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    with open_log(run) as log:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                log.append(turn(1))
        with pytest.raises(StoreError, match="interrupted"):
            log.append(turn(1))
    finish(run)
    assert data_of(run) == expected


# --- whole files


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path, call: str) -> None:
    path = tmp_path / "run.json"
    atomic_write(path, b"old")

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        raise OSError(errno.ENOSPC, "full")

    with faults(before, (call,)), pytest.raises(StoreError) as caught:
        atomic_write(path, b"new")
    assert str(path) in caught.value.what
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["run.json"]


def test_a_file_is_synced_before_it_is_renamed_and_its_name_after(tmp_path: Path) -> None:
    order, folder = [], tmp_path.stat().st_ino

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        named = name == "fsync" and os.fstat(arguments[0]).st_ino == folder
        order.append("fsync of the folder" if named else name)

    with faults(before, ("write", "fsync", "replace")):
        atomic_write(tmp_path / "run.json", b"new")
    assert order == ["write", "fsync", "replace", "fsync of the folder"]


def test_every_folder_that_is_made_is_durable_in_the_one_above(tmp_path: Path) -> None:
    synced = []

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        synced.append(os.fstat(arguments[0]).st_ino)

    with faults(before, ("fsync",)):
        create_folder(tmp_path / "a" / "b" / "c")
        create_folder(tmp_path / "a" / "b" / "c")
    assert synced == [path.stat().st_ino for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_no_obstacle(tmp_path: Path, number: int) -> None:
    def before(name: str, arguments: tuple[Any, ...]) -> None:
        if stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
            raise OSError(number, os.strerror(number))

    with faults(before, ("fsync",)):
        run = make_run(tmp_path)
        finish(run)
    assert committed(run) == TURNS


def test_a_read_only_store_can_be_read_and_says_so_when_written(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with open_log(run) as log:
        log.append(turn(1))
    before = data_of(run)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def read_only(name: str, arguments: tuple[Any, ...]) -> None:
        if name != "open" or arguments[1] & writing:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with faults(read_only, ("open", "mkdir", "write", "ftruncate")):
        reopened = Run.newest(Store(run.paths.root.parent))
        assert [state.done for state in reopened.states()] == [1, 0, 0, 0]
        assert len(reopened.record(FIRST, residuals=True).turns) == 1
        assert reopened.verify() == []
        for attempt in (
            lambda: reopened.writer(FIRST),
            lambda: reopened.writer(Rollout(FIRST.cell, 1)),
            lambda: reopened.event("start"),
            lambda: reopened.update(reopened.manifest),
        ):
            with pytest.raises(StoreError, match="Read-only") as caught:
                attempt()
            assert "--store" in str(caught.value.mend)
    assert data_of(run) == before
