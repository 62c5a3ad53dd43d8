"""The library: what a notebook gets of a run is what is stored, and what the commands say."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli import drift
from report_run import make_run

import drift_cli
from drift_cli import Axis, StoreError, UsageError
from drift_cli.segments import Part
from drift_cli.spec import Condition, Finish
from drift_cli.store.manifest import CellPlan

LINE = (
    *("generate", "--samples", "3", "--turns", "4", "--max-new-tokens", "12", "--layers", "3,5", "--engine", "reference"),
    *("--condition", "baseline", "--condition", "simple", "--condition", "complex"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of the built-in model: three conditions, three rollouts each, four turns, two layers."""
    root = tmp_path_factory.mktemp("api")
    drift(*LINE, "--store", str(root), "--display", "none")
    return root


@pytest.fixture
def run(store: Path) -> drift_cli.Run:
    return drift_cli.open("demo", store)


def cut(folder: Path, samples: int = 4) -> drift_cli.Run:
    """A run without residual means, the last rollout of which ended early."""
    return drift_cli.open(make_run(folder, samples=samples).paths.root)


# --- the package


def test_importing_the_package_imports_none_of_what_it_stands_on() -> None:
    code = "import sys, drift_cli; dir(drift_cli); print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "torch", "pandas", "transformers", "scipy", "matplotlib", "typer", "orjson"}.isdisjoint(found)


def test_statistics_import_no_torch() -> None:
    code = """import pkgutil, sys, importlib, drift_cli.analysis as a
for module in pkgutil.iter_modules(a.__path__):
    importlib.import_module(f"{a.__name__}.{module.name}")
print(*({"torch", "transformers", "tokenizers", "matplotlib"} & sys.modules.keys()))"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_line_of_the_readme_works(store: Path) -> None:
    code = "import drift_cli as d; r = d.open('demo'); print(r.turns().head()); print(r.compare('simple','baseline').verdict)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "DRIFT_STORE": str(store)}
    )
    assert "[5 rows x 12 columns]" in found.stdout
    assert re.search(r"^simple: [A-Z ]+\.", found.stdout, re.MULTILINE)
    assert found.stderr == ""


def test_opening_and_comparing_a_run_needs_no_torch(store: Path) -> None:
    code = f"""import sys, drift_cli as d; r = d.open('demo', {str(store)!r}); r.turns(); r.residuals(5); r.compare('simple', 'baseline').verdict
assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'torch was imported'"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_for_people_and_for_type_checkers() -> None:
    tree = ast.parse(Path(drift_cli.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {name.asname or name.name for node in guarded.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert typed == set(drift_cli.__all__) - {"__version__"}
    assert set(drift_cli.__all__) <= set(dir(drift_cli))
    for name in drift_cli.__all__:
        assert name == "Ask" or getattr(drift_cli, name).__doc__  # Ask is the type of a function
    with pytest.raises(AttributeError, match="no attribute 'opem'"):
        _ = drift_cli.opem


# --- opening


def test_a_run_is_opened_by_id_beginning_folder_or_as_the_newest(run: drift_cli.Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drift_cli.open(run.id, store).id == drift_cli.open("dem", store).id == drift_cli.open(store=store).id == run.id
    assert drift_cli.open(run.path).path == run.path
    assert drift_cli.open(f"{store}/{run.id}").id == run.id
    monkeypatch.setenv("DRIFT_STORE", str(store))
    assert drift_cli.open().id == drift_cli.open("demo").id == run.id


def test_what_cannot_be_opened_is_refused_by_name(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run 'other'"):
        drift_cli.open("other", store)
    with pytest.raises(StoreError, match="there is no run in"):
        drift_cli.open(store=tmp_path / "nothing")
    with pytest.raises(UsageError, match="there is no run 'nothing'"):
        drift_cli.open(tmp_path / "nothing")


def test_a_run_says_what_it_is(run: drift_cli.Run) -> None:
    assert list(run.conditions) == ["baseline", "simple", "complex"]
    assert isinstance(run.conditions["simple"], Condition)
    assert [len(script.users) for script in run.transcripts.values()] == [4]
    assert (run.model, run.axes, run.layers, run.settings["samples"], run.complete) == ("demo", {"demo": 5}, (3, 5), 3, True)
    assert run.axis().digest == run.stored.manifest.axes[0].digest
    assert "demo at layer 5" in repr(run)
    assert "<table>" in run._repr_html_()


# --- tables


def test_turns_are_what_export_writes(run: drift_cli.Run, store: Path, tmp_path: Path) -> None:
    drift("export", "--format", "parquet", "--residuals", "--output", str(tmp_path / "x.parquet"), "--store", str(store))
    written = pd.read_parquet(tmp_path / "x.parquet")
    turns = run.turns(residuals=True)
    assert list(turns.columns) == list(written.columns)
    assert len(turns) == 3 * 3 * 4
    for name in turns.columns:
        if name.startswith("residual_"):
            np.testing.assert_array_equal(np.stack(turns[name]), np.stack(written[name]))
        else:
            assert turns[name].tolist() == written[name].tolist(), name
    assert turns["reply_tokens"].dtype == "Int64"
    assert turns.attrs["axes"]["demo"]["layer"] == 5


def test_a_turn_before_which_a_rollout_ended_has_no_reply(tmp_path: Path) -> None:
    turns = cut(tmp_path).turns()
    last = turns.iloc[-1]
    assert (last["turn"], last["finish"], last["prompt_length"]) == (5, Finish.CONTEXT.value, 999)
    assert turns.iloc[-1:][["reply", "reply_tokens", "projection_made"]].isna().all(axis=None)
    assert not turns.iloc[:-1][["reply", "reply_tokens", "projection_made"]].isna().any(axis=None)


def test_measures_of_rollouts_average_to_what_stats_says(tmp_path: Path) -> None:
    run = cut(tmp_path)
    rollouts = run.rollouts()
    assert rollouts["end"].tolist() == ["complete"] * 11 + ["context"]
    assert (rollouts["turns"] - rollouts["planned"]).tolist() == [0] * 11 + [-1]
    study = run.compare().statistics
    means = rollouts.groupby("condition")["mean"].mean()
    assert {cell.condition: cell.mean for cell in study.summary.cells} == pytest.approx(means.to_dict())
    for measure in ("change", "slope", "area", "thirds"):
        means = rollouts.groupby("condition")[measure].mean()
        assert {cell.condition: cell.mean for cell in study.cell_drift if cell.measure == measure} == pytest.approx(means.to_dict())


def test_a_run_that_is_being_made_shows_what_is_committed(tmp_path: Path) -> None:
    whole = cut(tmp_path)
    manifest = whole.stored.manifest
    more = replace(manifest, cells=tuple(CellPlan(plan.cell, plan.samples + 1) for plan in manifest.cells))
    whole.stored.update(more)
    run = drift_cli.open(whole.path)
    assert run.rollouts()["end"].tolist().count("not begun") == 3
    assert not run.complete
    assert run.projections().shape == (15, 5)
    assert len(run.turns()) == len(whole.turns())


# --- projections


def test_projections_by_name_are_those_of_the_lines_and_projecting_again_gives_the_same_bits(run: drift_cli.Run) -> None:
    projections = run.projections()
    assert projections.index.names == ["transcript", "condition", "temperature", "sample"]
    assert projections.columns.tolist() == [1, 2, 3, 4]
    lines = run.turns().pivot(index=["transcript", "condition", "temperature", "sample"], columns="turn", values="projection_demo")
    pd.testing.assert_frame_equal(projections.sort_index(), lines.sort_index(), check_exact=True, check_column_type=False)
    pd.testing.assert_frame_equal(run.projections(run.axis(), 5), projections, check_exact=True)


def test_projections_at_another_layer_are_those_of_its_residual_means(run: drift_cli.Run) -> None:
    residuals = run.residuals(3)
    assert residuals.values.dtype == np.float32
    assert residuals.values.shape == (36, run.axis().width)
    direction = run.axis().at(3).astype(np.float64)
    by_hand = [float(np.dot(row.astype(np.float64), direction)) for row in residuals.values]
    assert run.axis().project(residuals.values, 3).tolist() == by_hand
    assert run.projections(layer=3).stack().tolist() == by_hand
    assert not np.array_equal(run.projections(layer=3), run.projections())
    record = run.stored.record(run.stored.states()[4].rollout, residuals=True)
    where = residuals.index.query("condition == 'simple' and sample == 1")
    np.testing.assert_array_equal(residuals.values[where.index], [turn.mean(Part.ANSWER)[0] for turn in record.turns])  # type: ignore[index]


def test_axes_that_do_not_fit_are_refused(run: drift_cli.Run, tmp_path: Path) -> None:
    axis = run.axis()
    with pytest.raises(UsageError, match="has width 3"):
        run.projections(Axis("narrow", (5,), np.array([[0, 0.6, 0.8]], dtype=np.float32)), 5)
    other = replace(axis, model="somebody/else", revision=None)
    with pytest.raises(UsageError, match="was built on somebody/else"):
        run.projections(other, 5)
    assert run.projections(other, 5, foreign_axis=True).equals(run.projections())
    with pytest.raises(UsageError, match="Name one: layer=21"):
        run.projections(axis)
    with pytest.raises(StoreError, match="stored layers: 3, 5"):
        run.projections(axis, 2)
    with pytest.raises(StoreError, match=r"stores no residual means of layer 2 \(its layers: 3, 5\)"):
        run.residuals(2)
    with pytest.raises(StoreError, match="no axis 'demp'"):
        run.projections("demp")
    with pytest.raises(UsageError, match="there is no segment 'thoughts'"):
        run.turns(segment="thoughts")
    with pytest.raises(UsageError, match="no reasoning apart from its answers"):
        run.projections(segment="reasoning")
    with pytest.raises(UsageError, match="has width 192, but"):
        axis.project(np.zeros((2, 3), dtype=np.float32), 5)
    with pytest.raises(StoreError, match="is missing from run"):
        cut(tmp_path).axis()


def test_an_axis_is_loaded_by_name_or_file_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_HOME", str(tmp_path))
    axis = drift_cli.load_axis("demo")
    replace(axis, name="mine").save(tmp_path / "data/axes/mine.safetensors")
    assert drift_cli.load_axis("mine").digest == drift_cli.load_axis(tmp_path / "data/axes/mine.safetensors").digest == axis.digest
    assert "layers 0 to 6" in repr(axis)
    with pytest.raises(drift_cli.DriftError, match="Did you mean 'mine'"):
        drift_cli.load_axis("mime")


# --- comparing


@pytest.mark.parametrize("baseline", ["baseline", "complex"])
def test_a_comparison_has_the_numbers_that_stats_has(run: drift_cli.Run, store: Path, baseline: str) -> None:
    line = () if baseline == "baseline" else ("--against", baseline)
    said = drift("stats", *line, "--json", "--store", str(store)).json
    study = run.compare("simple", baseline)
    rows = {(row["measure"]): row for row in (*said["comparisons"], *said["drift"]) if (row["a"], row["b"]) == ("simple", baseline)}
    table = study.table.set_index("measure")
    assert set(table.index) == set(rows) == {"mean", "change", "slope", "area", "thirds"}
    for measure, row in rows.items():
        for name in ("difference", "low", "high", "p", "p_adjusted", "hedges_g"):
            assert table[name].isna()[measure] if row[name] is None else table.loc[measure, name] == row[name], (measure, name)
    judged = {one["condition"]: one["verdict"] for one in said["verdict"]["judgements"]}
    assert study.verdict.words == {"simple": judged["simple"]}
    assert study.baseline == baseline
    assert [one.condition for one in study.verdict.judgements] == [baseline, "simple"]


def test_the_verdict_reads_as_text_and_as_fields(run: drift_cli.Run) -> None:
    verdict = run.compare("simple", "baseline").verdict
    text = str(verdict)
    assert f"simple: {verdict.words['simple'].upper()}." in text
    assert "complex" not in text
    assert text.endswith(verdict.answer.scope)
    assert set(verdict.sentences) | {f"Caution: {said}" for said in verdict.cautions} <= set(text.splitlines())
    assert verdict.as_dict()["judgements"][1]["condition"] == "simple"
    assert all(said.replace("<", "&lt;").replace("'", "&#x27;") in verdict._repr_html_() for said in verdict.sentences)


def test_all_conditions_or_some_are_compared_and_options_are_those_of_stats(run: drift_cli.Run) -> None:
    assert run.compare().conditions == ("simple", "complex")
    both = run.compare(["complex", "simple"])
    assert set(both.table["condition"]) == {"simple", "complex"}
    assert (both.table["role"] == "primary").sum() == 2
    alone = run.compare("simple").table
    pd.testing.assert_frame_equal(alone, both.table[both.table["condition"] == "simple"].reset_index(drop=True))
    assert drift_cli.compare(run, "simple", test="paired").table["method"].str.contains("air").all()
    assert (run.compare("simple", level=0.9).table["low"] >= alone["low"]).all()
    assert run.compare("simple", turns=(1, 2), primary="change").statistics.options.turns == (1, 2)


def test_comparisons_that_cannot_be_made_are_refused(run: drift_cli.Run) -> None:
    for given, said in (
        (("simpel",), "condition 'simpel' is not in run .*\nDid you mean 'simple'"),
        (("simple", "nobody"), "condition 'nobody' is not in this run"),
        (("baseline",), "cannot be compared with itself"),
    ):
        with pytest.raises(UsageError, match=said):
            run.compare(*given)
    for option, value, said in (
        ("test", "t", "Use one of"),
        ("primary", "median", "There are: mean, change"),
        ("correction", "all", "Use one of"),
    ):
        with pytest.raises(UsageError, match=f"there is no .*'{value}'\n.*{said}"):
            run.compare("simple", **{option: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="never the primary measure"):
        run.compare("simple", primary="area")


def test_pictures_are_figures_that_nobody_has_shown(run: drift_cli.Run, tmp_path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    study = run.compare("simple", "baseline")
    made = [study.plot(), study.plot("forest", style="dark"), run.plot("heatmap"), run.plot("layers", title="by layer")]
    assert all(isinstance(figure, Figure) for figure in made)
    assert pyplot.get_fignums() == []
    with pytest.raises(UsageError, match="a study has no picture 'pie'"):
        study.plot("pie")
    with pytest.raises(UsageError, match="there is no kind 'pie'"):
        run.plot("pie")
    assert run.report(tmp_path / "run.html").read_bytes().startswith(b"<!")


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    capfd.readouterr()
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("quiet")
def test_nothing_is_printed(run: drift_cli.Run, tmp_path: Path) -> None:
    study = run.compare("simple", "baseline")
    for thing in (run, study, study.verdict, run.axis()):
        assert repr(thing)
        assert thing._repr_html_()
    run.turns(), run.rollouts(), run.projections(), study.table, study.plot(), run.report(tmp_path / "x.html")


def test_what_a_notebook_shows_holds_nothing_that_could_run(run: drift_cli.Run) -> None:
    evil = "<script>alert(1)</script>"
    manifest = run.stored.manifest
    harmful = drift_cli.Run(replace(run.stored, manifest=replace(manifest, spec=replace(manifest.spec, model=evil))))
    shown: list[Any] = [harmful, replace(run.axis(), model=evil, source=evil, note=evil)]
    assert all("<script" not in thing._repr_html_() for thing in shown)
