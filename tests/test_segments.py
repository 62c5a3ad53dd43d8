"""What a user sees of reasoning and answers: which part is measured, in every table, picture, report and file; what lacks a part is missing, never another."""

from __future__ import annotations

import csv
import io
import json
import zlib
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import drift
from numpy.typing import NDArray

from drift_cli.analysis import table as tables
from drift_cli.analysis.axis_error import DRAWS, axis_errors, resampled
from drift_cli.analysis.effects import hedges_g
from drift_cli.analysis.layers import load_layers
from drift_cli.analysis.study import analyze
from drift_cli.axis import Axis
from drift_cli.measuring import controls
from drift_cli.measuring.build import made_from
from drift_cli.measuring.personas import read as read_personas
from drift_cli.measuring.traces import token_lengths
from drift_cli.spec import (
    Cell,
    ChatFormat,
    Condition,
    Finish,
    Part,
    Rollout,
    RunSpec,
    Sampling,
    Segment,
    SegmentKind,
    Transcript,
    Turn,
    digest_of,
)
from drift_cli.store.epoch import Epoch
from drift_cli.store.log import End
from drift_cli.store.manifest import AxisEntry, CellPlan, Manifest, ModelFacts
from drift_cli.store.paths import Store
from drift_cli.store.run import Run
from drift_cli.store.traces import TokenTrace, write_traces

R, A = SegmentKind.REASONING, SegmentKind.ANSWER
SAMPLES, TURNS, WIDTH, LAYERS = 6, 4, 8, (1, 2)
PLANTED = {Part.ANSWER: 1.0, Part.REASONING: -2.0, Part.ALL: 0.25}
"""What each part projects to under `plain`, on average; under `kind` it is 1, 2 and 3 more."""
SHIFT = {Part.ANSWER: 1.0, Part.REASONING: 2.0, Part.ALL: 3.0}
AXIS = Axis("made", LAYERS, np.eye(WIDTH, dtype=np.float32)[:2])
LACKING = (5, 2)
"""Sample and turn of the one reply of each condition that has no answer; the one before it has no reasoning."""


def _mean(condition: str, sample: int, turn: int, part: Part) -> NDArray[np.float32]:
    """(layers, width): noise, and what was planted, at layer 2 along the axis's second direction."""
    rng = np.random.default_rng((condition == "kind", sample, turn, list(Part).index(part)))
    mean = rng.normal(0, 0.1, size=(len(LAYERS), WIDTH))
    mean[1, 1] += PLANTED[part] + SHIFT[part] * (condition == "kind")
    return mean.astype(np.float32)


def _turn(condition: str, sample: int, turn: int) -> Turn:
    means = {part: _mean(condition, sample, turn, part) for part in Part}
    segments: tuple[Segment, ...] = (Segment(R, 1, 4), Segment(A, 5, 9))
    texts: tuple[str, str | None] = (f"answer {sample} {turn}", f"thought {sample} {turn}")
    if (sample, turn) == LACKING:
        del means[Part.ANSWER]
        segments, texts = (Segment(R, 1, 9),), ("", texts[1])
    elif (sample, turn) == (LACKING[0], LACKING[1] - 1):
        means = {Part.ANSWER: means[Part.ANSWER]}
        segments, texts = (), (texts[0], None)
    answer = means.pop(Part.ANSWER, None)
    projections = {} if answer is None else {"made": float(answer[1].astype(np.float64) @ AXIS.at(2).astype(np.float64))}
    finish = Finish.STOP if answer is not None else Finish.LENGTH
    return Turn(turn, texts[0], finish, tuple(range(9)), 7, "ab" * 16, answer, projections, segments, texts[1], means)


