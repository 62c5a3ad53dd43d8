"""The same replies under the other prompt: measured by a forward pass over the conversation they make there, stored beside the run, and split exactly."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from cli import drift
from report_run import make_run

from drift_cli.analysis.presence import Presence, Readings, split
from drift_cli.analysis.results import Measure, Options, Test
from drift_cli.analysis.rules import Verdict
from drift_cli.analysis.study import analyze
from drift_cli.analysis.table import RunTable
from drift_cli.analysis.verdict import Answer, answer
from drift_cli.axis import Axis
from drift_cli.chat import chat_for
from drift_cli.measuring import same_replies
from drift_cli.models import LoadedModel
from drift_cli.results.tables.answer import lines, sentences
from drift_cli.results.tables.cautions import cautions
from drift_cli.segments import Part, spans
from drift_cli.spec import Cell, Finish
from drift_cli.store.paths import Store
from drift_cli.store.run import Run
from drift_cli.store.swapped import Swapped, read_swapped

USERS = ["hello there", "who are you", "and the light"]


def _generate(folder: Path, *more: str, samples: int = 2) -> Run:
    """A short run of a tiny model in two conditions, projected on a random axis."""
    if not Path("odd.safetensors").exists():
        vectors = np.random.default_rng(3).normal(size=(3, 32))
        Axis("odd", (0, 1, 2), (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)).save(Path("odd.safetensors"))
        Path("short.json").write_text(json.dumps({"name": "short", "users": USERS}))
    command = ("generate", "--model", str(folder), "--transcript", "short.json", "--max-new-tokens", "9", "--samples", str(samples))
    command = (*command, "--dtype", "float32", "--axis", "odd.safetensors", "--layer", "2", *more)
    drift(*command, "--condition", "baseline")
    drift(*command, "--condition", "kind", "--system", "be kind", "--placement", "user-suffix")
    return Run.newest(Store(Path("checkpoints")))


@pytest.mark.parametrize("name", list(tiny.ARCHITECTURES))
def test_generate_reads_every_reply_under_the_prompt_it_is_compared_with(
    name: str, tiny_models: dict[str, Path], loaded: dict[str, LoadedModel]
) -> None:
    run, model = _generate(tiny_models[name]), loaded[name]
    assert run.manifest.model is not None
    ends = frozenset(run.manifest.model.end_ids)
    chat = chat_for(model.card.tokenizer, "template", date="2026-01-01", options="{}")
    for state in run.states():
        other = run.manifest.conditions["kind" if state.rollout.cell.condition == "baseline" else "baseline"]
        turns = run.record(state.rollout).turns
        found = read_swapped(run.paths, run.manifest, state.rollout, other.name, turns)
        assert found is not None
        assert list(found.means) == [1, 2, 3]
        dialogue = same_replies.scripted(chat, USERS, other, ends)
        for turn in turns:  # a plain forward pass over the whole conversation, for each reply by itself
            assert turn.ids is not None
            prompt, content = list(dialogue.prompt), list(turn.ids[: len(turn.ids) - (turn.finish is Finish.STOP)])
            if other.name == "kind":
                assert model.card.tokenizer.decode(prompt).count("be kind") == turn.index
            with torch.inference_mode():
                states = model.network(torch.tensor([[*prompt, *content]]), output_hidden_states=True).hidden_states
            parts = spans(turn.segments, Part.ANSWER) if turn.segments else ((0, len(content)),)
            wanted = torch.cat([states[2][0, len(prompt) + a : len(prompt) + b] for a, b in parts]).mean(0).numpy()
            np.testing.assert_allclose(found.means[turn.index][0], wanted, atol=2e-5)
            assert turn.residual is None or not np.allclose(wanted, turn.residual[0], atol=1e-3)
            dialogue = dialogue.after(turn.ids)
    assert drift("runs", "verify", "--json").json["ok"] is True


def test_in_a_run_with_another_pool_the_same_tokens_stand_for_a_reply(tiny_models: dict[str, Path], loaded: dict[str, LoadedModel]) -> None:
    run, model = _generate(tiny_models["llama"], "--pool", "last"), loaded["llama"]
    assert run.manifest.pool == "last"
    chat = chat_for(model.card.tokenizer, "template", date="2026-01-01", options="{}")
    (first, *_) = run.states()
    turn = run.record(first.rollout).turns[0]
    found = read_swapped(run.paths, run.manifest, first.rollout, "kind", run.record(first.rollout).turns)
    assert found is not None
    assert turn.ids is not None
    prompt = same_replies.scripted(chat, USERS, run.manifest.conditions["kind"], frozenset()).prompt
    content = turn.ids[: len(turn.ids) - (turn.finish is Finish.STOP)]
    with torch.inference_mode():
        states = model.network(torch.tensor([[*prompt, *content]]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(found.means[1][0], states[2][0, -1].numpy(), atol=2e-5)
    assert drift("measure", "--same-replies", "--json").json["known"] == 4


def test_what_was_read_is_read_once_and_more_rollouts_add_to_it(tiny_models: dict[str, Path]) -> None:
    run = _generate(tiny_models["olmo3"])
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.paths.swapped_root.rglob("*.means")}
    assert len(files) == 4
    assert drift("measure", "--same-replies", "--json").json["known"] == 4
    _generate(tiny_models["olmo3"], samples=3)
    assert len(list(run.paths.swapped_root.rglob("*.means"))) == 6
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == files
    gone = next(iter(files))
    gone.unlink()
    done = drift("measure", "--same-replies", "--json").json
    assert (done["read"], done["known"]) == (1, 5)
    assert done["rounding"] < 1e-5
    assert gone.read_bytes() == files[gone][0]


def test_without_the_split_stats_says_what_is_missing_and_which_command_adds_it(tiny_models: dict[str, Path]) -> None:
    run = _generate(tiny_models["llama"], "--no-same-replies", samples=3)
    assert not run.paths.swapped_root.exists()
    before = " ".join(drift("stats", "--full").out.split())
    assert f"is not told apart: drift measure {run.paths.run_id} --same-replies" in before
    assert "both orders averaged" not in drift("stats").out
    drift("measure", "--same-replies")
    after = drift("stats", "--full").out
    assert "the words do is not told apart" not in " ".join(after.split())
    assert "presence" in after
    found = drift("stats", "--json").json["verdict"]["presence"]["splits"]
    total = drift("stats", "--json").json["comparisons"][0]["difference"]
    assert found[0]["presence"]["difference"] + found[0]["words"]["difference"] == pytest.approx(total, abs=1e-9)


def test_against_another_condition_needs_its_own_readings(tiny_models: dict[str, Path]) -> None:
    _generate(tiny_models["llama"], "--no-same-replies")
    drift("generate", "--model", str(tiny_models["llama"]), "--transcript", "short.json", "--max-new-tokens", "9", "--samples", "2",
          "--dtype", "float32", "--axis", "odd.safetensors", "--layer", "2", "--condition", "curt", "--system", "be curt",
          "--placement", "user-suffix", "--no-same-replies")  # fmt: skip
    assert drift("measure", "--same-replies", "--json").json["read"] == 8
    assert "--same-replies --against kind" in " ".join(drift("stats", "--against", "kind", "--full").out.split())
    # Of kind's replies under baseline and baseline's under kind all is there; with curt nothing is.
    done = drift("measure", "--same-replies", "--against", "kind", "--json").json
    assert (done["read"], done["known"]) == (4, 4)
    splits = drift("stats", "--against", "kind", "--json").json["verdict"]["presence"]["splits"]
    assert {(one["condition"], one["measure"]) for one in splits} == {(c, m) for c in ("baseline", "curt") for m in ("mean", "change")}
    assert "is not in this run" in drift("measure", "--same-replies", "--against", "none", code=2).err


def test_imported_runs_say_that_the_split_cannot_be_had(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert "was imported" in drift("measure", "--same-replies", code=2).err
    assert "the run was imported" in drift("stats", "--full").out
    assert "does not go with --same-replies" in drift("measure", "--same-replies", "--layer", "3", code=2).err


def test_a_signal_stops_between_readings_and_names_the_command(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = _generate(tiny_models["olmo3"], "--no-same-replies")
    read = same_replies.read_under

    def interrupted(*arguments: object) -> Swapped:
        os.kill(os.getpid(), signal.SIGTERM)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(same_replies, "read_under", interrupted)
    said = drift("measure", "--same-replies", code=75).err
    assert f"1 of 4 readings are on disk. Go on with: drift measure {run.paths.run_id} --same-replies" in said
    monkeypatch.setattr(same_replies, "read_under", read)
    # A run that is complete but for some readings goes on with them.
    assert "3 readings made, 0 known" in drift("resume").err
    assert same_replies.missing(run) == []


@pytest.mark.parametrize("damage", ["byte", "cut", "prompt", "reply"])
def test_damage_and_what_was_measured_on_something_else_is_refused_by_name(damage: str, tiny_models: dict[str, Path]) -> None:
    run = _generate(tiny_models["olmo3"])
    paths = sorted(run.paths.swapped_root.rglob("*.means"))
    data = paths[0].read_bytes()
    if damage == "byte":
        paths[0].write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "cut":
        paths[0].write_bytes(data[:-4])
    else:  # of another rollout: its replies and, in the other folder, its prompt are others
        paths[0].write_bytes(paths[1 if damage == "reply" else 2].read_bytes())
    (finding,) = run.verify()
    assert (finding.file, finding.fatal) == (paths[0], False)
    said = drift("stats", code=1).err
    assert str(paths[0]) in said
    assert "--same-replies" in said


def test_a_model_that_is_not_the_one_that_made_the_run_is_refused(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _generate(tiny_models["olmo3"], "--no-same-replies")
    monkeypatch.setattr(same_replies, "_rounding", lambda *given: 0.5)
    assert "its residual means are 50 % of their norm off those stored" in drift("measure", "--same-replies", code=1).err


# --- the split --------------------------------------------------------------------------------------------------------------------------------------------


def _planted(words: float, presence: tuple[float, float], n: int = 12, fall: float = 0.0) -> tuple[RunTable, Readings]:
    """Two conditions whose replies differ by `words`; the prompt moves the condition's own replies and the baseline's by `presence`."""
    rng = np.random.default_rng(5)
    script = 3 - fall * np.arange(6) / 5
    noise = [rng.normal(0, 0.2, (n, 6)) for _ in "ab"]
    base, other = (script + part - part.mean(axis=0) for part in noise)
    cells = {Cell("talk", "baseline", 0.7): base, Cell("talk", "firm", 0.7): other + words + presence[0]}
    table = RunTable.from_arrays("run", "assistant", cells)
    under_baseline = np.full(table.projections.shape, np.nan)
    under_baseline[n:] = other + words
    under = np.full(table.projections.shape, np.nan)
    under[:n] = base + presence[1]
    return table, Readings("baseline", under_baseline, {"firm": under}, 0)


def _judged(table: RunTable, readings: Readings) -> Answer:
    options = Options(resamples=199)
    return answer(table, analyze(table, options), presence=Presence(splits=split(table, readings, options)))


def test_the_parts_are_what_was_planted_and_add_up() -> None:
    found = split(*_planted(0.7, (0.3, 0.5)), Options())
    mean = next(one for one in found if one.measure is Measure.MEAN)
    assert mean.presence.difference == pytest.approx(0.4)  # both orders averaged
    assert (mean.presence_own, mean.presence_baseline) == (pytest.approx(0.3), pytest.approx(0.5))
    assert mean.words.difference == pytest.approx(0.6)  # (0.7 + 0.5) / 2: words and prompt also do something together
    assert mean.presence.difference + mean.words.difference == pytest.approx(0.7 + 0.3)
    assert mean.share == pytest.approx(0.4)
    assert mean.words.role == "primary"
    change = next(one for one in found if one.measure is Measure.CHANGE)
    assert change.words.difference == pytest.approx(0.0)
    assert change.words.gate == mean.words.p_adjusted


def test_presence_has_an_interval_of_its_own_that_is_paired_over_rollouts() -> None:
    table, readings = _planted(0.0, (0.4, 0.4))
    rng = np.random.default_rng(9)
    table.projections[:] += 5 * rng.normal(size=(24, 1))  # rollouts differ by far more than the prompt does
    levels = table.projections - _planted(0.0, (0.4, 0.4))[0].projections
    readings = Readings("baseline", readings.under_baseline + levels, {"firm": readings.under["firm"] + levels}, 0)
    for values in (readings.under_baseline, readings.under["firm"]):
        values[:] += rng.normal(0, 0.05, (24, 6))
    mean = split(table, readings, Options())[0]
    assert mean.presence.low is not None
    assert mean.presence.high is not None
    assert mean.presence.low < 0.4 < mean.presence.high
    assert mean.presence.high - mean.presence.low < 0.1
    assert mean.words.low is not None
    assert mean.words.high is not None
    assert mean.words.high - mean.words.low > 2


def test_the_verdict_speaks_of_words() -> None:
    only = _judged(*_planted(0.0, (2.0, 2.0), fall=1.0))
    assert only.judgements[1].level is not None
    assert only.judgements[1].level.starred  # the difference is there
    assert only.judgements[1].verdict is Verdict.DID_NOT_HOLD  # but no word of it: it fell as the baseline did
    said = " ".join(sentences(only)).replace("\u00a0", " ")
    assert "No difference in level of words from baseline is shown: +0.00" in said
    assert "the prompt's presence moves the same words by +2.00" in said
    words = _judged(*_planted(2.0, (-2.0, -2.0), fall=1.0))
    assert words.judgements[1].shown_level is not None
    assert words.judgements[1].shown_level.starred
    assert "The level of its words is above that of baseline" in " ".join(sentences(words))


def test_the_one_table_has_presence_and_words_and_no_star_beside_the_whole() -> None:
    found = _judged(*_planted(1.0, (0.5, 0.5)))
    shown = "\n".join(lines(found, 100))
    assert "presence" in shown
    assert "both orders averaged" in shown
    row = next(line for line in shown.splitlines() if line.startswith("firm "))
    assert "+1.50 ± " in row
    assert "+1.00 ± " in row
    assert row.count("*") == 1
    for width in (60, 80, 100, 140):
        made = lines(found, width)
        assert len(made) <= 25
        assert all(len(line) <= width for line in made)
    assert not [text for text in cautions(found) if "not told apart" in text and "presence" in text]


def test_a_reply_that_does_not_fit_the_other_prompts_context_counts_for_neither_part() -> None:
    table, readings = _planted(0.7, (0.3, 0.3))
    readings.under_baseline[12:, 4:] = np.nan
    mean = split(table, readings, Options())[0]
    assert mean.presence.difference == pytest.approx(0.3)
    assert mean.words.difference == pytest.approx(0.7)
    assert mean.turns[4] is None


def test_paired_and_windowed_splits_are_those_of_the_same_replies() -> None:
    table, readings = _planted(0.7, (0.3, 0.3))
    paired = split(RunTable(**{**vars(table), "common_noise": True}), readings, Options(test=Test.PAIRED))[0]
    assert paired.words.difference == pytest.approx(0.7)
    assert paired.words.r is not None
    seen = table.window(2, 4)
    windowed = split(seen, readings.window(table, seen), Options(turns=(2, 4)))[0]
    assert windowed.words.difference == pytest.approx(0.7)
    assert len(windowed.turns) == 3


def test_the_answer_says_how_the_estimate_moves_over_the_neighbouring_third_of_layers(tiny_models: dict[str, Path]) -> None:
    run = _generate(tiny_models["olmo3"], "--layers", "all", samples=3)
    moves = drift("stats", "--json").json["verdict"]["moves"]
    assert [(one["condition"], one["layer"], one["layers"], one["words"], one["units"]) for one in moves] == [
        ("kind", 2, [1, 2], True, "SDs")
    ]
    drift("measure", "--axis", "odd", "--layer", "1")
    for axis, value in (("odd@1", moves[0]["values"][0]), ("odd", moves[0]["values"][1])):
        found = drift("stats", "--axis", axis, "--json").json
        split = next(one for one in found["verdict"]["presence"]["splits"] if one["measure"] == "mean")
        pooled = np.sqrt(np.mean([cell["sd"] ** 2 for cell in found["summary"]["cells"]]))
        assert value == pytest.approx(split["words"]["difference"] / pooled, rel=1e-6)
    shown = " ".join(drift("stats", "--axis", "odd", "--full").out.split())
    assert "Over layers 1 to 2, the third around 2, the words' part of the level goes in SDs: kind " in shown
    assert run.manifest.layers == (0, 1, 2, 3, 4)
