"""What others add to drift: every block of the pages that say how is executed, and installed packages are found, or named where they cannot be used."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli import drift
from report_run import make_run

import drift_cli
from drift_cli import plugins
from drift_cli.analysis import measure as registry
from drift_cli.analysis.looked import looked, study_as_of
from drift_cli.analysis.looks import Looking, seen
from drift_cli.analysis.measures import sample
from drift_cli.analysis.presence import Presence
from drift_cli.analysis.results import Options
from drift_cli.analysis.study import analyze
from drift_cli.analysis.table import RunTable
from drift_cli.errors import DriftError, UsageError
from drift_cli.interchange import exporters
from drift_cli.spec import Cell
from drift_cli.store.looks import Look, now

DOCS = Path(drift_cli.__file__).parents[1] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def nothing_added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers or installs is gone after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(exporters, "_registered", {})
    plugins.added.cache_clear()
    yield
    plugins.added.cache_clear()


@pytest.mark.parametrize("page", ["python.md", "extending.md"])
def test_every_block_of_a_page_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = list(_BLOCK.finditer(text))
    assert len(blocks) >= 5
    names: dict[str, Any] = {"__name__": page}
    for block in blocks:
        line = text[: block.start()].count("\n") + 2
        exec(compile("\n" * (line - 1) + block[1], page, "exec"), names)
    assert capsys.readouterr().out


_COUNT = count()
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes an installed package of some code, with entry points."""

    def make(code: str, entries: str) -> None:
        name = f"addition_{next(_COUNT)}"
        site = tmp_path / f"site-{name}"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(code, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(entries.replace("PACKAGE", name), encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        plugins.added.cache_clear()

    return make


WORDS = """
import drift_cli
words = drift_cli.ReplyMeasure("words", "words per reply", lambda reply: len(reply.text.split()))
lowest = drift_cli.RolloutMeasure("lowest", "lowest turn", of=lambda values, turns: values.min())
def write(run, path):
    path.write_text("\\n".join(run.turns()["reply"].dropna()), encoding="utf-8")
texts = drift_cli.Exporter("texts", "replies only", write, ".txt")
"""
ENTRIES = "[drift.measures]\nwords = PACKAGE:words\nlowest = PACKAGE:lowest\n[drift.exporters]\ntexts = PACKAGE:texts\n"


def say(condition: str, sample: int, turn: int) -> str:
    return " ".join(["word"] * (turn + sample + 3 * (condition == "simple")))


def test_an_installed_measure_appears_in_stats_plot_and_the_report(install: Install, tmp_path: Path) -> None:
    run = make_run(tmp_path, text=say)
    before = drift("stats", "--json").json
    install(WORDS, ENTRIES)
    after = drift("stats", "--json").json
    for field in ("summary", "comparisons", "drift", "turns", "provenance"):
        assert after[field] == before[field], f"{field} depends on what is installed"
    assert {row["measure"] for row in after["added"]} == {"lowest"}
    mine = {row["comparison"]["a"]: row for row in after["reply_measures"] if row["name"] == "words"}
    assert mine["simple"]["mean_a"] - mine["simple"]["mean_b"] == pytest.approx(3.0)
    assert mine["simple"]["comparison"]["difference"] == pytest.approx(3.0)
    shown = drift("stats", "--full").out
    assert "words per reply" in shown
    assert "lowest turn" in shown
    assert "words per reply" in drift("stats", "--measures").out
    of_words = drift("stats", "--reply-measure", "words", "--json").json
    assert of_words["summary"]["cells"][0]["turns"][0]["mean"] == pytest.approx(1 + 1.5)
    assert of_words["provenance"]["quantity"] == "words per reply"
    first = drift("stats", "--reply-measure", "words").out.splitlines()[0]
    assert "words per reply" in first
    assert "projection" not in first
    drift("plot", "--reply-measure", "words", "-o", "words.svg")
    assert "words" in Path("words.svg").read_text(encoding="utf-8")
    drift("plot", "--kind", "forest", "--rollout-measure", "lowest", "-o", "lowest.svg")
    drift("plot", "--reply-measure", "words", "--kind", "layers", code=1)
    drift("report", "-o", "report.html")
    page = drift_cli.Run(run).report("again.html").read_text(encoding="utf-8")
    assert page
    from drift_cli.results.pictures import Picture
    from drift_cli.results.report.document import document
    from drift_cli.results.report.gather import gather

    tables = [table["title"] for table in document(gather(Picture(run)))["tables"]]
    assert any("measures of replies" in title for title in tables)
    assert any("added measures" in title for title in tables)
    assert document(gather(Picture(run, reply_measure="words")))["quantity"] == "words per reply"


def test_a_measure_that_carries_the_verdict_is_primary(install: Install, tmp_path: Path) -> None:
    make_run(tmp_path)
    install(WORDS, ENTRIES)
    said = drift("stats", "--primary", "lowest", "--json").json
    roles = {(row["measure"], row["role"]) for row in (*said["added"], *said["comparisons"]) if row["b"] == "baseline"}
    assert roles == {("lowest", "primary"), ("mean", "secondary")}
    assert said["verdict"]["primary"] == "lowest"


def test_an_installed_format_is_written(install: Install, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    install(WORDS, ENTRIES)
    written = drift("export", "--format", "texts", "--json").json["files"]
    assert Path(written[0]).name == f"{run.paths.run_id}-texts.txt"
    assert len(Path(written[0]).read_text(encoding="utf-8").splitlines()) == 59
    assert "seed-json, assistant-axis, csv, parquet, texts" in drift("export", "--format", "nothing", code=2).err


BROKEN = "[drift.measures]\nbroken = PACKAGE:broken\n[drift.exporters]\nbroken = PACKAGE:broken\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
        ("", "AttributeError"),
        ("broken = 3", "int is no"),
        ("import drift_cli\nbroken = drift_cli.ReplyMeasure('mean', 'mine', len)", "another of that name"),
    ],
)
def test_a_package_that_cannot_be_used_is_named_and_stops_nothing_else(code: str, said: str, install: Install, tmp_path: Path) -> None:
    make_run(tmp_path)
    install(WORDS, ENTRIES)
    install(code, BROKEN)
    result = drift("stats", "--reply-measure", "words", "--json")
    assert result.json["provenance"]["quantity"] == "words per reply"
    (line,) = [line for line in result.err.splitlines() if "broken" in line]
    assert said in line
    assert "left out" in line
    drift("export", "--format", "csv")
    assert "broken" in drift("stats", "--reply-measure", "broken", code=2).err


def test_names_that_are_taken_or_unknown_are_refused(tmp_path: Path) -> None:
    run = drift_cli.Run(make_run(tmp_path))
    with pytest.raises(UsageError, match="measure slope is drift's own"):
        drift_cli.reply_measure("slope", "x")(lambda reply: 1.0)
    with pytest.raises(UsageError, match="format csv is drift's own"):
        drift_cli.exporter("csv", "x")(lambda run, path: None)
    with pytest.raises(UsageError, match="no measure of replies 'words'"):
        run.compare(reply_measure="words")
    drift_cli.reply_measure("words", "x")(lambda reply: 1.0)
    with pytest.raises(UsageError, match="no measure of replies 'word'\nDid you mean 'words'"):
        run.plot(reply_measure="word")
    with pytest.raises(UsageError, match="either weights or a function"):
        drift_cli.RolloutMeasure("none", "x")


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (lambda reply: 1 / 0, "measure odd failed on talk/baseline/T0.7/0000 turn 1: ZeroDivisionError"),
        (lambda reply: float("inf"), "measure odd gave inf"),
        (lambda reply: "three", "measure odd gave 'three'"),
    ],
)
def test_a_measure_that_fails_names_the_reply(gives: Any, said: str, tmp_path: Path) -> None:
    run = drift_cli.Run(make_run(tmp_path))
    drift_cli.reply_measure("odd", "odd")(gives)
    with pytest.raises(DriftError, match=re.escape(said)):
        run.compare(reply_measure="odd")


