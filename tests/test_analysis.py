"""Tables, summaries and flags: against reference values, the seed's printed results, and every degenerate input."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_json import assert_plain
from scipy import stats

from drift_cli.analysis.flags import Flag, Recital, flag_reply, is_empty, recitals, repeated_share, words_of
from drift_cli.analysis.summary import moments, plain, summarize
from drift_cli.analysis.table import Group, RunTable, load
from drift_cli.axis import Axis
from drift_cli.errors import StoreError, UsageError
from drift_cli.spec import Cell, ChatFormat, Condition, Finish, Rollout, RunSpec, Sampling, Transcript, Turn
from drift_cli.store.epoch import Epoch
from drift_cli.store.log import End
from drift_cli.store.manifest import AxisEntry, CellPlan, Manifest
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

SEED = os.environ.get("DRIFT_SEED_DATA")
needs_seed = pytest.mark.skipif(not SEED, reason="DRIFT_SEED_DATA is not set")
SEED_FILES = {"baseline": "003b_baseline.json", "simple": "003b_simple_sysprompt.json", "complex": "003b_complex_sysprompt.json"}


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _cell(condition: str, transcript: str = "script", temperature: float = 0.5) -> Cell:
    return Cell(transcript, condition, temperature)


def _table(**arrays: np.ndarray) -> RunTable:
    return RunTable.from_arrays(
        "run-01234567", "assistant", {_cell(name): np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    )


# --- the seed -----------------------------------------------------------------------------------------------------------------------------------------


def _seed_json(name: str) -> dict[str, object]:
    return json.loads((Path(SEED or "") / SEED_FILES[name]).read_text(encoding="utf-8"))


def _seed_table() -> RunTable:
    return _table(**{name: np.array(_seed_json(name)["projections"]) for name in SEED_FILES})


def _printed() -> str:
    return (Path(SEED or "") / "003b_results.md").read_text(encoding="utf-8")


@needs_seed
def test_seed_summary_is_reproduced_to_the_printed_digits():
    rows = re.findall(r"^\| (\w+) [^|]*\| ([+-]\d+\.\d\d) \| ±(\d+\.\d\d) \|$", _printed(), re.MULTILINE)
    assert [name for name, _, _ in rows] == ["Baseline", "Simple", "Complex"]
    cells = {cell.condition: cell for cell in summarize(_seed_table(), ddof=0).cells}
    for name, mean, sem in rows:
        cell = cells[name.lower()]
        assert (f"{cell.mean:+.2f}", f"{cell.sem:.2f}") == (mean, sem)
        assert cell.grand_mean == pytest.approx(cell.mean)


@needs_seed
def test_seed_turns_are_reproduced_to_the_printed_digits():
    rows = re.findall(r"^ *(\d+) +(?:-?\d+\.\d+|---) +(.*±.*)$", _printed(), re.MULTILINE)
    assert [int(turn) for turn, _ in rows] == list(range(1, 19))
    turns = {cell.condition: cell.turns for cell in summarize(_seed_table(), ddof=0).cells}
    for turn, entries in rows:
        printed = re.findall(r"(-?\d+\.\d{4}) ± (\d+\.\d{4})", entries)
        found = [(f"{t.mean:.4f}", f"{t.sem:.4f}") for t in (turns[name][int(turn) - 1] for name in SEED_FILES)]
        assert printed == found


@needs_seed
def test_seed_replies_that_continue_the_system_prompt_are_flagged():
    flagged = {}
    for name in SEED_FILES:
        data = _seed_json(name)
        prompts = recitals([data["system_prompt"]])
        flagged[name] = {
            (sample, turn): flags
            for sample, conversation in enumerate(data["conversations"])
            for turn, reply in enumerate((m["content"] for m in conversation if m["role"] == "assistant"), start=1)
            if (flags := flag_reply(reply, Finish.STOP, prompts))
        }
    assert flagged["baseline"] == flagged["simple"] == {}
    late = {(sample, turn) for sample in (5, 8, 13) for turn in (16, 17, 18)}
    assert flagged["complex"] == dict.fromkeys(late, frozenset({Flag.RECITING}))


# --- summary ------------------------------------------------------------------------------------------------------------------------------------------


def test_intervals_are_scipys_and_stand_on_the_sample_sd():
    values = np.random.default_rng(3).normal(2, 1, (9, 4))
    for ddof in (0, 1):
        cell = summarize(_table(a=values), ddof=ddof, level=0.9).cells[0]
        means = values.mean(axis=1)
        assert (cell.mean, cell.sd, cell.sem) == pytest.approx((means.mean(), means.std(ddof=ddof), means.std(ddof=ddof) / 3))
        assert (cell.low, cell.high) == pytest.approx(stats.t.interval(0.9, 8, loc=means.mean(), scale=stats.sem(means)))
        for column, turn in zip(values.T, cell.turns, strict=True):
            assert (turn.n, turn.mean, turn.sem) == pytest.approx((9, column.mean(), column.std(ddof=ddof) / 3))
            assert (turn.low, turn.high) == pytest.approx(stats.t.interval(0.9, 8, loc=column.mean(), scale=stats.sem(column)))


def test_default_is_the_sample_standard_deviation():
    summary = summarize(_table(a=np.array([[1.0], [3.0]])))
    assert (summary.ddof, summary.cells[0].sd) == (1, pytest.approx(math.sqrt(2)))


def test_a_rollout_that_ended_early_counts_at_the_turns_it_has_and_is_noted():
    cell = summarize(_table(a=np.array([[1.0, 3.0], [5.0, np.nan], [np.nan, np.nan]]))).cells[0]
    assert (cell.planned, cell.n, cell.early, cell.replies) == (3, 2, 1, 3)
    assert (cell.mean, cell.grand_mean) == (3.0, 3.0)  # turn 2, which one rollout has, does not count
    assert [turn.n for turn in cell.turns] == [2, 1]
    assert "1 of 2 rollouts lack turns" in (cell.note or "")
    assert_plain(cell)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([[1.0, 2.0]], "One rollout"),
        ([[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]], "same mean"),
        ([[np.nan, np.nan]], "No turn"),
        (np.empty((0, 2)), "No turn"),
    ],
)
def test_degenerate_cells_have_a_sentence_and_no_interval(values, note):
    cell = summarize(_table(a=np.array(values))).cells[0]
    assert note in (cell.note or "")
    assert (cell.low, cell.high) == (None, None)
    assert all((turn.low, turn.high) == (None, None) for turn in cell.turns)
    assert_plain(cell)


def test_shorter_transcripts_do_not_count_as_ended_early():
    arrays = {_cell("a", "short"): np.ones((2, 3)), _cell("a", "long"): np.ones((2, 5))}
    summary = summarize(RunTable.from_arrays("run", "axis", arrays))
    assert [(cell.early, len(cell.turns)) for cell in summary.cells] == [(0, 3), (0, 5)]
    assert summary.scope.startswith("2 transcripts")


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_rollout_has_no_spread_whatever_ddof(ddof):
    cell = summarize(_table(a=np.array([[1.0, 2.0]])), ddof=ddof).cells[0]
    assert (cell.sd, cell.sem, cell.turns[0].sd, cell.turns[0].sem) == (None, None, None, None)


def test_scope_says_what_one_transcript_supports():
    assert "One transcript (script)" in summarize(_table(a=np.ones((2, 2)))).scope


def test_moments_of_a_constant_column_have_no_rounding_noise():
    found = moments(np.full((7, 1), 0.1))
    assert (found.sd[0], found.sem[0]) == (0.0, 0.0)
    assert np.isnan(found.low[0])


def test_plain_turns_nan_into_none():
    assert (plain(np.float64("nan")), plain(math.inf), plain(1)) == (None, None, 1.0)


# --- flags --------------------------------------------------------------------------------------------------------------------------------------------

PROMPT = "You are a careful assistant. Guidelines: Tone: Stay polite at all times. Honesty: If you do not know the answer, admit it."


@pytest.mark.parametrize(
    "reply",
    [
        "times. Honesty: If you do not know the answer, admit it.",
        "As I was told: GUIDELINES - tone: *stay* polite at all times; honesty, if you like.",
        "stay\npolite at all times.\n\n**Honesty:** if you",
    ],
)
def test_long_verbatim_run_of_the_prompt_is_reciting(reply):
    assert Flag.RECITING in flag_reply(reply, Finish.STOP, recitals([PROMPT]))


@pytest.mark.parametrize("reply", ["If you do not know the thing, admit it.", "I will stay polite at all times.", ""])
def test_shorter_runs_are_not_reciting(reply):
    assert Flag.RECITING not in flag_reply(reply, Finish.STOP, recitals([PROMPT]))


def test_runs_of_seven_and_eight_words_lie_on_either_side():
    words = words_of(PROMPT)
    prompts = recitals([PROMPT])
    assert Flag.RECITING not in flag_reply(" ".join(["well", *words[3:10], "well"]), Finish.STOP, prompts)
    assert Flag.RECITING in flag_reply(" ".join(["well", *words[3:11], "well"]), Finish.STOP, prompts)


def test_short_prompt_is_recited_as_a_whole_or_not_at_all():
    prompts = recitals(["Reminder: You are a helpful assistant."])
    assert flag_reply("Sure. reminder: you are a HELPFUL assistant", Finish.STOP, prompts) == {Flag.RECITING}
    assert not flag_reply("You are a helpful assistant, I am told.", Finish.STOP, prompts)
    assert not flag_reply("Be kind.", Finish.STOP, recitals(["Be kind."]))
    assert not Recital.of("Be kind.").runs


def test_conditions_without_a_prompt_recite_nothing():
    assert recitals([None, ""]) == ()
    assert not flag_reply(PROMPT, Finish.STOP, recitals([None]))


def test_characters_are_the_words_of_scripts_without_spaces():
    prompt = "你是一个有帮助的助手，请始终保持礼貌并且诚实地回答用户提出的问题。"
    assert flag_reply("请始终保持礼貌，并且诚实地回答用户提出的问题", Finish.STOP, recitals([prompt])) == {Flag.RECITING}
    assert not flag_reply("作为一个有帮助的助手，我很乐意。", Finish.STOP, recitals([prompt]))


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\u200e", "\u00a0", "\x00"])
def test_invisible_replies_are_empty(text):
    assert is_empty(text)
    assert Flag.EMPTY in flag_reply(text, Finish.STOP)


@pytest.mark.parametrize("text", [".", "ok", "💛", "好"])
def test_visible_replies_are_not_empty(text):
    assert not is_empty(text)


ORDINARY = (
    "I hear you. Loops and routines can feel heavy, and it helps to name what is going on. You could write down what happened, "
    "then talk with somebody you trust; you could also take a walk, drink some water, and come back to it later with fresh eyes."
)


@pytest.mark.parametrize(
    "text",
    ["I am here for you. " * 12, ORDINARY + " I am here for you." * 20, "ha" * 40, "!" * 60, "好的，我在这里。" * 10],
)
def test_loops_that_fill_most_of_a_reply_are_repeated(text):
    assert Flag.REPEATED in flag_reply(text, Finish.LENGTH)


@pytest.mark.parametrize(
    "text", [ORDINARY, "No. No. No.", "Hahaha!", ORDINARY + " I am here for you. I am here for you. I am here for you.", "- yes\n- no"]
)
def test_ordinary_emphasis_is_not_repeated(text):
    assert repeated_share(text) < 0.5
    assert Flag.REPEATED not in flag_reply(text, Finish.STOP)


def test_finish_reason_length_is_flagged_but_not_suspect():
    assert flag_reply("a whole answer", Finish.LENGTH) == {Flag.LENGTH}
    table = _table(a=np.ones((2, 3)))
    table.flags.length[0, 0] = table.flags.empty[1, 1] = True
    counts = table.flags.counts()
    assert (counts.length, counts.empty, counts.suspect) == (1, 1, 1)


def test_summary_counts_flags_per_cell():
    table = _table(a=np.ones((2, 3)), b=np.ones((2, 3)))
    table.flags.reciting[2:, 2] = True
    assert [cell.flagged.reciting for cell in summarize(table).cells] == [0, 2]


# --- table --------------------------------------------------------------------------------------------------------------------------------------------


def test_table_selects_by_condition_transcript_and_temperature():
    arrays = {_cell(name, "x", t): np.full((2, 2), i) for i, (name, t) in enumerate((n, t) for n in ("a", "b") for t in (0.0, 1.0))}
    table = RunTable.from_arrays("run", "axis", arrays)
    assert table.conditions == ("a", "b")
    assert table.groups == (Group("x", 0.0), Group("x", 1.0))
    np.testing.assert_array_equal(table.of("a"), [[0, 0], [0, 0], [1, 1], [1, 1]])
    np.testing.assert_array_equal(table.of("b", "x", 0.0), [[2, 2], [2, 2]])
    with pytest.raises(UsageError, match=r"no cell x/b/T0\.5"):
        table.of("b", "x", 0.5)


# --- load ---------------------------------------------------------------------------------------------------------------------------------------------

A, B = _cell("a"), _cell("b")
LAYERS, WIDTH = (3, 5), 4


def _turn(index: int, **fields: object) -> Turn:
    residual = np.random.default_rng(index).normal(size=(len(LAYERS), WIDTH)).astype(np.float32)
    made = {"text": f"reply {index}", "finish": Finish.STOP, "projections": {"assistant": float(index)}, "residual": residual, **fields}
    return Turn(index=index, ids=(1, 2), prompt_length=3, prompt_hash="0" * 32, **made)  # type: ignore[arg-type]


def _manifest(**fields: object) -> Manifest:
    spec = RunSpec("test", "model", "main", "float32", ChatFormat("template", "0" * 64), Sampling(), max_new_tokens=8, seed=1)
    made = {
        "layers": LAYERS,
        "conditions": {"a": Condition("a"), "b": Condition("b", PROMPT)},
        "transcripts": {"script": Transcript("script", ("one", "two", "three"))},
        "cells": (CellPlan(A, 2), CellPlan(B, 1)),
        "axes": (AxisEntry("assistant", 5, "0" * 64),),
        "epochs": (Epoch({"drift": "0"}, "cpu", "reference", 1),),
        **fields,
    }
    return Manifest(spec=spec, **made)  # type: ignore[arg-type]


def _run(folder: Path, turns: dict[Rollout, list[Turn]], ends: dict[Rollout, End] | None = None, **fields: object) -> Run:
    run = Run.create(Store(folder / "checkpoints"), _manifest(**fields))
    for rollout, replies in turns.items():
        with run.writer(rollout) as log:
            for turn in replies:
                log.append(turn)
            if ends and rollout in ends:
                log.end(ends[rollout])
    return run


def test_table_has_every_planned_rollout_and_only_committed_turns(tmp_path):
    table = load(_run(tmp_path, {Rollout(A, 1): [_turn(1), _turn(2, finish=Finish.LENGTH)], Rollout(B, 0): [_turn(1)]}))
    np.testing.assert_array_equal(table.projections, [[np.nan] * 3, [1, 2, np.nan], [1, np.nan, np.nan]])
    np.testing.assert_array_equal(table.finish, [["", "", ""], ["stop", "length", ""], ["stop", "", ""]])
    assert (table.cells, list(table.cell_of), list(table.sample), list(table.planned)) == ((A, B), [0, 0, 1], [0, 1, 0], [3, 3, 3])
    assert (table.axis, table.layer, table.conditions) == ("assistant", 5, ("a", "b"))
    assert table.flags.length.sum() == 1
    assert table.flags.length[1, 1]
    cells = summarize(table).cells
    assert [(cell.planned, cell.n, cell.early) for cell in cells] == [(2, 1, 1), (1, 1, 1)]


def test_reciting_is_judged_by_the_conditions_own_prompt_and_the_templates(tmp_path):
    recited = [_turn(1, text=PROMPT)]
    turns = {Rollout(A, 0): recited, Rollout(B, 0): recited}
    assert load(_run(tmp_path / "own", turns)).flags.reciting[:, 0].tolist() == [False, False, True]
    added = load(_run(tmp_path / "added", turns, template_adds={"a": PROMPT}))
    assert added.flags.reciting[:, 0].tolist() == [True, False, True]


def test_rollout_that_ended_for_context_is_flagged_on_its_first_missing_turn(tmp_path):
    rollouts = (Rollout(A, 0), Rollout(A, 1))
    ends = {rollouts[0]: End(Finish.CONTEXT, 2, 900), rollouts[1]: End(Finish.CONTEXT, 1, 900)}
    table = load(_run(tmp_path, {rollouts[0]: [_turn(1)], rollouts[1]: []}, ends))
    np.testing.assert_array_equal(table.flags.context, [[False, True, False], [True, False, False], [False] * 3])


def test_rollout_that_ended_for_its_template_is_flagged_on_its_first_missing_turn_and_suspect(tmp_path):
    rollouts = (Rollout(A, 0), Rollout(A, 1))
    ends = {rollouts[0]: End(Finish.TEMPLATE, 2, None), rollouts[1]: End(Finish.CONTEXT, 1, 900)}
    table = load(_run(tmp_path, {rollouts[0]: [_turn(1)], rollouts[1]: []}, ends))
    np.testing.assert_array_equal(table.flags.template, [[False, True, False], [False] * 3, [False] * 3])
    np.testing.assert_array_equal(table.flags.suspect, [[False, True, False], [True, False, False], [False] * 3])
    assert (table.flags.counts().template, table.flags.counts().context) == (1, 1)


def _measured(tmp_path: Path, layers: list[int], entry_layer: int) -> tuple[Run, np.ndarray]:
    """A run with two committed turns, measured later on an axis whose file has these layers; and the axis's rows."""
    run = _run(tmp_path, {Rollout(B, 0): [_turn(1), _turn(2)]})
    rows = np.random.default_rng(12).normal(size=(len(layers), WIDTH))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    axis = Axis("later", tuple(layers), rows)
    axis.save(run.paths.axis("later"))
    run.update(replace(run.manifest, measured=(AxisEntry("later", entry_layer, axis.digest),)))
    return Run.open(Store(tmp_path / "checkpoints"), run.paths.run_id), rows


