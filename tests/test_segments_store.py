"""Replies with segments on disk: a mean for each part, every byte checked; replies without are stored as they always were."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from store_fixtures import DIRECTION, FIRST, LAYERS, TURNS, WIDTH, make_run, manifest, turn

from drift_cli.errors import StoreError
from drift_cli.segments import Part, Segment, SegmentKind
from drift_cli.spec import Finish, Turn
from drift_cli.store.decode import Malformed
from drift_cli.store.line import End, TurnLine, encode, first_link, read
from drift_cli.store.log import Damaged, RolloutLog, read_residual_layer, read_rollout
from drift_cli.store.manifest import Manifest
from drift_cli.store.residuals import pack
from drift_cli.store.run import Run

R, A = SegmentKind.REASONING, SegmentKind.ANSWER
IDS = (5, 6, 7, 8, 9, 0)
BOTH = (Segment(R, 0, 2), Segment(A, 3, 5))
THOUGHT = (Segment(R, 0, 6),)
SPOKEN = (Segment(A, 1, 5),)


def _mean(index: int, part: Part) -> Any:
    return np.random.default_rng((index, list(Part).index(part))).normal(size=(len(LAYERS), WIDTH)).astype(np.float32)


def segmented(index: int, segments: tuple[Segment, ...]) -> Turn:
    """A turn with these segments, the same whenever it is made; one without is that of `store_fixtures`."""
    if not segments:
        return turn(index)
    kinds = {segment.kind for segment in segments}
    answer = _mean(index, Part.ANSWER) if A in kinds else None
    means = {Part.ALL: _mean(index, Part.ALL)} | ({Part.REASONING: _mean(index, Part.REASONING)} if R in kinds else {})
    return Turn(
        index=index,
        text=f"answer {index}" if A in kinds else "",
        finish=Finish.STOP if A in kinds else Finish.LENGTH,
        ids=IDS,
        prompt_length=10 * index,
        prompt_hash="ab" * 16,
        residual=answer,
        projections={} if answer is None else {"made": float(answer[1].astype(np.float64) @ DIRECTION[0].astype(np.float64))},
        segments=segments,
        reasoning=f"reasoning {index}" if R in kinds else None,
        means=means,
    )


SCRIPT = (BOTH, (), THOUGHT, SPOKEN)
"""The segments of each turn. The second turn of `store_fixtures` has no residual means at all."""
BLOCKS = (3, 0, 2, 2)
"""How many residual means each turn has."""


def thinking_run(folder: Path) -> Run:
    """A run whose replies may have segments, its first rollout finished."""
    run = make_run(folder, segments=True)
    with run.writer(FIRST) as log:
        for index, segments in enumerate(SCRIPT, 1):
            log.append(segmented(index, segments))
        log.end(End(Finish.COMPLETE, TURNS, None))
    return run


def test_what_was_stored_of_every_part_is_read_back(tmp_path: Path) -> None:
    run = thinking_run(tmp_path)
    turns = run.record(FIRST, residuals=True).turns
    for found, segments in zip(turns, SCRIPT, strict=True):
        expected = segmented(found.index, segments)
        assert found == expected  # everything but the means
        for part in Part:
            mean, wanted = found.mean(part), expected.mean(part)
            assert (mean is None) == (wanted is None)
            assert mean is None or np.array_equal(mean, wanted)
    for part in Part:
        layer = read_residual_layer(run.paths, FIRST, 1, len(LAYERS), WIDTH, part)
        for index, segments in enumerate(SCRIPT, 1):
            wanted = segmented(index, segments).mean(part)
            assert np.isnan(layer[index - 1]).all() if wanted is None else np.array_equal(layer[index - 1], wanted[1])
    assert not turns[2].answered
    assert turns[2].projections == {}
    assert run.verify() == []
    assert run.paths.residuals(FIRST).stat().st_size == sum(BLOCKS) * len(LAYERS) * WIDTH * 4


def test_a_reply_that_is_all_answer_has_the_line_that_it_has_in_a_run_without_segments(tmp_path: Path) -> None:
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", segments=True)
    for run in runs:
        with run.writer(FIRST) as log:
            for index in range(1, TURNS + 1):
                log.append(turn(index))
    for path in (runs[0].paths.rollout, runs[0].paths.residuals):
        there = path(FIRST)
        assert there.read_bytes() == (runs[1].paths.root / there.relative_to(runs[0].paths.root)).read_bytes()
    keys = ["turn", "finish", "text", "ids", "prompt_length", "prompt_hash", "residual", "projections", "epoch", "prev", "crc"]
    assert [list(json.loads(line)) for line in runs[0].paths.rollout(FIRST).read_bytes().splitlines()] == [keys] * TURNS


def test_a_line_without_segments_has_the_bytes_that_it_always_had() -> None:
    means = np.arange(6, dtype=np.float32).reshape(2, 3)
    _, stored = pack(means, 0, 2, 3)
    made = Turn(1, "hello é", Finish.STOP, (5, 6), 10, "ab" * 16, None, {"made": 1.5})
    assert encode(TurnLine(made, stored, 0), first_link("demo-00000000", FIRST)) == (
        b'{"turn":1,"finish":"stop","text":"hello \xc3\xa9","ids":[5,6],"prompt_length":10,"prompt_hash":"abababababababababababababababab",'
        b'"residual":{"offset":0,"shape":[2,3],"crc":["30c8bc70","a5657320"]},"projections":{"made":1.5},"epoch":0,'
        b'"prev":"1f0cf082228e88fc6ab152ad418d8e73","crc":"77826b28"}'
    )


def test_a_flipped_bit_in_any_block_of_residual_means_is_found(tmp_path: Path) -> None:
    run = thinking_run(tmp_path)
    path = run.paths.residuals(FIRST)
    whole, size = path.read_bytes(), len(LAYERS) * WIDTH * 4
    places = [(1, "answer"), (1, "reasoning"), (1, "all"), (3, "reasoning"), (3, "all"), (4, "answer"), (4, "all")]
    for block, (index, part) in enumerate(places):
        for offset in (0, size - 1):
            broken = bytearray(whole)
            broken[block * size + offset] ^= 4
            path.write_bytes(broken)
            (finding,) = run.verify()
            assert finding.fatal
            assert f"residual means of {part} of turn {index}, row {0 if offset == 0 else len(LAYERS) - 1}," in finding.problem
            with pytest.raises(StoreError, match=f"of {part} of turn {index},"):
                run.record(FIRST, residuals=True)
            with pytest.raises(StoreError, match=f"of {part} of turn {index},"):
                run.writer(FIRST)
    path.write_bytes(whole)
    assert run.verify() == []


def test_a_projection_that_is_not_the_answers_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path, segments=True)
    good = segmented(1, BOTH)
    other = float(good.means[Part.REASONING][1].astype(np.float64) @ DIRECTION[0].astype(np.float64))
    with run.writer(FIRST) as log:
        log.append(replace(good, projections={"made": other}))
    (finding,) = run.verify()
    assert finding.fatal
    assert "projection on axis made" in finding.problem


def test_a_missing_mean_of_a_part_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path, segments=True)
    with run.writer(FIRST) as log:
        log.append(replace(segmented(1, BOTH), means={}))
    problems = [finding.problem for finding in run.verify()]
    assert problems == ["turn 1 has no residual mean of the reasoning", "turn 1 has no residual mean of reasoning and answer together"]


@pytest.mark.parametrize("block", [0, 1, 2, 3, 4])
def test_a_repair_keeps_the_turns_before_a_damaged_block(block: int, tmp_path: Path) -> None:
    run = thinking_run(tmp_path)
    path, size = run.paths.residuals(FIRST), len(LAYERS) * WIDTH * 4
    broken = bytearray(path.read_bytes())
    broken[block * size] ^= 1
    path.write_bytes(broken)
    (done,), failures = run.repair()
    assert (done.kept, failures) == (0 if block < 3 else 2, [])
    assert [finding for finding in run.verify() if finding.fatal] == []
    with run.writer(FIRST) as log:
        for index in range(done.kept + 1, TURNS + 1):
            log.append(segmented(index, SCRIPT[index - 1]))
        log.end(End(Finish.COMPLETE, TURNS, None))
    again = thinking_run(tmp_path / "again")
    assert path.read_bytes() == again.paths.residuals(FIRST).read_bytes()
    assert run.paths.rollout(FIRST).read_bytes() == again.paths.rollout(FIRST).read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_rollout_that_was_cut_off_goes_on_to_the_same_bytes(kept: int, tmp_path: Path) -> None:
    """As a kill leaves it: some whole turns, residual means of the next one in part, and half its line."""
    whole = thinking_run(tmp_path / "whole")
    lines, means = whole.paths.rollout(FIRST).read_bytes(), whole.paths.residuals(FIRST).read_bytes()
    run, size = make_run(tmp_path / "cut", segments=True), len(LAYERS) * WIDTH * 4
    run.paths.rollout(FIRST).parent.mkdir(parents=True)
    end = sum(len(line) for line in lines.splitlines(keepends=True)[:kept])
    run.paths.rollout(FIRST).write_bytes(lines[: end + 40])
    run.paths.residuals(FIRST).write_bytes(means[: sum(BLOCKS[:kept]) * size + size + 5])
    with run.writer(FIRST) as log:
        assert len(log.record.turns) == kept
        for index in range(kept + 1, TURNS + 1):
            log.append(segmented(index, SCRIPT[index - 1]))
        log.end(End(Finish.COMPLETE, TURNS, None))
    assert (run.paths.rollout(FIRST).read_bytes(), run.paths.residuals(FIRST).read_bytes()) == (lines, means)


@pytest.mark.parametrize("part", [Part.REASONING, Part.ALL])
def test_a_line_whose_means_are_not_where_they_belong_is_damage(part: Part, tmp_path: Path) -> None:
    run = thinking_run(tmp_path)
    path = run.paths.rollout(FIRST)
    content, prev = read(path.read_bytes().splitlines()[0])
    assert isinstance(content, TurnLine)
    for wrong in ({"offset": 4}, {"shape": (len(LAYERS), WIDTH + 1)}):
        means = {**content.means, part: replace(content.means[part], **wrong)}
        path.write_bytes(encode(replace(content, means=means), prev) + b"\n")
        with pytest.raises(Damaged, match="line 1 at byte 0: its residual means"):
            run.record(FIRST)


BAD: dict[str, Callable[[Turn], Turn]] = {
    "reasoning without segments": lambda it: replace(it, segments=(), means={}),
    "means without segments": lambda it: replace(it, segments=(), reasoning=None),
    "segments that overlap": lambda it: replace(it, segments=(Segment(R, 0, 3), Segment(A, 2, 5))),
    "a segment beyond the reply": lambda it: replace(it, segments=(Segment(R, 0, 2), Segment(A, 3, 7))),
    "a segment that ends before it begins": lambda it: replace(it, segments=(Segment(R, 2, 1), Segment(A, 3, 5))),
    "an answer's mean without an answer": lambda it: replace(it, segments=(Segment(R, 0, 5),)),
    "a projection without an answer": lambda it: replace(it, segments=(Segment(R, 0, 5),), residual=None),
    "a mean of reasoning without reasoning": lambda it: replace(it, segments=SPOKEN),
    "a mean of another width": lambda it: replace(it, means={**it.means, Part.ALL: np.ones((len(LAYERS), WIDTH + 1), dtype=np.float32)}),
    "a mean that is not finite": lambda it: replace(
        it, means={**it.means, Part.ALL: np.full((len(LAYERS), WIDTH), np.nan, dtype=np.float32)}
    ),
    "a mean of no part": lambda it: replace(it, means={**it.means, Part.ANSWER: it.means[Part.ALL]}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_hang_together_is_not_written(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, segments=True)
    with run.writer(FIRST) as log:
        with pytest.raises(StoreError, match="cannot be stored"):
            log.append(BAD[name](segmented(1, BOTH)))
        log.append(segmented(1, BOTH))
    assert [finding for finding in run.verify() if finding.fatal] == []


def test_a_run_without_segments_takes_none_and_verify_finds_those_that_got_in(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with run.writer(FIRST) as log, pytest.raises(StoreError, match="a chat format that has none"):
        log.append(segmented(1, BOTH))
    with RolloutLog.open(run.paths, FIRST, epoch=0, layers=len(LAYERS), width=WIDTH, segments=True) as log:
        log.append(segmented(1, BOTH))
    assert [f.problem for f in run.verify() if f.fatal] == ["turn 1 has segments, but the run was made with a chat format that has none"]


def test_a_manifest_says_that_there_are_segments_and_is_unchanged_where_there_are_none(tmp_path: Path) -> None:
    plain, thinking = manifest(), manifest(segments=True)
    assert b"segments" not in plain.to_json()
    assert thinking.to_json().count(b'\n  "segments": true,\n') == 1
    assert [Manifest.from_json(m.to_json(), tmp_path) for m in (plain, thinking)] == [plain, thinking]
    assert plain.spec.id == thinking.spec.id
    for stored, asked in ((plain, thinking), (thinking, plain)):
        run = make_run(tmp_path / str(stored.segments), segments=stored.segments)
        with pytest.raises(StoreError, match=f"segments .*: stored {stored.segments}, asked {asked.segments}"):
            run.update(asked)


def test_lines_are_read_as_they_are_written_and_no_other_way(tmp_path: Path) -> None:
    run = thinking_run(tmp_path)
    for raw in run.paths.rollout(FIRST).read_bytes().splitlines()[:TURNS]:
        content, prev = read(raw)
        assert isinstance(content, TurnLine)
        assert encode(content, prev) == raw
    first = json.loads(run.paths.rollout(FIRST).read_bytes().splitlines()[0])
    assert first["segments"] == [{"kind": "reasoning", "start": 0, "stop": 2}, {"kind": "answer", "start": 3, "stop": 5}]
    assert (first["text"], first["reasoning"]) == ("answer 1", "reasoning 1")
    offsets = [first["residual"]["offset"], first["means"]["reasoning"]["offset"], first["means"]["all"]["offset"]]
    assert offsets == [0, 24, 48]
    assert read_rollout(run.paths, FIRST).turns[0].means == {}


STRANGE: tuple[Any, ...] = (None, True, -1, 1.5, "x", [], {}, [None], [[]], {"kind": []}, [{"kind": [], "start": 0, "stop": 1}], 2**40)


def _places(value: Any, way: tuple[Any, ...] = ()) -> Any:
    """The way to every value in a JSON value."""
    yield way
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(item, (*way, key))


def test_no_value_of_another_kind_passes_for_a_line(tmp_path: Path) -> None:
    run = thinking_run(tmp_path)
    body = json.loads(run.paths.rollout(FIRST).read_bytes().splitlines()[0])
    del body["crc"]
    tried = passed = 0
    for way in [way for way in _places(body) if way]:
        for strange in STRANGE:
            changed = json.loads(json.dumps(body))
            inner = changed
            for key in way[:-1]:
                inner = inner[key]
            if inner[way[-1]] == strange and type(inner[way[-1]]) is type(strange):
                continue
            inner[way[-1]] = strange
            covered = json.dumps(changed, separators=(",", ":"), ensure_ascii=False).encode()[:-1]
            line = covered + b',"crc":"%08x"}' % crc32(covered)
            tried += 1
            with suppress(Malformed):
                content, prev = read(line)
                assert encode(content, prev) == line, way  # whatever is read is what would be written
                passed += 1
    assert tried > 500
    assert passed < tried // 10