def planted(folder: Path) -> Run:
    """A finished run of two conditions, with something else planted in each part of its replies."""
    conditions = {"plain": Condition("plain"), "kind": Condition("kind", "Be kind.")}
    manifest = Manifest(
        spec=RunSpec("thoughts", "tiny", "r1", "float32", ChatFormat("template", "00"), Sampling(), 9, 7),
        layers=LAYERS,
        conditions=conditions,
        transcripts={"talk": Transcript("talk", tuple(f"question {turn}" for turn in range(1, TURNS + 1)))},
        cells=tuple(CellPlan(Cell("talk", name, 0.5), SAMPLES) for name in conditions),
        axes=(AxisEntry("made", 2, AXIS.digest),),
        model=ModelFacts("Tiny", 2, WIDTH, 100, 1000, (99,), None),
        epochs=(Epoch({"drift": "0"}, "cpu", "slots", 4),),
        segments=True,
    )
    run = Run.create(Store(folder), manifest)
    AXIS.save(run.paths.axis("made"))
    for plan in manifest.cells:
        for sample in range(SAMPLES):
            with run.writer(Rollout(plan.cell, sample)) as log:
                for turn in range(1, TURNS + 1):
                    log.append(_turn(plan.cell.condition, sample, turn))
                log.end(End(Finish.COMPLETE, TURNS, None))
    assert run.verify() == []
    return run


def expected(part: Part) -> NDArray[np.float64]:
    """(conditions × samples, turns): what `part` projects to, from the means that were planted; NaN where a reply lacks it."""
    values = np.full((2, SAMPLES, TURNS), np.nan)
    for place, condition in enumerate(("plain", "kind")):
        for sample in range(SAMPLES):
            for turn in range(1, TURNS + 1):
                mean = _turn(condition, sample, turn).mean(part)
                if mean is not None:
                    values[place, sample, turn - 1] = mean[1, 1]
    return values.reshape(2 * SAMPLES, TURNS)


def nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 1): means over turns."""
    return np.nanmean(values, axis=1, keepdims=True)


@pytest.fixture
def run() -> Run:
    return planted(Path("checkpoints"))


@pytest.mark.parametrize("part", Part)
def test_the_table_has_what_was_planted_in_each_part(part: Part, run: Run) -> None:
    found = tables.load(run, None, part)
    np.testing.assert_allclose(found.projections, expected(part), atol=1e-6)
    assert found.segment is part
    lacking = {Part.ANSWER: 1, Part.REASONING: 1, Part.ALL: 0}[part]
    assert int(np.isnan(found.projections).sum()) == 2 * lacking
    assert (int(found.flags.no_answer.sum()), int(found.flags.reasoning_cut.sum())) == (2, 2)
    assert not found.flags.suspect.any()


def test_statistics_measure_the_answer_unless_asked_otherwise_and_say_so(run: Run) -> None:
    assert drift("stats", "--json").json == drift("stats", "--json", "--segment", "answer").json
    for part in Part:
        document = drift("stats", "--json", "--segment", part.value).json
        assert document["segment"] == document["provenance"]["segment"] == part.value
        assert document["comparisons"][0]["difference"] == pytest.approx(
            SHIFT[part] if document["comparisons"][0]["a"] == "kind" else -SHIFT[part], abs=0.1
        )
        plain = next(cell for cell in document["summary"]["cells"] if cell["condition"] == "plain")
        # Two of 24 replies lack a part; the first of them is, as it has no segments, all answer.
        assert plain["mean"] == pytest.approx(PLANTED[part], abs=0.1)
        assert (plain["flagged"]["no_answer"], plain["flagged"]["reasoning_cut"]) == (1, 1)
        assert plain["flagged"]["no_answer_share"] == pytest.approx(1 / (SAMPLES * TURNS))
        assert document["scope"].startswith("Measured: ")
        shown = drift("stats", "--segment", part.value, "--full", "--per-turn").out
        assert f"projection of {part.words} on made" in drift("stats", "--segment", part.value).out
        for title in (
            "projection on made, layer 2",
            "Differences of rollout means",
            "Differences of drift",
            "Turn by turn",
            "Every turn: mean ± half-width",
        ):
            assert f"{title}, {part.words}\n" in shown
        assert f"segment {part.value}, data" in shown
        assert "2 of 48 replies (4.2 %) have no answer within the limit" in shown.replace("\n", " ")
    assert "no answer within the limit" in " ".join(drift("stats").out.split())
    with_note = " ".join(drift("stats", "--full").out.split())
    assert "1 of 24 replies have no answer within the limit: those turns are missing." in with_note
    assert "1 without answer (4 %)" in with_note


def test_csv_markdown_and_latex_say_what_is_measured(run: Run) -> None:
    records = list(csv.DictReader(io.StringIO(drift("stats", "--format", "csv", "--segment", "reasoning").out)))
    assert {record["segment"] for record in records} == {"reasoning"}
    assert all("Measured: the reasoning" in record["scope"] for record in records)
    for name in ("markdown", "latex"):
        assert "the reasoning" in drift("stats", "--format", name, "--segment", "reasoning").out


def test_a_run_without_segments_refuses_reasoning_and_says_nothing_of_parts(run: Run) -> None:
    plain = Run.create(Store(Path("other")), replace(run.manifest, segments=False))
    AXIS.save(plain.paths.axis("made"))
    for state in plain.states():
        with plain.writer(state.rollout) as log:
            for turn in range(1, TURNS + 1):
                made = _turn(state.rollout.cell.condition, state.rollout.sample, 1)
                log.append(replace(made, index=turn, segments=(), reasoning=None, means={}))
            log.end(End(Finish.COMPLETE, TURNS, None))
    for command in (
        ("stats",),
        ("plot",),
        ("report",),
        ("measure", "--axis", "made"),
        ("measure", "--controls", "3"),
        ("export", "--format", "csv"),
    ):
        refused = drift(*command, "--store", "other", "--segment", "reasoning", code=2)
        assert "has no reasoning apart from its answers" in refused.err
        assert "Traceback" not in refused.err
    document = drift("stats", "--store", "other", "--json").json
    assert document == drift("stats", "--store", "other", "--json", "--segment", "all").json
    assert "segment" not in json.dumps(document)
    assert "no_answer" not in json.dumps(document)
    assert "Measured" not in drift("stats", "--store", "other").out
    assert drift("stats", "--segment", "thoughts", code=2).err.count("answer, reasoning, all") == 1
    assert "'answer', 'reasoning', 'all'" in drift("stats", "--segment", "thoughts", code=2).err


def test_control_axes_and_later_axes_are_measured_on_the_part_that_is_asked_for(run: Run) -> None:
    other = Axis("other", LAYERS, np.eye(WIDTH, dtype=np.float32)[2:4])
    other.save(Path("other.safetensors"))
    drift("measure", "--axis", "other.safetensors", "--layer", "2")
    effects, sizes = {}, {}
    for part in Part:
        document = drift("measure", "--axis", "other.safetensors", "--layer", "2", "--segment", part.value, "--json").json
        assert (document["segment"], document["layer"]) == (part.value, 2)
        wanted = [_turn("plain", s, t).mean(part) for s in range(SAMPLES) for t in range(1, TURNS + 1)]
        there = [float(mean[1, 3]) for mean in wanted if mean is not None]
        assert document["summary"]["cells"][0]["grand_mean"] == pytest.approx(np.mean(there), abs=1e-5)
        assert part.words in " ".join(drift("measure", "--axis", "other.safetensors", "--layer", "2", "--segment", part.value).out.split())
        standing = drift("measure", "--axis", "made", "--controls", "20", "--segment", part.value, "--json").json
        assert standing["segment"] == part.value
        measured = hedges_g(*(nanmean(expected(part)[rows]) for rows in (slice(SAMPLES, None), slice(SAMPLES))), 0.95).g[0]
        # Rollouts that lack a turn count by their deviations, so that the effect is not quite that of their plain means.
        assert abs(standing["controls"][0]["hedges_g"]) == pytest.approx(abs(measured), rel=0.35)
        effects[part], sizes[part] = measured, standing["controls"][0]["median"]
        made = controls.load(run.paths.controls("made"))
        found = controls.project(run, made, part)["random"]
        wanted = [_turn(name, s, 3).mean(part) for name in ("plain", "kind") for s in range(SAMPLES)]
        np.testing.assert_allclose(found[:, :, 2], made.random.astype(np.float64) @ np.stack([mean[1] for mean in wanted]).T, atol=1e-6)
        assert drift("stats", "--axis", "made", "--segment", part.value, "--json").json["controls"] == standing["controls"]
    assert len({round(effect) for effect in effects.values()}) == len(set(sizes.values())) == 3


def test_every_layer_is_projected_from_the_part_that_is_asked_for(run: Run) -> None:
    for part in Part:
        found = load_layers(run, tables.load(run, None, part))
        np.testing.assert_allclose(found.values[:, LAYERS.index(2)], expected(part), atol=1e-6)


def test_axes_are_built_from_answers_alone_and_say_so(run: Run) -> None:
    people = 'questions = ["question 1"]\n' + "".join(
        f'[personas.{n}]\nside = "{s}"\nsystem = "{n}"\n' for n, s in (("plain", "assistant"), ("kind", "role"))
    )
    Path("people.toml").write_text(people)
    personas = read_personas(Path("people.toml"))
    name = f"q{digest_of('question 1')[:8]}"
    cells = tuple(CellPlan(Cell(name, condition, 0.5), 1) for condition in ("plain", "kind"))
    made = Run.create(Store(Path("axes")), replace(run.manifest, cells=cells, transcripts={name: Transcript(name, ("question 1",))}))
    for plan in cells:
        with made.writer(Rollout(plan.cell, 0)) as log:
            log.append(_turn(plan.cell.condition, 0, 1))
            log.end(End(Finish.COMPLETE, 1, None))
    axis = made_from(made, personas, 1, "new")
    assert axis.means is not None
    np.testing.assert_array_equal(axis.means[0], _mean("plain", 0, 1, Part.ANSWER))
    assert "answers only" in axis.source


def test_every_picture_says_what_it_shows(run: Run) -> None:
    written = drift("plot", "--kind", "all", "--segment", "reasoning", "-o", "made.svg", "--json").json
    assert written["segment"] == "reasoning"
    kinds = {Path(name).stem.rpartition("-")[2]: Path(name).read_text() for name in written["files"]}
    assert set(kinds) == {"trajectory", "difference", "forest", "heatmap", "ridgeline", "layers"}
    for kind, text in kinds.items():
        assert "Measured: the reasoning" in text or "projection of the reasoning" in text, kind
    for part in Part:
        assert f"projection of {part.words} on made" in drift("plot", "--kind", "text", "--segment", part.value).out


def trace_segments(run: Run) -> None:
    """A character of the text, or none, to each of the nine tokens; the rest to a segment's last."""
    for state in run.states():
        turns, made = run.record(state.rollout).turns, []
        for turn in turns:
            lengths = [0] * 9
            for segment, text in zip(turn.segments or (Segment(A, 0, 9),), [t for t in (turn.reasoning, turn.text) if t], strict=True):
                lengths[segment.start : segment.stop] = [1] * (segment.stop - segment.start)
                lengths[segment.stop - 1] += len(text) - (segment.stop - segment.start)
            made.append(TokenTrace(turn.index, np.arange(9, dtype=np.float32), tuple(lengths)))
        write_traces(run.paths, state.rollout, run.manifest.axes[0], turns, made)


