"""Runs of a chat format with segments, from the command line: the same bytes whether interrupted or not, and checked at every later look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cli import drift
from test_estimate import SPEEDS
from thinking import split, think, think_no_more

from drift_cli import models
from drift_cli.axis import Axis
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.running.experiment import reopen, settings_of
from drift_cli.running.runner import run_rollouts
from drift_cli.segments import Part, Segment, SegmentKind, spans
from drift_cli.store.paths import Store
from drift_cli.store.run import Run
from drift_cli.store.traces import read_traces

LINE = (
    "generate",
    "--transcript",
    "short.json",
    "--max-new-tokens",
    "9",
    "--samples",
    "3",
    "--batch",
    "3",
    "--dtype",
    "float32",
    "--layers",
    "all",
)
KINDS = {"slots": SlotEngine, "reference": ReferenceEngine}
PATIENCE = {"slots": 25, "reference": 12}
"""Times that a call is asked whether to stop before it is: enough for some turns, and far too few for all."""


@pytest.fixture
def model(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model whose replies have segments, and an axis and a script for it."""
    think(monkeypatch)
    card = models.describe(str(tiny_models["olmo3"]))
    vectors = np.random.default_rng(3).normal(size=(card.layers + 1, card.width))
    made = Axis("odd", tuple(range(card.layers + 1)), (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    made.save(Path("odd.safetensors"))
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you", "and the light"]}))
    return tiny_models["olmo3"]


def _generate(model: Path, store: str, *more: str) -> Run:
    drift(*LINE, "--model", str(model), "--axis", "odd.safetensors", "--layer", "2", "--store", store, *more)
    return Run.newest(Store(Path(store)))


def _bytes(run: Run) -> dict[str, bytes]:
    return {
        str(path.relative_to(run.paths.root)): path.read_bytes()
        for path in run.paths.rollouts_root.rglob("*.*")
        if path.suffix in (".jsonl", ".f32")
    }


@pytest.mark.parametrize("engine", KINDS)
def test_a_run_that_is_interrupted_again_and_again_ends_with_the_same_bytes(engine: str, model: Path) -> None:
    whole = _generate(model, "whole", "--engine", engine)
    assert whole.verify() == []
    turns = [turn for state in whole.states() for turn in whole.record(state.rollout).turns]
    assert any(not turn.answered for turn in turns)
    assert any(len(spans(turn.segments, Part.ANSWER)) and spans(turn.segments, Part.REASONING) for turn in turns)
    assert whole.paths.manifest.read_bytes().count(b'\n  "segments": true,\n') == 1

    cut = Run.create(Store(Path("cut")), whole.manifest)
    Axis.load(whole.paths.axis("odd")).save(cut.paths.axis("odd"))
    experiment = reopen(cut, settings_of(cut.manifest))
    loaded = models.load(experiment.card, dtype="float32", device="cpu")
    spec, calls = cut.manifest.spec, 0
    for _ in range(200):
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > PATIENCE[engine]

        made = KINDS[engine](loaded, cut.manifest.layers, spec.sampling, spec.max_new_tokens, 3)
        outcome = run_rollouts(cut, made, chat=experiment.chat, axis=experiment.axis, end_ids=experiment.card.end_ids, stop=stop)
        calls += 1
        if not outcome.interrupted and all(state.ended for state in cut.states()):
            break
    assert calls > 2
    assert _bytes(cut) == _bytes(whole)
    assert cut.verify() == []


def test_traces_cover_reasoning_and_answers_and_their_mean_is_the_answers_projection(model: Path) -> None:
    run = _generate(model, "checkpoints")
    done = drift("measure", "--traces", "--json").json
    assert done["difference"] < 1e-4
    assert run.verify() == []
    checked = 0
    for state in run.states():
        record = run.record(state.rollout)
        found = read_traces(run.paths, state.rollout, run.manifest.axes[0], record.turns)
        for turn in record.turns:
            texts = {part: "".join(found[turn.index].of(turn, part)[0]) for part in Part}
            assert texts[Part.ANSWER] == turn.text
            assert texts[Part.REASONING] == (turn.reasoning or "")
            checked += bool(turn.text and turn.reasoning)
    assert checked
    drift("report", "-o", "all.html")
    assert "does not go with --traces" in drift("measure", "--traces", "--segment", "all", code=2).err


def test_code_that_finds_other_segments_than_those_on_disk_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _generate(model, "checkpoints")

    def other(ids: Sequence[int]) -> tuple[Segment, ...]:
        found = split(ids)
        return (Segment(SegmentKind.ANSWER, 0, len(ids)),) if found else ()

    run = Run.newest(Store(Path("checkpoints")))
    first = next(s.rollout for s in run.states() if any(turn.segments for turn in run.record(s.rollout).turns[:2]))
    path = run.paths.rollout(first)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    think(monkeypatch, other)
    refused = drift("resume", code=1).err
    assert "its reasoning and its answer are no longer found where they were" in refused
    assert "no longer found" in drift("measure", "--traces", code=1).err
    think_no_more(monkeypatch)
    assert "segments (reasoning apart from the answer): stored True, asked False" in drift("resume", code=1).err


def test_a_run_made_before_its_format_had_segments_is_not_gone_on_with(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        think_no_more(patch)
        old = _generate(model, "checkpoints", "--samples", "1")
    before = old.paths.manifest.read_bytes()
    assert b"segments" not in before
    refused = drift(*LINE, "--model", str(model), "--axis", "odd.safetensors", "--layer", "2", code=1)
    assert "segments (reasoning apart from the answer): stored False, asked True" in refused.err
    assert old.paths.manifest.read_bytes() == before
    assert drift("stats", "--json").json["run"] == old.paths.run_id  # what is there stays readable


def test_a_dry_run_foresees_the_residual_means_of_three_parts(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift_cli.running.loading.measure_speeds", lambda *given: SPEEDS)
    line = (*LINE, "--model", str(model), "--axis", "odd.safetensors", "--layer", "2", "--dry-run", "--json")
    several = drift(*line).json["residual_bytes"]
    think_no_more(monkeypatch)
    assert several == 3 * drift(*line).json["residual_bytes"]