def test_a_reply_without_a_number_is_a_missing_turn_and_never_0(tmp_path: Path) -> None:
    run = drift_cli.Run(make_run(tmp_path))
    drift_cli.reply_measure("later", "later")(lambda reply: None if reply.turn == 1 else reply.turn)
    table = run.compare(reply_measure="later").judged.table
    assert np.isnan(table.projections[:, 0]).all()
    assert (table.projections[0, 1:] == [2, 3, 4, 5]).all()


def test_a_measure_that_is_not_linear_leaves_out_rollouts_that_lack_turns_and_says_so(tmp_path: Path) -> None:
    run = drift_cli.Run(make_run(tmp_path))
    drift_cli.rollout_measure("lowest", "lowest")(lambda values, turns: values.min())
    lowest = run.rollouts().set_index(["condition", "sample"])["lowest"]
    projections = run.projections().droplevel(["transcript", "temperature"])
    assert lowest.drop(("complex", 3)).tolist() == projections.drop(("complex", 3)).min(axis=1).tolist()
    assert np.isnan(lowest["complex", 3])
    row = run.compare("complex", test="welch").table.set_index("measure").loc["lowest"]
    assert (row["n"], row["n_baseline"]) == (3, 4)
    assert "those without a turn that counts are left out" in row["note"]


