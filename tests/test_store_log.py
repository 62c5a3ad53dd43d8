"""One rollout's file: what is appended is read back, nothing else is taken for it, and one process writes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import zlib
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from store_fixtures import CELL, DONE, FIRST, LAYERS, OTHER, TURNS, WIDTH, data_of, finish, fork, make_run, open_log, turn

from drift_cli.errors import StoreError
from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store.line import EndLine, TurnLine, encode, first_link, link
from drift_cli.store.log import Damaged, End, InUse, RolloutLog, read_residual_layer, read_rollout, tail_state
from drift_cli.store.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


def read(run: Run, rollout: Rollout = FIRST, **options: Any) -> Any:
    return read_rollout(run.paths, rollout, layers=len(LAYERS), width=WIDTH, **options)


def test_what_is_appended_is_read_back(run: Run) -> None:
    finish(run)
    record = read(run, residuals=True)
    assert [replace(t, residual=None) for t in record.turns] == [replace(turn(i), residual=None) for i in range(1, TURNS + 1)]
    for index, found in enumerate(record.turns, 1):
        expected = turn(index).residual
        assert (found.residual is None) == (expected is None)
        if expected is not None:
            np.testing.assert_array_equal(found.residual, expected)
            assert found.residual.dtype == np.float32
    assert (record.end, record.epochs, record.notices) == (DONE, (0,) * TURNS, ())
    assert read(run).turns[0].residual is None


def test_a_rollout_that_was_not_begun_has_no_turns(run: Run) -> None:
    record = read(run, residuals=True)
    assert (record.turns, record.end, record.notices) == ((), None, ())
    assert tail_state(run.paths, FIRST) == (0, None)
    assert read_residual_layer(run.paths, FIRST, 0, 2, WIDTH).shape == (0, WIDTH)
    assert not run.paths.rollout(FIRST).exists()


def test_one_layer_of_the_residuals_is_read_alone(run: Run) -> None:
    finish(run)
    for row in range(len(LAYERS)):
        found = read_residual_layer(run.paths, FIRST, row, len(LAYERS), WIDTH)
        assert found.shape == (TURNS, WIDTH)
        assert np.isnan(found[1]).all()  # the turn without residual means
        for index in (1, 3, 4):
            residual = turn(index).residual
            assert residual is not None
            np.testing.assert_array_equal(found[index - 1], residual[row])
    with pytest.raises(StoreError, match="no row 2"):
        read_residual_layer(run.paths, FIRST, 2, len(LAYERS), WIDTH)


def test_lines_are_chained_from_the_rollouts_place_and_sealed(run: Run) -> None:
    finish(run)
    lines, residuals = data_of(run)
    before = f"drift-rollout-1\n{run.paths.run_id}\ntalk\nplain\nT0.5\n0".encode()
    for line in lines.splitlines():
        value = json.loads(line)
        assert value["prev"] == sha256(before).hexdigest()[:32]
        covered = line[: line.rindex(b',"crc"')]
        assert value["crc"] == f"{zlib.crc32(covered):08x}"
        before = line
    keys = ["turn", "finish", "text", "ids", "prompt_length", "prompt_hash", "residual", "projections", "epoch", "prev", "crc"]
    assert list(json.loads(lines.splitlines()[0])) == keys
    assert list(json.loads(lines.splitlines()[-1])) == ["end", "turn", "prompt_length", "epoch", "prev", "crc"]
    expected = [residual for i in (1, 3, 4) if (residual := turn(i).residual) is not None]
    assert residuals == np.stack(expected).astype("<f4").tobytes()


def test_what_is_not_known_is_stored_as_not_known(run: Run) -> None:
    with RolloutLog.open(run.paths, FIRST, epoch=0, layers=0, width=0) as log:
        log.append(Turn(1, "imported", Finish.STOP, projections={"seed": -0.0}))
    (found,) = read_rollout(run.paths, FIRST).turns
    assert found == Turn(1, "imported", Finish.STOP, projections={"seed": 0.0})
    assert not run.paths.residuals(FIRST).exists()


@pytest.mark.parametrize("end", [End(Finish.CONTEXT, 2, 99), End(Finish.TEMPLATE, 2, None)])
def test_a_rollout_may_end_before_a_turn(run: Run, end: End) -> None:
    with open_log(run) as log:
        log.append(turn(1))
        log.end(end)
    assert read(run).end == end
    assert tail_state(run.paths, FIRST) == (1, end)


def test_numpy_numbers_are_stored_as_plain_ones(run: Run) -> None:
    with open_log(run) as log:
        ids: Any = tuple(np.array([5, 6], dtype=np.int64))
        log.append(replace(turn(1), ids=ids, projections={"made": np.float64(0.1)}))
    found = read(run).turns[0]
    assert (found.ids, found.projections) == ((5, 6), {"made": 0.1})


def test_the_order_of_projections_does_not_change_a_byte(run: Run) -> None:
    for rollout, names in ((FIRST, "ab"), (Rollout(OTHER, 0), "ba")):
        with open_log(run, rollout) as log:
            log.append(replace(turn(1), projections=dict.fromkeys(names, 1.0)))
    first, second = (run.paths.rollout(r).read_bytes() for r in (FIRST, Rollout(OTHER, 0)))
    assert first[: first.index(b'"prev"')] == second[: second.index(b'"prev"')]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_numbers_are_refused_before_anything_is_written(run: Run, value: float) -> None:
    residual = np.zeros((2, WIDTH), dtype=np.float32)
    residual[1, 2] = value
    with open_log(run) as log:
        for bad, why in (
            (replace(turn(1), residual=residual), "not all finite"),
            (replace(turn(1), projections={"made": value}), f"projection on made is {value}"),
        ):
            with pytest.raises(StoreError, match=rf"talk/plain/T0\.5/0000 turn 1 cannot be stored: .*{why}"):
                log.append(bad)
        assert data_of(run) == (b"", b"")
        log.append(turn(1))  # nothing was written, so nothing is lost


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"text": "\ud800"}, "surrogates"),
        ({"residual": np.zeros((3, WIDTH), dtype=np.float32)}, "shape"),
        ({"residual": np.zeros((2, WIDTH + 1), dtype=np.float32)}, "shape"),
        ({"residual": np.zeros((2, WIDTH), dtype=np.float64)}, "float64, not float32"),
        ({"residual": np.zeros((2, WIDTH), dtype=np.int32)}, "int32, not float32"),
        ({"ids": (1, -1)}, "ids"),
        ({"ids": (2**31,)}, "ids"),
        ({"ids": (1.5,)}, "interpreted as an integer"),
        ({"finish": Finish.CONTEXT}, "finish"),
        ({"finish": Finish.COMPLETE}, "finish"),
        ({"prompt_length": -1}, "prompt_length"),
        ({"projections": {"\udfff": 1.0}}, "surrogates"),
        ({"text": "x" * (65 << 20)}, "limit"),
    ],
)
def test_what_cannot_be_stored_is_refused_naming_rollout_and_turn(run: Run, change: dict[str, Any], expected: str) -> None:
    with open_log(run) as log:
        log.append(turn(1))
        before = data_of(run)
        with pytest.raises(StoreError, match=expected) as caught:
            log.append(replace(turn(2), **change))
        assert "talk/plain/T0.5/0000 turn 2" in str(caught.value)
        assert data_of(run) == before


def test_residuals_are_refused_where_the_run_stores_none(run: Run) -> None:
    with RolloutLog.open(run.paths, FIRST, epoch=0, layers=0, width=0) as log, pytest.raises(StoreError, match="stores no layers"):
        log.append(turn(1))


def test_turns_come_in_order_and_nothing_follows_the_end(run: Run) -> None:
    with open_log(run) as log:
        with pytest.raises(StoreError, match="turn 2 cannot be the next"):
            log.append(turn(2))
        log.append(turn(1))
        for end in (End(Finish.COMPLETE, 2, None), End(Finish.CONTEXT, 1, 9), End(Finish.TEMPLATE, 1, None), End(Finish.STOP, 1, None)):
            with pytest.raises(StoreError, match="cannot be ended"):
                log.end(end)
        log.end(End(Finish.COMPLETE, 1, None))
        for again in (lambda: log.append(turn(2)), lambda: log.end(End(Finish.COMPLETE, 1, None))):
            with pytest.raises(StoreError, match="has ended"):
                again()
    with open_log(run) as log, pytest.raises(StoreError, match="has ended"):
        log.append(turn(2))


def test_a_closed_log_writes_nothing(run: Run) -> None:
    log = open_log(run)
    log.close()
    log.close()
    with pytest.raises(StoreError, match="closed"):
        log.append(turn(1))
    assert data_of(run) == (b"", b"")


# --- damage


def test_every_truncation_loses_at_most_the_unfinished_line_and_is_mended(run: Run) -> None:
    finish(run)
    lines, residuals = data_of(run)
    path = run.paths.rollout(FIRST)
    starts = [0, *(place + 1 for place, byte in enumerate(lines) if byte == 10)]
    for length in range(len(lines)):
        path.write_bytes(lines[:length])
        run.paths.residuals(FIRST).write_bytes(residuals)
        whole = sum(start <= length for start in starts) - 1
        record = read(run)
        assert len(record.turns) == whole
        assert tail_state(run.paths, FIRST) == (whole, None)
        assert (len(record.notices) == 0) == (length in starts)
        if length % 8 == 0 or length in starts:
            finish(run)
            assert data_of(run) == (lines, residuals)


def test_every_byte_of_the_lines_is_guarded(run: Run) -> None:
    finish(run)
    lines, _ = data_of(run)
    path = run.paths.rollout(FIRST)
    for place in range(len(lines) - 1):
        for bit in {place % 8, 5}:  # bit 5 is upper and lower case
            changed = bytearray(lines)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(Damaged) as caught:
                read(run)
            number = lines.count(b"\n", 0, place) + 1
            assert (caught.value.line, caught.value.offset) == (number, lines.rfind(b"\n", 0, place) + 1)


def test_damage_names_file_line_and_byte_and_stops_writer_and_reader(run: Run) -> None:
    finish(run)
    path = run.paths.rollout(FIRST)
    lines = path.read_bytes()
    second = lines.index(b"\n") + 1
    path.write_bytes(lines.replace(b"reply 2", b"reply 9"))
    before = data_of(run)
    for attempt in (lambda: read(run), lambda: open_log(run), lambda: run.record(FIRST), lambda: run.writer(FIRST)):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert f"{path}: line 2 at byte {second}:" in caught.value.what
        assert f"drift runs verify {run.paths.run_id}" in str(caught.value.mend)
    assert data_of(run) == before


@pytest.mark.parametrize("bit", range(8))
def test_a_last_newline_that_changed_is_an_unfinished_line(run: Run, bit: int) -> None:
    finish(run)
    whole = data_of(run)
    run.paths.rollout(FIRST).write_bytes(whole[0][:-1] + bytes([10 ^ 1 << bit]))
    record = read(run)
    assert (len(record.turns), record.end, len(record.notices)) == (TURNS, None, 1)
    finish(run)
    assert data_of(run) == whole


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\0", b'{"turn":3', b"\xff\xfe", b"{" * 100_000])
def test_an_unfinished_tail_of_whatever_is_dropped_with_a_notice(run: Run, tail: bytes) -> None:
    with open_log(run) as log:
        log.append(turn(1))
    before = data_of(run)
    path = run.paths.rollout(FIRST)
    path.write_bytes(before[0] + tail)
    assert tail_state(run.paths, FIRST) == (1, None)
    record = read(run)
    assert len(record.turns) == 1
    (notice,) = record.notices
    assert str(path) in notice
    assert f"{len(tail)} bytes" in notice
    assert f"byte {len(before[0])}" in notice
    with open_log(run) as log:
        assert log.record.notices == record.notices
    assert data_of(run) == before


@pytest.mark.parametrize("extra", [b"\n", b"{}\n", b"\0\0\n", b"null\n", b"[" * 2000 + b"\n"])
def test_a_whole_line_that_is_none_of_ours_is_damage(run: Run, extra: bytes) -> None:
    finish(run)
    path = run.paths.rollout(FIRST)
    path.write_bytes(path.read_bytes() + extra)
    with pytest.raises(Damaged):
        read(run)
    with pytest.raises(Damaged) as caught:
        tail_state(run.paths, FIRST)
    assert caught.value.line == TURNS + 2


def resealed(line: bytes, edit: Any) -> bytes:
    """A line changed by somebody who can compute checksums."""
    covered = edit(line[: line.rindex(b',"crc"')])
    return covered + b',"crc":"%08x"}' % zlib.crc32(covered)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"turn":1,', b'{"turn":1,"turn":1,'),
        (b'{"turn":1,', b'{"turn":1.0,'),
        (b'{"turn":1,', b'{"turn":true,'),
        (b'{"turn":1,', b'{"turn":2,'),
        (b'{"turn":1,', b'{"turn":0,'),
        (b'{"turn":1,', b'{"turn":99999999999999999999999,'),
        (b'{"turn":1,', b'{"turn":1,"extra":1,'),
        (b'"finish":"stop"', b'"finish":"complete"'),
        (b'"finish":"stop"', b'"finish":[]'),
        (b'"ids":[5,6,1]', b'"ids":[5,6,true]'),
        (b'"ids":[5,6,1]', b'"ids":{}'),
        (b'"ids":[5,6,1]', b'"ids":[5,6,1e3]'),
        (b'"prompt_length":10', b'"prompt_length":-10'),
        (b'"epoch":0', b'"epoch":-1'),
        (b'"offset":0', b'"offset":24'),
        (b'"offset":0', b'"offset":0,"offset":0'),
        (b'"shape":[2,3]', b'"shape":[3,2]'),
        (b'"shape":[2,3]', b'"shape":[2,-3]'),
        (b'"made":', b'"made":1.0,"made":'),
        (b'"made":', b'"made":1e999,"more":'),
        (b'"made":', b'"made":1,"more":'),
        (b'"text":"reply', b'"text":"\\ud800 reply'),
        (b'"text":"', b'"text":null,"more":"'),
    ],
)
def test_lines_are_read_strictly_even_with_a_right_checksum(run: Run, old: bytes, new: bytes) -> None:
    with open_log(run) as log:
        log.append(turn(1))
    path = run.paths.rollout(FIRST)
    line = path.read_bytes()[:-1]
    assert line.count(old) == 1
    path.write_bytes(resealed(line, lambda covered: covered.replace(old, new)) + b"\n")
    with pytest.raises(Damaged):
        read(run)


def test_numbers_that_another_version_of_the_json_library_spells_otherwise_are_read(run: Run) -> None:
    with open_log(run) as log:
        log.append(replace(turn(1), residual=None, projections={"made": 1e16}))
    path = run.paths.rollout(FIRST)
    line = path.read_bytes()[:-1]
    spelled = orjson.dumps(1e16)
    path.write_bytes(resealed(line, lambda covered: covered.replace(spelled, b"10000000000000000.0")) + b"\n")
    assert read(run).turns[0].projections == {"made": 1e16}


def test_a_line_taken_out_put_twice_or_swapped_is_found(run: Run) -> None:
    finish(run)
    path = run.paths.rollout(FIRST)
    one, two, three, four, end = path.read_bytes().splitlines(keepends=True)
    for forged in ((one, three, four, end), (one, one, two), (one, three, two, four, end), (two, three, four, end), (one, two, end)):
        path.write_bytes(b"".join(forged))
        with pytest.raises(Damaged):
            read(run)


def test_a_line_whose_predecessor_was_rewritten_is_found(run: Run) -> None:
    finish(run)
    path = run.paths.rollout(FIRST)
    one, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(resealed(one[:-1], lambda covered: covered.replace(b"reply 1", b"reply 7")) + b"\n" + b"".join(others))
    with pytest.raises(Damaged, match="does not follow the line before it") as caught:
        read(run)
    assert caught.value.line == 2


def test_nothing_follows_the_end_even_in_the_chain(run: Run) -> None:
    finish(run)
    path = run.paths.rollout(FIRST)
    data = path.read_bytes()
    for content in (TurnLine(replace(turn(2), index=TURNS + 1), None, 0), EndLine(DONE, 0)):
        path.write_bytes(data + encode(content, link(data.splitlines()[-1])) + b"\n")
        with pytest.raises(Damaged, match="behind the rollout's end"):
            read(run)


def test_residuals_of_another_shape_than_the_runs_are_damage(run: Run) -> None:
    finish(run)
    for layers, width in ((3, WIDTH), (2, WIDTH + 1)):
        with pytest.raises(Damaged, match="shape"):
            read_rollout(run.paths, FIRST, layers=layers, width=width)
        with pytest.raises(Damaged, match="shape"):
            RolloutLog.open(run.paths, FIRST, epoch=0, layers=layers, width=width)


def test_ends_and_turns_must_fit_each_other(run: Run) -> None:
    path = run.paths.rollout(FIRST)
    path.parent.mkdir(parents=True)
    first = first_link(run.paths.run_id, FIRST)
    for end in (End(Finish.COMPLETE, 1, None), End(Finish.CONTEXT, 2, 9), End(Finish.TEMPLATE, 2, None)):
        path.write_bytes(encode(EndLine(end, 0), first) + b"\n")
        with pytest.raises(Damaged, match="has 0 turns"):
            read(run)
    path.write_bytes(encode(TurnLine(replace(turn(2), residual=None), None, 0), first) + b"\n")
    with pytest.raises(Damaged, match="turn 2 stands where turn 1 belongs"):
        read(run)


@pytest.mark.parametrize("other", [Rollout(CELL, 1), Rollout(OTHER, 0)])
def test_a_file_moved_to_another_rollout_is_found(run: Run, other: Rollout) -> None:
    finish(run)
    target = run.paths.rollout(other)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(run.paths.rollout(FIRST), target)
    shutil.copy(run.paths.residuals(FIRST), run.paths.residuals(other))
    with pytest.raises(Damaged, match="belongs to another run, cell or sample") as caught:
        read(run, other)
    assert caught.value.line == 1


def test_every_byte_of_the_residuals_is_guarded(run: Run) -> None:
    finish(run)
    _, residuals = data_of(run)
    path = run.paths.residuals(FIRST)
    rows = [row for _ in range(3) for row in range(len(LAYERS)) for _ in range(WIDTH * 4)]
    for place, row in enumerate(rows):
        changed = bytearray(residuals)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        for attempt in (
            lambda: read(run, residuals=True),
            lambda row=row: read_residual_layer(run.paths, FIRST, row, len(LAYERS), WIDTH),
            lambda: open_log(run),
        ):
            with pytest.raises(StoreError, match="checksum") as caught:
                attempt()
            assert str(path) in caught.value.what
        read_residual_layer(run.paths, FIRST, 1 - row, len(LAYERS), WIDTH)  # the other layer is whole


def test_residuals_that_are_too_short_are_damage(run: Run) -> None:
    finish(run)
    lines, residuals = data_of(run)
    path = run.paths.residuals(FIRST)
    for length in range(len(residuals)):
        path.write_bytes(residuals[:length])
        with pytest.raises(StoreError, match="ends too early"):
            open_log(run)
        with pytest.raises(StoreError, match="ends too early"):
            read(run, residuals=True)
    path.unlink()
    for attempt in (lambda: open_log(run), lambda: read(run, residuals=True)):
        with pytest.raises(StoreError, match="missing"):
            attempt()
    assert data_of_lines(run) == lines


def data_of_lines(run: Run) -> bytes:
    return run.paths.rollout(FIRST).read_bytes()


def test_residuals_of_a_turn_that_was_not_committed_are_cut_off(run: Run) -> None:
    with open_log(run) as log:
        log.append(turn(1))
    before = data_of(run)
    path = run.paths.residuals(FIRST)
    path.write_bytes(before[1] + b"\1" * 17)
    assert len(read(run, residuals=True).turns) == 1
    assert len(read_residual_layer(run.paths, FIRST, 0, 2, WIDTH)) == 1
    with open_log(run) as log:
        (notice,) = log.record.notices
        assert "17 bytes" in notice
        assert str(path) in notice
    assert data_of(run) == before


# --- one writer


def test_a_second_process_is_refused_and_the_first_is_named(run: Run) -> None:
    def hold(say: Any, listen: Any) -> None:
        with open_log(run) as log:
            log.append(turn(1))
            say(b"x")
            listen()

    child = fork(hold)
    assert child.said() == b"x"
    before = data_of(run)
    with pytest.raises(InUse) as caught:
        open_log(run)
    assert f"process {child.pid} on {os.uname().nodename}" in caught.value.what
    assert str(run.paths.rollout(FIRST)) in caught.value.what
    assert data_of(run) == before
    assert len(read(run).turns) == 1  # reading needs no lock
    with open_log(run, Rollout(CELL, 1)):  # other rollouts are free
        pass
    child.tell()
    assert child.wait() == 0
    assert not run.paths.owner(FIRST).exists()
    finish(run)


def test_a_second_log_in_the_same_process_is_refused_too(run: Run) -> None:
    with open_log(run), pytest.raises(InUse, match=f"process {os.getpid()}"):
        open_log(run)
    open_log(run).close()


@pytest.mark.parametrize("note", [b'{"host":"elsewhere","pid":1,"since":"2020-01-01"}', b"", b"\0\xff", b'{"pid":[]}', b"[" * 5000])
def test_the_note_of_a_dead_process_is_overwritten(run: Run, note: bytes) -> None:
    path = run.paths.owner(FIRST)
    path.parent.mkdir(parents=True)
    path.write_bytes(note)
    with open_log(run):
        assert json.loads(path.read_bytes())["pid"] == os.getpid()
        path.write_bytes(note)
        with pytest.raises(InUse):
            open_log(run)
    assert not path.exists()


def test_a_note_shows_nothing_but_a_hosts_name(run: Run) -> None:
    with open_log(run):
        run.paths.owner(FIRST).write_text('{"host":"\\u001b[31mx","pid":7,"since":"\\u001b"}')
        with pytest.raises(InUse) as caught:
            open_log(run)
    assert "\x1b" not in str(caught.value)
    assert "process 7" in caught.value.what


def test_where_locks_do_nothing_the_second_writer_is_exposed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    first, second = open_log(run), open_log(run)
    first.append(turn(1))
    for _ in range(2):  # and it stays refused
        with pytest.raises(StoreError, match="another process writes it"):
            second.append(turn(1))
    first.append(turn(2))
    first.close()
    second.close()
    assert len(read(run, residuals=True).turns) == 2


def test_where_locks_do_nothing_lines_written_at_the_same_instant_do_not_mix(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    first, second = open_log(run), open_log(run)
    first.append(turn(2 - 1))
    line = data_of_lines(run)
    first.close()
    second.close()
    with open_log(run) as log:
        real, other = os.write, line.replace(b"reply 1", b"reply x")

        def race(fd: int, data: Any) -> int:  # the other's line lands between our check and our write
            monkeypatch.setattr(os, "write", real)
            with run.paths.rollout(FIRST).open("ab") as file:
                file.write(other)
            return real(fd, data)

        monkeypatch.setattr(os, "write", race)
        with pytest.raises(StoreError, match="another process writes it"):
            log.append(replace(turn(2), residual=None))
    with pytest.raises(Damaged):
        read(run)


def test_a_file_system_without_locks_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(fd: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "none")

    monkeypatch.setattr(fcntl, "flock", none)
    with open_log(run) as log:
        (notice,) = log.record.notices
        assert "no locks" in notice
        log.append(turn(1))


def test_a_file_that_is_replaced_or_removed_while_written_is_noticed(run: Run) -> None:
    path = run.paths.rollout(FIRST)
    for harm in (path.unlink, lambda: (shutil.copy(path, path.with_suffix(".new")), path.with_suffix(".new").replace(path))):
        with open_log(run) as log:
            log.append(turn(1))
            harm()
            for _ in range(2):
                with pytest.raises(StoreError):
                    log.append(turn(2))
        path.unlink(missing_ok=True)
        run.paths.residuals(FIRST).unlink()


def test_a_forked_child_cannot_write_and_does_not_keep_the_lock(run: Run) -> None:
    def parent(say: Any, listen: Any) -> None:
        log = open_log(run)
        log.append(turn(1))

        def grandchild(say_: Any, listen_: Any) -> None:
            try:
                log.append(turn(2))
            except StoreError:
                log.close()
                say(b"r")
            else:
                say(b"w")
            listen_()  # until the pipe's other end is closed by its parent's death

        fork(grandchild)
        listen()

    child = fork(parent)
    assert child.said() == b"r"
    assert run.paths.owner(FIRST).exists()  # the child's close was not the owner's
    with pytest.raises(InUse):
        open_log(run)
    child.kill()
    child.wait()
    with open_log(run) as log:
        assert len(log.record.turns) == 1


def test_many_logs_are_open_at_once(run: Run) -> None:
    """Two descriptors each, and the process's own limit is raised as far as it may be."""
    import resource

    def open_many(say: Any, listen: Any) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
        before = len(list(Path("/dev/fd").iterdir()))
        logs = [open_log(run, Rollout(CELL, sample)) for sample in range(200)]
        assert len(list(Path("/dev/fd").iterdir())) <= before + 400
        for log in logs:
            log.append(turn(1))
        for log in logs:
            log.close()
        assert len(list(Path("/dev/fd").iterdir())) == before

    assert fork(open_many).wait() == 0


