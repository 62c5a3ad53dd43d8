"""Looking again: boundaries as published, looks that are recorded, plans that do not change, and intervals that say which of them apply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli import drift
from report_run import make_run
from scipy import stats

from drift_cli.analysis import sequential
from drift_cli.analysis.looked import looked, study_as_of
from drift_cli.analysis.looks import Kind, Looking, seen
from drift_cli.analysis.presence import Presence
from drift_cli.analysis.results import Options, Role
from drift_cli.analysis.sequential import Spending, boundaries
from drift_cli.analysis.study import Study, analyze
from drift_cli.analysis.table import RunTable
from drift_cli.errors import StoreError, UsageError
from drift_cli.settings.plan import read_plan
from drift_cli.spec import Cell
from drift_cli.store.looks import Look, append_look, read_looks
from drift_cli.store.manifest import Manifest
from drift_cli.store.paths import Store
from drift_cli.store.plan import Plan, SealedPlan
from drift_cli.store.run import Run

PLAN = Plan(primary="mean", against="baseline", looks=(8, 16, 32), alpha=0.05, spending="obrien-fleming", test="welch")


@pytest.mark.parametrize(
    ("fractions", "alpha", "spending", "two_sided", "published"),
    [
        # gsDesign: gs_b's example, sfLDOF at .5, .75, 1
        ((0.5, 0.75, 1.0), 0.025, Spending.OBRIEN_FLEMING, False, (2.962588, 2.359018, 2.014084)),
        # gsDesign(k = 3, test.type = 2, sfu = sfLDOF)
        ((1 / 3, 2 / 3, 1.0), 0.05, Spending.OBRIEN_FLEMING, True, (3.7103, 2.5114, 1.9930)),
        # ldbounds, five equal looks
        ((0.2, 0.4, 0.6, 0.8, 1.0), 0.05, Spending.OBRIEN_FLEMING, True, (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ((0.2, 0.4, 0.6, 0.8, 1.0), 0.05, Spending.POCOCK, True, (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
        # SeqBounds.jl
        ((0.25, 0.5, 0.75, 1.0), 0.05, Spending.OBRIEN_FLEMING, False, (3.74955, 2.53993, 2.01604, 1.72014)),
    ],
)
def test_boundaries_are_those_published(
    fractions: tuple[float, ...], alpha: float, spending: Spending, two_sided: bool, published: Sequence[float]
) -> None:
    assert boundaries(fractions, alpha, spending, two_sided=two_sided) == pytest.approx(published, abs=2e-4)


def test_one_look_at_everything_is_a_test_without_looks() -> None:
    assert boundaries((1.0,), 0.05, Spending.OBRIEN_FLEMING)[0] == pytest.approx(stats.norm.isf(0.025), abs=1e-6)
    assert sequential.planned_p(2.3, (1.0,), Spending.POCOCK) == pytest.approx(2 * stats.norm.sf(2.3), rel=1e-4)


def test_a_planned_p_is_the_alpha_at_which_the_boundary_is_crossed() -> None:
    looks = (0.25, 0.5, 1.0)
    p = sequential.planned_p(2.2, looks, Spending.OBRIEN_FLEMING)
    assert boundaries(looks, p, Spending.OBRIEN_FLEMING)[-1] == pytest.approx(2.2, abs=1e-4)
    assert 2 * stats.norm.sf(2.2) < p < 0.05


def test_the_always_valid_interval_and_the_e_value_say_the_same() -> None:
    for n in (4, 16, 64, 500):
        b = sequential.always_valid(n, 0.05)
        assert sequential.e_value(b, n) == pytest.approx(20)
        assert sequential.e_value(0.0, n) < 1
    assert sequential.effective(16, 16) == 16
    assert sequential.effective(8, 32) == pytest.approx(12.8)


def test_e_values_are_at_most_one_on_average_under_no_difference() -> None:
    z = np.random.default_rng(1).normal(size=200_000)
    assert np.mean([np.exp(z * z * g / (2 * (1 + g))).mean() / np.sqrt(1 + g) for g in (0.5, 0.9)]) == pytest.approx(1, abs=0.02)


# --- which interval applies -------------------------------------------------------------------------------------------------------------------------------


def _table(n: int, m: int | None = None, effect: float = 0.5) -> RunTable:
    rng = np.random.default_rng(n)
    cells = {Cell("talk", "baseline", 0.7): rng.normal(0, 1, (m or n, 4)), Cell("talk", "firm", 0.7): rng.normal(effect, 1, (n, 4))}
    return RunTable.from_arrays("run", "assistant", cells)


def _look(table: RunTable, rule: str | None = None) -> Look:
    return Look(time="", by="stats", axis="a", layer=1, measure="mean", against="baseline", cells=seen(table), rule=rule)


def _primary(study: Study) -> tuple[float, float, float]:
    (row,) = [row for row in (*study.comparisons, *study.drift) if row.role is Role.PRIMARY]
    assert row.low is not None
    assert row.high is not None
    assert row.p is not None
    return row.low, row.high, row.p


def _said(study: Study, found: Looking, table: RunTable) -> tuple[Kind, int]:
    known = looked(study, Presence(), found, table)
    (kind,) = known.kinds
    return kind, known.number


def test_a_first_look_without_a_plan_changes_nothing() -> None:
    table, study = _table(16), analyze(_table(16), Options(resamples=199))
    found = Looking(cells=seen(table))
    assert study_as_of(study, found) is study
    assert _said(study, found, table) == (Kind.ONE, 1)
    # The same data seen before, or another condition's, are no look at these.
    found = Looking(cells=seen(table), before=(_look(table),))
    assert study_as_of(study, found) is study


def test_a_later_look_has_the_always_valid_interval() -> None:
    table, study = _table(24), analyze(_table(24), Options(resamples=199))
    found = Looking(cells=seen(table), before=(_look(_table(16)), _look(_table(16)), _look(table)))
    assert _said(study, found, table) == (Kind.ALWAYS, 2)
    (low, high, p), (wide_low, wide_high, wide_p) = _primary(study), _primary(study_as_of(study, found))
    assert wide_low < low < high < wide_high
    n = 24
    z = sequential.standardized(p)
    assert wide_p == pytest.approx(min(1, 1 / sequential.e_value(z, n)))
    df = next(row.df for row in study.comparisons if row.role is Role.PRIMARY)
    assert df is not None
    factor = stats.t.isf(stats.norm.sf(sequential.always_valid(n, 0.05)), df) / stats.t.isf(0.025, df)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(factor)
    assert study_as_of(study, found).closed == (wide_p > 0.05)


def test_more_of_one_condition_alone_is_a_look_at_its_comparison() -> None:
    table = _table(24, 16)
    found = Looking(cells=seen(table), before=(_look(_table(16)),))
    assert _said(analyze(table, Options(resamples=199)), found, table)[0] is Kind.ALWAYS


def test_a_rule_that_decides_from_the_data_makes_even_the_first_look_always_valid() -> None:
    table = _table(16)
    study = analyze(table, Options(resamples=199))
    assert _said(study, Looking(cells=seen(table), rule="half-width 0.1"), table) == (Kind.ALWAYS, 1)
    assert _said(study, Looking(cells=seen(table), before=(_look(table, "half-width 0.1"),)), table) == (Kind.ALWAYS, 1)


def test_a_plans_looks_spend_its_alpha_and_others_show_nothing() -> None:
    table = _table(16)
    study = analyze(table, Options(resamples=199))
    found = Looking(plan=PLAN, cells=seen(table), before=(_look(_table(8)),))
    assert _said(study, found, table) == (Kind.PLANNED, 2)
    z = sequential.standardized(_primary(study)[2])
    fractions = (0.25, 0.5)
    assert _primary(study_as_of(study, found))[2] == pytest.approx(sequential.planned_p(z, fractions, Spending.OBRIEN_FLEMING))
    # The look at 8 was not taken: its α is there for this one (Lan and DeMets).
    skipped = _primary(study_as_of(study, Looking(plan=PLAN, cells=seen(table))))[2]
    assert skipped == pytest.approx(sequential.planned_p(z, (0.5,), Spending.OBRIEN_FLEMING))
    between = _table(20)
    other = analyze(between, Options(resamples=199))
    found = Looking(plan=PLAN, cells=seen(between), before=())
    assert _said(other, found, between)[0] is Kind.NOT_PLANNED
    assert not any(row.starred for row in study_as_of(other, found).comparisons)
    unequal = _table(16, 8)
    assert Looking(plan=PLAN, cells=seen(unequal)).planned() is None
    table.finish[0, 3] = ""
    assert Looking(plan=PLAN, cells=seen(table)).planned() is None  # a rollout is not complete


# --- the file of looks ------------------------------------------------------------------------------------------------------------------------------------


def test_each_look_at_new_data_is_recorded_once_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for _ in range(3):
        drift("stats", "--resamples", "99")
    drift("stats", "--resamples", "99", "--primary", "change")
    drift("plot", "--kind", "forest")
    drift("report")
    looks = read_looks(run.paths)
    assert [(look.by, look.measure) for look in looks] == [("stats", "mean"), ("stats", "change")]
    assert [(one.condition, one.rollouts, one.turns, one.ended) for one in looks[0].cells] == [
        ("baseline", 4, 20, 4),
        ("simple", 4, 20, 4),
        ("complex", 4, 19, 4),
    ]
    assert run.verify() == []
    lines = run.paths.looks.read_bytes().splitlines(keepends=True)
    run.paths.looks.write_bytes(lines[0].replace(b'"rollouts":4', b'"rollouts":3', 1) + lines[1])
    (finding,) = run.verify()
    assert (finding.file, finding.fatal) == (run.paths.looks, True)
    assert "a look was changed or taken out" in drift("stats", code=1).err
    run.paths.looks.write_bytes(lines[1])
    with pytest.raises(StoreError, match="changed or taken out"):
        read_looks(run.paths)
    # A line that a crash cut off is no look, and the next one begins a line of its own.
    run.paths.looks.write_bytes(lines[0] + lines[1][:50])
    assert append_look(run.paths, looks[1])
    assert [look.measure for look in read_looks(run.paths)] == ["mean", "change"]


def test_a_store_that_cannot_be_written_shows_its_results_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    run.paths.looks.mkdir()
    shown = drift("stats", "--resamples", "99", code=None)
    assert "could not be recorded" in shown.err or shown.code == 1


# --- plans ------------------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "looks is None"),
        ("looks = [16, 8]", "looks is"),
        ("looks = [1]", "looks is"),
        ("looks = [16]\nalpha = 2", "alpha is 2"),
        ("looks = [16]\nsmallest_effect = -1", "smallest_effect is -1"),
        ("looks = [16]\nprimary = 'area'", "primary is 'area'"),
        ("looks = [16]\nspending = 'all'", "spending is 'all'"),
        ("looks = [16]\nsmalest_effect = 1", "smallest_effect"),
        ("looks = [16", "cannot be read as TOML"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(text: str, said: str) -> None:
    Path("plan.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        read_plan(Path("plan.toml"))
    assert said in f"{error.value.what} {error.value.mend}"


def test_a_manifest_without_a_plan_is_what_it_was_and_one_with_a_plan_cannot_be_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert b"plan" not in run.manifest.to_json()
    planned = replace(run.manifest, plan=SealedPlan.of(PLAN))
    assert Manifest.from_json(planned.to_json(), tmp_path).plan == SealedPlan.of(PLAN)
    changed = replace(planned, plan=SealedPlan(plan=replace(PLAN, alpha=0.1), digest=PLAN.digest))
    with pytest.raises(StoreError, match="a plan does not change"):
        Manifest.from_json(changed.to_json(), tmp_path)
    assert planned.spec.id == run.manifest.spec.id
    run.update(planned)
    with pytest.raises(StoreError, match="plan: stored"):
        run.update(replace(planned, plan=SealedPlan.of(replace(PLAN, alpha=0.1))))


def test_a_planned_run_from_plan_to_verdict(tiny_models: dict[str, Path]) -> None:
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you"]}))
    Path("drift.toml").write_text('[conditions.baseline]\n[conditions.kind]\nsystem = "be kind"\nplacement = "user-suffix"\n')
    Path("plan.toml").write_text('looks = [2, 4]\nsmallest_effect = 0.5\nalpha = 0.1\nprimary = "change"\naxis = "odd"\nlayer = 2\n')
    vectors = np.random.default_rng(3).normal(size=(3, 32))
    from drift_cli.axis import Axis

    Axis("odd", (0, 1, 2), (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)).save(Path("odd.safetensors"))
    base = (
        "generate",
        "--model",
        str(tiny_models["llama"]),
        "--transcript",
        "short.json",
        "--max-new-tokens",
        "6",
        "--axis",
        "odd.safetensors",
    )
    base = (*base, "--dtype", "float32", "--no-same-replies")
    assert "names layer 2" in drift(*base, "--layer", "1", "--plan", "plan.toml", "--name", "other", code=2).err
    first = drift(*base, "--layer", "2", "--plan", "plan.toml")
    run = Run.newest(Store(Path("checkpoints")))
    assert run.manifest.plan is not None
    assert {plan.samples for plan in run.manifest.cells} == {2}  # the first look
    assert "kind:" in first.out
    drift(*base, "--layer", "2", "--samples", "3")
    said = " ".join(drift("stats").out.split())
    assert "This look is not planned (looks at 2, 4 complete rollouts of every condition)" in said
    assert "nothing is looked at now" in drift(*base, "--layer", "2", "--samples", "3").out
    drift(*base, "--layer", "2", "--samples", "4")
    document = drift("stats", "--json").json
    found = document["verdict"]["looked"]
    assert found["kinds"] == ["planned"]
    assert found["digest"] == run.manifest.plan.digest
    assert document["options"]["level"] == pytest.approx(0.9)
    assert document["options"]["equivalence"] == 0.5
    assert document["options"]["primary"] == "change"
    assert "Not as planned: primary mean, planned change" in " ".join(drift("stats", "--primary", "mean", "--full").out.split())
    # A plan does not come after data, and does not change.
    Path("late.toml").write_text("looks = [2, 8]\n")
    assert "a plan does not change" in drift(*base, "--layer", "2", "--plan", "late.toml", code=2).err
    drift(*base, "--layer", "2", "--name", "free", "--samples", "2")
    assert "a plan is written before there is data" in drift(*base, "--layer", "2", "--name", "free", "--plan", "late.toml", code=2).err
    assert "as many" not in drift(*base, "--layer", "2", "--samples", "5", code=None).out


def test_rollouts_are_added_until_the_interval_is_narrow_enough(tiny_models: dict[str, Path]) -> None:
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you"]}))
    Path("drift.toml").write_text('[conditions.baseline]\n[conditions.kind]\nsystem = "be kind"\nplacement = "user-suffix"\n')
    vectors = np.random.default_rng(3).normal(size=(3, 32))
    from drift_cli.axis import Axis

    Axis("odd", (0, 1, 2), (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)).save(Path("odd.safetensors"))
    base = (
        "generate",
        "--model",
        str(tiny_models["llama"]),
        "--transcript",
        "short.json",
        "--max-new-tokens",
        "6",
        "--axis",
        "odd.safetensors",
    )
    base = (*base, "--dtype", "float32", "--layer", "2", "--samples", "4", "--no-same-replies")
    assert "needs --max-samples" in drift(*base, "--until-half-width", "1", code=2).err
    assert "goes with --until-half-width" in drift(*base, "--max-samples", "9", code=2).err
    done = drift(*base, "--until-half-width", "0.0001", "--max-samples", "9").err
    run = Run.newest(Store(Path("checkpoints")))
    assert {plan.samples for plan in run.manifest.cells} == {9}
    assert "± 0.0001 is not reached" in done
    looks = read_looks(run.paths)
    assert [look.cells[0].rollouts for look in looks] == [4, 8, 9]
    assert {look.rule for look in looks} == {"half-width 0.0001"}
    assert "always-valid" in drift("stats").out
    wide = drift("stats", "--json").json["verdict"]["looked"]["standings"][0][1]
    half = (wide["always_high"] - wide["always_low"]) / 2
    again = drift(*base, "--until-half-width", f"{half * 1.01}", "--max-samples", "20").err
    assert "done with 9 rollouts per cell" in again
