"""`drift stats` as a user meets it: formats, both views of suspect replies, power, and wrong input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from cli import drift

from drift_cli.display import Table
from drift_cli.results.tables.formats import csv_text, latex, markdown
from drift_cli.results.tables.words import number, p_value, ranges

USERS = ["hello", "go on", "and now", "why"]
PROMPT = "Reminder: You are a helpful assistant that answers every question briefly and politely."


@pytest.fixture
def run() -> str:
    """An imported run of two conditions; one reply of `kind` recites its prompt."""
    rng = np.random.default_rng(0)
    for name, prompt, shift in (("x_plain", None, 0.0), ("x_kind", PROMPT, 1.0)):
        projections = rng.normal(shift, 1, (10, 4)) + rng.normal(size=(10, 1))
        conversations = []
        for sample in range(10):
            conversation = []
            for turn, user in enumerate(USERS):
                reply = PROMPT if prompt and (sample, turn) == (3, 2) else f"reply {sample} {turn}"
                conversation.append({"role": "user", "content": user})
                conversation.extend([{"role": "system", "content": prompt}] if prompt else [])
                conversation.append({"role": "assistant", "content": reply})
            conversations.append(conversation)
        fields = {"model": "m", "transcript_source": "script", "condition": name, "n_samples": 10, "temperature": 0.5, "seed": 1}
        document = {**fields, "system_prompt": prompt, "projections": projections.tolist(), "conversations": conversations}
        Path(f"{name}.json").write_text(json.dumps(document))
    return str(drift("import", "x_plain.json", "x_kind.json", "--json").json["run"])


def test_suspect_replies_are_shown_both_ways_and_never_dropped_silently(run):
    shown = drift("stats", "--full", "--resamples", "99").out
    assert "1 replies in 1 rollouts are suspect" in shown
    assert "(without suspect replies)" in shown
    document = drift("stats", "--json", "--resamples", "99").json
    assert document["comparisons"][0]["difference"] != document["without_flagged"]["comparisons"][0]["difference"]
    assert "without_flagged" not in drift("stats", "--json", "--flagged", "include").json
    assert drift("stats", "--json", "--flagged", "exclude").json["flagged"] == "exclude"


def test_scope_and_provenance_stand_with_the_numbers(run):
    shown = drift("stats", "--full", "--flagged", "include", "--per-turn").out
    assert shown.count("not other scripts.") >= 5
    assert "seed 0" in shown
    assert "statsmodels" in shown
    assert "NaN" not in shown


def test_csv_has_every_number_with_its_method_seed_and_versions(run):
    drift("stats", "-o", "all.csv")
    records = list(csv.DictReader(io.StringIO(Path("all.csv").read_text(encoding="utf-8"))))
    assert {r["table"] for r in records} == {"cells", "cell_turns", "cell_drift", "comparisons", "drift", "turns"}
    assert {r["flagged"] for r in records} == {"include", "exclude"}
    assert all(r["seed"] == "0" and "scipy" in r["versions"] and r["run"] == run and r["scope"] for r in records)
    assert all(r["method"] for r in records if r["table"] != "cell_drift")
    given = drift("stats", "--json").json["comparisons"][0]["difference"]
    assert float(next(r["difference"] for r in records if r["table"] == "comparisons")) == given


def test_markdown_and_latex_are_whole_tables(run):
    made = drift("stats", "--format", "markdown").out
    lines = [line for line in made.splitlines() if line.startswith("|")]
    assert "| x\\_kind − x\\_plain |" in made
    assert all(line.count("|") - line.count("\\|") >= 7 for line in lines[:4])
    drift("stats", "-o", "all.tex")
    text = Path("all.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") >= 4
    assert text.isascii()


def test_characters_that_mean_something_in_a_format_are_escaped():
    table = Table("a_b 95 %", ["x & y", "n>"], [["p < .05 | −1.5", "-2"]], ["≤ 5 $"])
    assert r"a\_b 95 \%" in latex(table)
    assert r"x \& y & n \\" in latex(table)
    assert r"p $<$ .05 | $-$1.5 & $-$2 \\" in latex(table)
    assert r"| p \< .05 \| −1.5 | -2 |" in markdown(table)
    assert csv_text([{"a": 'x,"y"', "b": None}, {"c": 1.5}]).splitlines() == ["a,b,c", '"x,""y""",,', ",,1.5"]