def _document(path: str) -> Any:
    text = Path(path).read_text()
    data = text.split('id="data">')[1].split("</script>")[0]
    return json.loads(zlib.decompress(b64decode(data)))


def test_the_report_shows_reasoning_apart_from_the_answer_and_colours_the_tokens_of_both(run: Run) -> None:
    trace_segments(run)
    assert run.verify() == []
    made = drift("report", "--json").json
    assert made["segment"] == "answer"
    page, document = Path(made["file"]).read_text(), _document(made["file"])
    assert document["segment"] == "answer"
    assert "projection of the answer on made" in document["subtitle"]
    assert "projection of the answer on made" in document["caption"]
    assert any("have no answer within the limit" in sentence["text"] for sentence in document["verdict"])
    turns = document["groups"][0]["cells"][0]["rollouts"][0]["turns"]
    assert (turns[0]["text"], turns[0]["reasoning"]["text"]) == ("answer 0 1", "thought 0 1")
    assert (turns[0]["n"], turns[0]["reasoning"]["n"]) == ([1, 1, 1, 7], [1, 1, 9])
    scale = document["scale"]
    for shown, tokens in ((turns[0], range(5, 9)), (turns[0]["reasoning"], range(1, 4))):
        assert shown["v"] == [round((token - scale["middle"]) / scale["half"] * 100) for token in tokens]
    lacking = document["groups"][0]["cells"][0]["rollouts"][LACKING[0]]["turns"][LACKING[1] - 1]
    assert (lacking["p"], lacking["text"], lacking["flags"]) == (None, "", ["no_answer", "reasoning_cut"])
    assert "reasoning" not in document["groups"][0]["cells"][0]["rollouts"][LACKING[0]]["turns"][LACKING[1] - 2]
    assert all(part in page for part in ('element("details", { class: "reasoning"', '"Reasoning"'))
    other = _document(drift("report", "--segment", "reasoning", "--json").json["file"])
    assert other["groups"][0]["cells"][0]["rollouts"][0]["turns"][0]["p"] == pytest.approx(
        float(_mean("plain", 0, 1, Part.REASONING)[1, 1]), abs=1e-4
    )
    assert "projection of the reasoning" in other["caption"]