# --- links


@pytest.mark.parametrize("link", ["rollouts", "rollouts/talk", "rollouts/talk/plain", "rollouts/talk/plain/T0.5"])
def test_a_symbolic_link_in_a_folders_place_is_not_followed(run: Run, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = run.paths.root / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    for attempt in (lambda: open_log(run), lambda: read(run), lambda: tail_state(run.paths, FIRST), run.states):
        with pytest.raises(StoreError, match="symbolic link"):
            attempt()
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("kind", ["rollout", "residuals", "owner"])
def test_a_symbolic_link_in_a_files_place_is_not_followed(run: Run, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    path = getattr(run.paths, kind)(FIRST)
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    with pytest.raises(StoreError, match="symbolic link"):
        open_log(run)
    assert outside.read_bytes() == b""
    if kind == "rollout":
        for attempt in (lambda: read(run), lambda: tail_state(run.paths, FIRST), run.states):
            with pytest.raises(StoreError, match="symbolic link"):
                attempt()
    path.unlink()
    finish(run)  # the refusals left no lock behind


def test_a_pipe_in_a_files_place_hangs_nobody(run: Run) -> None:
    path = run.paths.rollout(FIRST)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    for attempt in (lambda: open_log(run), lambda: read(run), lambda: tail_state(run.paths, FIRST)):
        with pytest.raises(StoreError, match="not a plain file"):
            attempt()


def test_a_run_that_lies_elsewhere_behind_a_link_is_fine(run: Run, tmp_path: Path) -> None:
    moved = tmp_path / "scratch"
    shutil.move(run.paths.root, moved)
    run.paths.root.symlink_to(moved)
    finish(run)
    assert read(run).end == DONE


# --- tails


def test_the_state_is_read_from_the_end_even_of_long_lines(run: Run) -> None:
    with open_log(run) as log:
        for index, length in enumerate((10, 8_200, 200_000, 5), 1):
            log.append(turn(index, text="x" * length))
            assert tail_state(run.paths, FIRST) == (index, None)
        log.end(DONE)
    assert tail_state(run.paths, FIRST) == (TURNS, DONE)


def test_a_last_line_with_a_wrong_checksum_is_not_believed(run: Run) -> None:
    with open_log(run) as log:
        log.append(turn(1))
        log.append(turn(2))
    path = run.paths.rollout(FIRST)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"reply 2", b"reply 8"))
    with pytest.raises(Damaged) as caught:
        tail_state(run.paths, FIRST)
    assert (caught.value.line, caught.value.offset) == (2, data.index(b"\n") + 1)