def test_copies_are_one_observation_of_a_measure_that_is_not_linear() -> None:
    """Their mean is that of all rollouts; how much they vary is that of clusters, as for linear measures."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 4))[[0, 0, 0, 1, 2]]
    table = RunTable.from_arrays("r", "a", {Cell("t", "c", 1.0): values})
    same = np.array([7, 7, 7, 8, 9], dtype=np.uint64)[:, None].repeat(4, axis=1)
    replies = SimpleNamespace(
        copies=lambda rows: np.unique(same[:, 0], return_index=True)[1][np.unique(same[:, 0], return_inverse=True)[1]]
    )
    object.__setattr__(table, "replies", replies)
    drift_cli.rollout_measure("lowest", "lowest")(lambda values, turns: values.min())
    register_mean = drift_cli.rollout_measure("again", "the mean, as a function")(lambda values, turns: values.mean())
    of = sample(table, table.cells[0])
    assert len(of.own["lowest"]) == 3
    assert of.own["lowest"].mean() == pytest.approx(values.min(axis=1).mean())
    np.testing.assert_allclose(of.own[register_mean.name], of.own["mean"])


def test_added_measures_change_no_other_number_and_are_a_family_of_their_own() -> None:
    rng = np.random.default_rng(5)
    arrays = {Cell("t", name, 1.0): rng.normal(shift, 1, size=(8, 6)) for name, shift in (("a", 0.0), ("b", 1.0), ("c", 0.3))}
    table = RunTable.from_arrays("r", "a", arrays)
    before = analyze(table)
    drift_cli.rollout_measure("lowest", "lowest")(lambda values, turns: values.min())
    drift_cli.rollout_measure("spread", "spread")(lambda values, turns: values.max() - values.min())
    after = analyze(table)
    assert (after.comparisons, after.drift, after.turns, after.gate) == (before.comparisons, before.drift, before.turns, before.gate)
    assert {row.measure for row in after.added} == {"lowest", "spread"}
    assert len(after.added) == 6
    p = sorted(row.p for row in after.added if row.p is not None)
    by_hand = np.minimum(np.maximum.accumulate(np.array(p) * np.arange(6, 0, -1)), 1)
    assert sorted(row.p_adjusted for row in after.added if row.p_adjusted is not None) == pytest.approx(by_hand.tolist())


def test_csv_of_stats_has_the_added_rows(install: Install, tmp_path: Path) -> None:
    make_run(tmp_path)
    install(WORDS, ENTRIES)
    rows = list(csv.DictReader(io.StringIO(drift("stats", "--format", "csv").out)))
    assert {row["measure"] for row in rows if row["table"] == "added"} == {"lowest"}


def test_an_architecture_is_registered_by_an_installed_package(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("import sys\nsys.drift_was_here = True", "[drift.architectures]\nmine = PACKAGE\n")
    monkeypatch.setattr(sys, "drift_was_here", False, raising=False)
    import tiny

    from drift_cli import models

    models.describe(str(tiny.save("llama", Path("tiny").absolute())))
    assert sys.drift_was_here  # type: ignore[attr-defined]


def test_later_looks_count_for_added_measures_too() -> None:
    rng = np.random.default_rng(6)
    values = {Cell("t", name, 1.0): rng.normal(shift, 1, size=(12, 6)) for name, shift in (("a", 0.0), ("b", 0.9))}
    drift_cli.rollout_measure("lowest", "lowest")(lambda values, turns: values.min())
    few, all_ = (RunTable.from_arrays("r", "a", {cell: array[:count] for cell, array in values.items()}) for count in (6, 12))
    options = Options(primary="lowest", resamples=99)
    before = Look(time=now(), by="test", axis="a", layer=None, measure="lowest", against="a", cells=seen(few))
    found = Looking(before=(before,), cells=seen(all_))
    study = study_as_of(analyze(all_, options), found)
    single = analyze(all_, options)
    (row,), (alone,) = study.added, single.added
    assert row.role == alone.role == "primary"
    assert "always valid at look 2" in row.method
    assert row.p is not None
    assert alone.p is not None
    assert row.p > alone.p
    assert study.gate == row.p_adjusted
    assert looked(single, Presence(), found, all_).number == 2