def test_the_picture_of_tokens_is_of_the_part_that_is_asked_for(run: Run) -> None:
    trace_segments(run)
    for part, tokens in ((Part.ANSWER, 4), (Part.REASONING, 3), (Part.ALL, 7)):
        drift("plot", "--kind", "tokens", "--reply", "plain/0/turn-1", "--segment", part.value, "-o", f"{part}.svg")
        assert f"{tokens} tokens." in Path(f"{part}.svg").read_text()
    reply = f"plain/{LACKING[0]}/turn-{LACKING[1]}"
    assert "has no token of the answer" in drift("plot", "--kind", "tokens", "--reply", reply, code=2).err


def test_exports_keep_both_texts_and_say_what_is_measured(run: Run) -> None:
    for part in Part:
        drift("export", "--format", "csv", "--segment", part.value, "-o", "all.csv")
        rows = list(csv.DictReader(io.StringIO(Path("all.csv").read_text())))
        assert {row["segment"] for row in rows} == {part.value}
        wanted = expected(part).ravel()
        found = [float(row["projection_made"]) if row["projection_made"] else np.nan for row in rows]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert (rows[0]["reply"], rows[0]["reasoning"]) == ("answer 0 1", "thought 0 1")
    assert (rows[0]["answer_tokens"], rows[0]["reasoning_tokens"]) == ("4", "3")
    drift("export", "--format", "assistant-axis", "-o", "talks")
    talk = json.loads(Path("talks/talk/plain/T0.5/0000.json").read_text())["conversation"]
    assert talk[1] == {"role": "assistant", "content": "answer 0 1", "reasoning_content": "thought 0 1"}
    drift("export", "-o", "seed")
    cell = json.loads(Path("seed/plain.json").read_text())
    assert cell["projections"][LACKING[0]][LACKING[1] - 1] is None
    assert "no place to say what was measured" in drift("export", "--segment", "all", code=2).err