def test_power_says_how_to_go_on(run):
    shown = drift("stats", "--power", "--half-width", "0.2").out
    assert "detectable difference" in shown
    assert "drift generate --samples" in shown
    document = drift("stats", "--power", "--json").json
    assert [at["n"] for at in document["power"][0]["sizes"]] == [10, 16, 32, 64, 128, 256]
    assert "needed" in {r["table"] for r in csv.DictReader(io.StringIO(drift("stats", "--power", "--format", "csv").out))}


def test_turns_that_count_can_be_chosen(run):
    document = drift("stats", "--turns", "2-3", "--json").json
    assert [turn["turn"] for turn in document["turns"][0]["turns"]] == [2, 3]
    assert [turn["turn"] for turn in document["summary"]["cells"][0]["turns"]] == [2, 3]


def test_the_answer_fits_a_screen_at_any_width(run, monkeypatch):
    whole = drift("stats").out
    for width in (60, 80, 100, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = drift("stats").out.splitlines()
        assert len(lines) <= 25
        assert max(map(len, lines)) <= width
    monkeypatch.setenv("COLUMNS", "100")
    assert drift("stats").out == whole  # what a pipe without COLUMNS gets
    assert "x_kind: " in whole
    assert "--full" in whole
    assert "One transcript (script)" in whole


def test_nothing_folds_inside_a_number_at_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = drift("stats", "--full", "--turns-table").out.splitlines()
    study = drift("stats", "--json").json
    words = {word for line in lines for word in line.split()}
    for row in (*study["comparisons"], *study["drift"]):
        for value in (row["low"], row["high"]):
            text = number(value, sign=True)
            assert f"[{text}," in words or f"{text}]" in words
        assert number(row["difference"], sign=True) in words


def test_parts_of_the_tables_can_be_asked_for(run):
    assert "Differences of drift" not in drift("stats").out
    assert "Differences of drift" in drift("stats", "--measures").out
    assert "Every turn: mean" in drift("stats", "--turns-table").out


def test_labels_of_a_window_name_its_first_turn(run):
    for option in ("--full", "--measures"):
        shown = drift("stats", "--turns", "2-4", option).out
        assert "area from turn 2" in shown
        assert "change from turn 2" in shown
        assert "from turn 1" not in shown
    assert "There at turn 2 already" in drift("stats", "--turns", "2-4", "--full").out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--test", "anova"), "'welch', 'bootstrap', 'permutation', 'paired', 'mixed'"),
        (("--primary", "area"), "--primary change"),
        (("--correction", "x"), "'maxt', 'holm', 'bh', 'none'"),
        (("--format", "x"), "'table', 'csv', 'markdown', 'latex'"),
        (("--output", "x.doc"), ".csv, .md or .tex"),
        (("--turns", "5-2"), "--turns 1-14"),
        (("--turns", "1-9"), "have turns 1 to 4"),
        (("--against", "x"), "x_plain, x_kind"),
        (("--half-width", "1"), "--power"),
        (("--power", "--half-width", "-1"), "positive"),
        (("--equivalence", "0"), "positive"),
        (("--test", "paired"), "not recorded"),
        (("--test", "mixed"), "two transcripts"),
    ],
)
def test_wrong_input_is_a_usage_error_that_says_what_would_be_right(run, arguments, says):
    assert says in drift("stats", *arguments, code=2).err


def test_numbers_for_reading():
    assert (number(None), number(0.0), number(1.23456, sign=True), number(0.00001234)) == ("—", "0.0000", "+1.2346", "1.2e-05")
    assert (p_value(None), p_value(0.00005), p_value(0.0294), p_value(1.0)) == ("—", "< .0001", ".0294", "1")
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