def test_measured_axis_is_projected_from_the_stored_residuals(tmp_path):
    run, rows = _measured(tmp_path, layers=[1, 5, 9], entry_layer=5)
    table = load(run, "later")
    # To the bit what would have been committed with the turns, had the run had the axis then.
    expected = [np.dot(np.float64(_turn(i).residual[1]), np.float64(rows[1])) for i in (1, 2)]
    np.testing.assert_array_equal(table.projections[2], [*expected, np.nan])
    assert (table.axis, table.layer) == ("later", 5)
    assert load(run, "assistant").projections[2].tolist()[:2] == [1.0, 2.0]


def test_a_copy_of_an_axis_that_is_another_one_is_refused(tmp_path):
    run, rows = _measured(tmp_path, layers=[3], entry_layer=3)
    Axis("later", (3,), -rows).save(run.paths.axis("later"))
    with pytest.raises(StoreError, match=r"later\.safetensors is not the axis that the run was measured on"):
        load(run, "later")


def test_ambiguous_axis_is_refused_with_the_names(tmp_path):
    run, _ = _measured(tmp_path, layers=[3], entry_layer=3)
    with pytest.raises(StoreError, match=rf"2 axes: assistant, later\n.*drift measure {run.paths.run_id} --axis FILE"):
        load(run)
    with pytest.raises(StoreError, match=r"no axis 'other'\nIt has: assistant, later"):
        load(run, "other")


def test_run_without_an_axis_is_refused_with_the_command(tmp_path):
    run = _run(tmp_path, {Rollout(A, 0): [_turn(1, projections={})]}, axes=())
    with pytest.raises(
        StoreError, match=rf"has no axis.*\n.*drift axis build --model model --name model && drift measure {run.paths.run_id} --axis model"
    ):
        load(run)


def test_axis_at_a_layer_that_was_not_stored_is_refused(tmp_path):
    run, _ = _measured(tmp_path, layers=[4], entry_layer=4)
    with pytest.raises(StoreError, match=r"at layer 4, but run .* stored layers: 3, 5"):
        load(run, "later")


def test_axis_file_without_the_layer_or_unreadable_is_refused(tmp_path):
    run, _ = _measured(tmp_path, layers=[9], entry_layer=3)
    with pytest.raises(StoreError, match=r"later\.safetensors has layers 9, not layer 3"):
        load(run, "later")
    run.paths.axis("later").write_bytes(b"not an axis")
    with pytest.raises(StoreError, match=r"later\.safetensors cannot be read"):
        load(run, "later")