def test_parquet_has_the_residual_means_of_the_part(run: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in Part:
        drift("export", "--format", "parquet", "--residuals", "--segment", part.value, "-o", "all.parquet")
        table = parquet.read_table("all.parquet")
        assert json.loads(table.schema.metadata[b"drift.segment"]) == part.value
        rows = table.to_pylist()
        mean = _turn("plain", 0, 1).mean(part)
        assert mean is not None
        assert rows[0]["residual_2"] == mean[1].tolist()
        lacking = [row["residual_2"] is None for row in rows]
        assert lacking == [bool(np.isnan(value)) for value in expected(part).ravel()]


def test_runs_show_says_that_reasoning_is_kept_apart(run: Run) -> None:
    assert "reasoning and answer are kept, and measured, apart" in " ".join(drift("runs", "show").out.split())


class _Words:
    """A tokenizer whose tokens are words of a list."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def decode(self, ids: Sequence[int], **how: object) -> str:
        return "".join(self.words[i] for i in ids)


@pytest.mark.parametrize(
    ("answer", "reasoning", "lengths"),
    [
        ("\n\nIt is so.", " hm, well", [0, 3, 6, 0, 2, 2, 6, 0]),  # as decoded
        ("It is so.", "hm, well", [0, 2, 6, 0, 0, 2, 6, 0]),  # a format that leaves the space around them out
        ("It is", "hm,", [0, 2, 1, 0, 0, 2, 3, 0]),  # and cuts a token
    ],
)
def test_every_token_has_its_characters_of_its_own_segments_text(answer: str, reasoning: str, lengths: list[int]) -> None:
    words = ["<think>", " hm", ", well", "</think>", "\n\n", "It", " is so", "."]
    segments = (Segment(R, 1, 3), Segment(A, 4, 8))
    made = Turn(1, answer, Finish.STOP, tuple(range(8)), segments=segments, reasoning=reasoning)
    found = token_lengths(_Words(words), range(8), made)  # type: ignore[arg-type]
    assert sum(found[4:]) == len(answer)
    assert sum(found[1:3]) == len(reasoning)
    assert (found[0], found[3]) == (0, 0)
    trace = TokenTrace(1, np.arange(8, dtype=np.float32), tuple(found))
    assert trace.fits(made)
    assert "".join(trace.of(made)[0]) == answer
    assert "".join(trace.of(made, Part.REASONING)[0]) == reasoning
    assert trace.of(made, Part.REASONING)[1].tolist() == [1.0, 2.0]
    assert trace.of(made, Part.ALL)[1].tolist() == [1.0, 2.0, 4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize("part", Part)
def test_the_axiss_own_uncertainty_is_of_the_part_that_is_measured(part: Part, run: Run) -> None:
    rng = np.random.default_rng(4)
    means = rng.normal(size=(6, len(AXIS.layers), WIDTH)).astype(np.float32)
    known = replace(AXIS, personas=tuple("abcdef"), assistants=("a", "b", "c"), means=means)
    known.save(run.paths.axis("made"))
    table = tables.load(run, None, part)
    (found,) = [one for one in axis_errors(run, table, analyze(table)) if one.measure == "mean"]
    vectors = resampled(known, 2, DRAWS, 0)
    assert vectors is not None
    projected = np.full((DRAWS, 2, SAMPLES, TURNS), np.nan)
    for place, condition in enumerate(("plain", "kind")):
        for sample in range(SAMPLES):
            for turn in range(1, TURNS + 1):
                mean = _turn(condition, sample, turn).mean(part)
                if mean is not None:
                    projected[:, place, sample, turn - 1] = vectors @ mean[1].astype(np.float64)
    by_turn = np.nanmean(projected, axis=2)
    assert found.sd == pytest.approx((by_turn[:, 1] - by_turn[:, 0]).mean(axis=1).std(ddof=1))
