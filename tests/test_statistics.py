"""Comparisons of conditions, turns together, drift, several transcripts, power: against published and recomputed values, and every degenerate input."""

from __future__ import annotations

import json
import math
import os
import re
import time
import tracemalloc
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from plain_json import assert_plain, numbers
from scipy import stats
from statsmodels.stats.multitest import multipletests

from drift_cli.analysis import effects, tests
from drift_cli.analysis.compare import adjust, differences, holm
from drift_cli.analysis.measures import Sample, both
from drift_cli.analysis.power import detectable_effect, half_width, power, rollouts_for
from drift_cli.analysis.resampling import bootstrap_t, draws, labels, welch_t
from drift_cli.analysis.results import Comparison, Correction, Measure, Options, PairTurns, Test
from drift_cli.analysis.study import MOST_TURN_PAIRS, Study, analyze
from drift_cli.analysis.table import RunTable
from drift_cli.analysis.turns import band
from drift_cli.errors import UsageError
from drift_cli.spec import Cell

SEED_FILES = {"baseline": "003b_baseline.json", "simple": "003b_simple_sysprompt.json", "complex": "003b_complex_sysprompt.json"}

# Student's sleep data (1908): extra hours of sleep of the same ten patients with two drugs.
SLEEP_1 = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SLEEP_2 = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
# Darwin's maize (1876): height of cross-fertilized less self-fertilized plants, in eighths of an inch (Fisher 1935).
MAIZE = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=np.float64)
# Benjamini & Hochberg (1995), table of 15 p values.
BH_1995 = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]

FAST = Options(resamples=199)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _cell(condition: str, transcript: str = "script", temperature: float = 0.5) -> Cell:
    return Cell(transcript, condition, temperature)


def _table(common_noise: bool = True, **arrays: np.ndarray) -> RunTable:
    cells = {_cell(name): np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    return RunTable.from_arrays("run-01234567", "assistant", cells, common_noise=common_noise)


def _random(seed: int, **shifts: float) -> RunTable:
    rng = np.random.default_rng(seed)
    return _table(**{name: rng.normal(shift, 1, (12, 6)) + rng.normal(size=(12, 1)) for name, shift in shifts.items()})


def _assert_plain(study: Study) -> None:
    """JSON can hold the results, no number is NaN or infinite, and what is missing has a sentence."""
    assert_plain(study)
    for row in (*study.comparisons, *study.drift, *study.across):
        assert row.p is not None or row.note
    for pair in study.turns:
        assert all(turn.p is not None or turn.note for turn in pair.turns)


def _columns(*observations: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(values, dtype=np.float64)[:, None] for values in observations]


# --- reference values ---------------------------------------------------------------------------------------------------------------------------------


def test_sleep_data_welch():
    (result,) = differences([(SLEEP_1, SLEEP_2)], Options())
    assert result.statistic == pytest.approx(-1.8608, abs=5e-5)
    assert result.df == pytest.approx(17.776, abs=5e-4)
    assert result.p == pytest.approx(0.07939, abs=5e-6)
    assert (result.low, result.high) == pytest.approx((-3.3655, 0.2055), abs=5e-5)
    assert (result.n_a, result.n_b, result.note) == (10, 10, None)


def test_sleep_data_paired_and_exact_sign_flip():
    (result,) = differences([(SLEEP_1, SLEEP_2)], Options(test=Test.PAIRED))
    assert result.statistic == pytest.approx(-4.0621, abs=5e-5)
    assert result.p == pytest.approx(0.002833, abs=5e-7)
    assert result.p_flip == 4 / 1024
    assert result.r == pytest.approx(np.corrcoef(SLEEP_1, SLEEP_2)[0, 1])
    assert result.gain == pytest.approx((SLEEP_1.var() + SLEEP_2.var()) / (SLEEP_1 - SLEEP_2).var())


def test_maize_paired_and_exact_sign_flip():
    (result,) = differences([(MAIZE + 100.0 + np.arange(15), 100.0 + np.arange(15))], Options(test=Test.PAIRED))
    assert result.statistic == pytest.approx(2.148, abs=5e-4)
    assert result.p == pytest.approx(0.0497, abs=5e-5)
    assert result.p_flip == 1726 / 32768


def test_benjamini_and_hochberg_reject_4_and_holm_3_of_their_15():
    assert sum(p <= 0.05 for p in adjust(BH_1995, Correction.BH)) == 4
    assert sum(p <= 0.05 for p in adjust(BH_1995, Correction.HOLM)) == 3


def test_holm_is_statsmodels_and_leaves_missing_p_out():
    p = np.random.default_rng(0).random((3, 20)) ** 3
    np.testing.assert_allclose(holm(p), [multipletests(row, method="holm")[1] for row in p])
    assert adjust([0.01, 0.04, None, 0.03, 0.005], Correction.HOLM) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert adjust([None, None], Correction.HOLM) == [None, None]


def test_power_for_half_a_standard_deviation():
    from statsmodels.stats.power import TTestIndPower

    assert TTestIndPower().solve_power(0.5, power=0.8, alpha=0.05) == pytest.approx(63.77, abs=5e-3)
    assert detectable_effect(64, 0.95, 0.8) == pytest.approx(0.5, abs=2e-3)
    assert detectable_effect(63, 0.95, 0.8) > 0.5 > detectable_effect(64, 0.95, 0.8)


def test_hedges_g_is_cohens_d_with_the_exact_correction():
    # d = -1.58 / 1.898798; J(18) = Γ(9) / (√9 Γ(8.5)) = .957655
    found = effects.hedges_g(*_columns(SLEEP_1, SLEEP_2), 0.95)
    assert found.g[0] == pytest.approx(-0.832106 * 0.957655, abs=1e-4)
    # The ends of the interval are the effects under which the observed t is at the 2.5 and 97.5 % points.
    t = stats.ttest_ind(SLEEP_1, SLEEP_2).statistic
    ends = (found.low[0] / 0.957655 / np.sqrt(0.2), found.high[0] / 0.957655 / np.sqrt(0.2))
    assert [stats.nct.cdf(t, 18, end) for end in ends] == pytest.approx([0.975, 0.025], abs=1e-4)


def test_paired_effect_is_in_standard_deviations_of_rollouts():
    found = effects.hedges_g_paired(*_columns(SLEEP_1, SLEEP_2), 0.95)
    r = 2 * np.cov(SLEEP_1, SLEEP_2)[0, 1] / (SLEEP_1.var(ddof=1) + SLEEP_2.var(ddof=1))
    correction = effects.small_sample_correction(np.array(18 / (1 + r**2)))
    assert found.g[0] == pytest.approx(-0.832106 * correction, abs=1e-4)
    assert found.low[0] < found.g[0] < found.high[0] < 0


def test_exact_permutation_is_scipys():
    a, b = np.random.default_rng(1).normal(size=(2, 6))
    result = tests.permutation(*_columns(a + 1, b), 0.95, 9999, 0)
    expected = stats.permutation_test(
        (a + 1, b), lambda x, y, axis: stats.ttest_ind(x, y, axis=axis, equal_var=False).statistic, vectorized=True, n_resamples=9999
    )
    assert result.p[0] == pytest.approx(expected.pvalue, abs=1e-12)
    assert result.p[0] * math.comb(12, 6) == pytest.approx(round(result.p[0] * math.comb(12, 6)))


def test_random_permutations_count_the_observed_one():
    far = np.arange(30.0)
    assert tests.permutation(*_columns(far + 1000, far), 0.95, 999, 0).p[0] == 1 / 1000


def test_bootstrapped_statistics_are_scipys():
    a, b = np.random.default_rng(2).normal(size=(2, 20))
    mine = bootstrap_t(*_columns(a, b), draws(20, 9999, 0, 0), draws(20, 9999, 0, 1))[:, 0]

    def t(x, y, axis):
        error = np.sqrt((x.var(axis=axis, ddof=1) + y.var(axis=axis, ddof=1)) / 20)
        return (x.mean(axis=axis) - y.mean(axis=axis) - (a.mean() - b.mean())) / error

    theirs = stats.bootstrap((a, b), t, vectorized=True, n_resamples=9999, method="percentile", rng=np.random.default_rng(3))
    assert stats.ks_2samp(mine, theirs.bootstrap_distribution).pvalue > 0.01


def test_resampled_t_is_welchs_with_missing_turns_too():
    values = np.random.default_rng(4).normal(50, 1, (9, 5))
    values[[1, 2, 7], [0, 3, 3]] = np.nan
    ways = labels(4, 5, 9999, 0)
    assert ways.exact
    found = welch_t(values, ways.matrix)
    for row in (0, 17, 90):
        first = ways.matrix[row] == 1
        expected = stats.ttest_ind(values[first], values[~first], equal_var=False, nan_policy="omit").statistic
        np.testing.assert_allclose(found[row], expected, rtol=1e-8)


# --- the seed -----------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def seed_table(seed_data: Path) -> RunTable:
    arrays = {name: json.loads((seed_data / file).read_text(encoding="utf-8"))["projections"] for name, file in SEED_FILES.items()}
    return _table(**{name: np.array(values) for name, values in arrays.items()})


def _pair(rows: tuple[Comparison, ...] | tuple[PairTurns, ...], a: str, b: str):
    return next(row for row in rows if (row.a, row.b) == (a, b))


def test_seed_differences_are_reproduced_to_the_printed_digits(seed_table, seed_data):
    printed = (seed_data / "003b_results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) - (\w+) \| ([+-]\d+\.\d\d) \|$", printed, re.MULTILINE)
    assert len(rows) == 3
    found = {(c.a, c.b): f"{c.difference:+.2f}" for c in analyze(seed_table, FAST).comparisons}
    assert {(a.lower(), b.lower()): difference for a, b, difference in rows} == found


def test_seed_welch_reference_values(seed_table):
    result = _pair(analyze(seed_table, FAST).comparisons, "simple", "baseline")
    assert result.difference == pytest.approx(0.4195, abs=5e-5)
    assert result.statistic == pytest.approx(6.9385, abs=5e-5)
    assert result.df == pytest.approx(29.19, abs=5e-3)
    assert result.p == pytest.approx(1.21e-7, abs=5e-10)
    assert (result.low, result.high) == pytest.approx((0.2959, 0.5431), abs=5e-5)


@pytest.mark.parametrize(("correction", "turns"), [("maxt", 12), ("holm", 12), ("bh", 13)])
def test_seed_turns_that_differ(seed_table, correction, turns):
    study = analyze(seed_table, Options(correction=Correction(correction)))
    assert len(_pair(study.turns, "simple", "baseline").significant) == turns


def test_seed_complex_on_the_turns_before_its_prompts_were_cut(seed_table):
    study = analyze(seed_table, replace(FAST, turns=(1, 14)))
    assert _pair(study.comparisons, "complex", "baseline").difference == pytest.approx(0.988, abs=5e-4)
    assert [turn.turn for turn in study.turns[0].turns] == list(range(1, 15))


def test_wrong_analyses_reject_true_nulls_on_the_seeds_own_covariance(seed_table):
    rows = seed_table.projections
    deviations = np.concatenate([rows[i : i + 16] - rows[i : i + 16].mean(axis=0) for i in (0, 16, 32)])
    null = np.random.default_rng(5).multivariate_normal(np.zeros(18), deviations.T @ deviations / 45, (2, 16, 4000))
    paired_over_turns = np.mean(stats.ttest_rel(null[0].mean(axis=0).T, null[1].mean(axis=0).T, axis=0).pvalue < 0.05)
    any_turn = np.mean((stats.ttest_ind(null[0], null[1], axis=0, equal_var=False).pvalue < 0.05).any(axis=1))
    assert paired_over_turns > 0.25
    assert any_turn > 0.35
    assert np.mean(stats.ttest_ind(null[0].mean(axis=2), null[1].mean(axis=2), axis=0, equal_var=False).pvalue < 0.05) < 0.06


# --- pairs of conditions ------------------------------------------------------------------------------------------------------------------------------


def test_comparison_is_welch_on_rollout_means_later_minus_earlier():
    table = _random(9, a=0.0, b=1.0, c=2.0)
    study = analyze(table, FAST)
    assert [(c.a, c.b) for c in study.comparisons] == [("b", "a"), ("c", "a"), ("c", "b")]
    expected = stats.ttest_ind(table.of("b").mean(axis=1), table.of("a").mean(axis=1), equal_var=False)
    result = study.comparisons[0]
    assert (result.p, result.statistic, result.df) == pytest.approx((expected.pvalue, expected.statistic, expected.df))
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert [c.p_adjusted for c in study.comparisons] == pytest.approx(adjust([c.p for c in study.comparisons], Correction.HOLM))


def test_against_turns_every_difference_the_same_way():
    study = analyze(_random(9, a=0.0, b=1.0, c=2.0), replace(FAST, against="b"))
    assert [(c.a, c.b) for c in study.comparisons] == [("a", "b"), ("c", "b")]
    assert [(p.a, p.b) for p in study.turns] == [("a", "b"), ("c", "b")]
    assert study.comparisons[0].difference < 0 < study.comparisons[1].difference


def test_pairs_are_compared_within_transcript_and_temperature():
    rng = np.random.default_rng(8)
    arrays = {_cell(name, script, t): rng.normal(size=(4, 3)) for script, t in (("x", 0.5), ("y", 0.5), ("x", 1.0)) for name in ("a", "b")}
    found = analyze(RunTable.from_arrays("run", "axis", arrays), FAST).comparisons
    assert [(c.a, c.b, c.transcript, c.temperature) for c in found] == [("b", "a", "x", 0.5), ("b", "a", "y", 0.5), ("b", "a", "x", 1.0)]
    means = {cell: values.mean() for cell, values in arrays.items()}
    assert found[1].difference == pytest.approx(means[_cell("b", "y")] - means[_cell("a", "y")])


@pytest.mark.parametrize("test", ["bootstrap", "permutation", "paired"])
def test_other_conditions_do_not_change_a_pairs_numbers_and_a_seed_repeats_them(test):
    options = Options(test=Test(test), resamples=499, seed=7)
    two, three = _random(6, a=0.0, b=0.5), _random(6, a=0.0, b=0.5, c=1.0)
    alone, among = (analyze(table, options) for table in (two, three))
    # Up to the last bit: matrix products of other widths may round otherwise.
    assert numbers(asdict(replace(_pair(among.comparisons, "b", "a"), p_adjusted=0.0))) == pytest.approx(
        numbers(asdict(replace(alone.comparisons[0], p_adjusted=0.0))), rel=1e-12
    )
    assert _pair(among.turns, "b", "a") == alone.turns[0]
    assert analyze(two, options) == alone
    if test != "paired":  # all sign flips of 12 pairs are used, whatever the seed
        assert alone.turns[0].critical != analyze(two, replace(options, seed=8)).turns[0].critical


def test_bootstrap_resamples_rollouts_within_each_condition():
    # b has one value far out: t* is wide only because of b; a's rollouts never enter b's resamples.
    result = tests.bootstrap(*_columns([0.0, 0.1, -0.1, 0.05] * 8, [0.0, 0.1] * 15 + [0.0, 100.0]), 0.95, 999, 0)
    assert result.low[0] < -5
    assert result.high[0] > 0
    assert result.p[0] > 0.2


def test_equivalence_needs_the_90_percent_interval_inside_the_margin():
    table = _random(3, a=0.0, b=0.2)
    a, b = table.of("b").mean(axis=1), table.of("a").mean(axis=1)
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    edge = max(abs(low), abs(high))
    for factor, expected in ((1.01, True), (0.99, False)):
        (result,) = analyze(table, replace(FAST, equivalence=edge * factor)).comparisons
        assert (result.p_equivalence < 0.05) is expected
    with pytest.raises(UsageError, match="equivalence margin"):
        analyze(table, replace(FAST, equivalence=-1.0))


@pytest.mark.parametrize("test", ["welch", "bootstrap", "permutation", "paired"])
@pytest.mark.parametrize(
    ("a", "b", "note"),
    [
        ([[1.0, 2.0]], [[1.0, 3.0], [2.0, 2.0]], "One "),
        ([[1.0, 2.0]] * 9, [[4.0, 4.0]] * 9, "equal on both sides"),
        ([[1.0, 2.0]] * 9, [[4.0, 4.0], [5.0, 6.0], [7.0, 7.0]] * 3, "equal on one side"),
        ([[np.nan, np.nan]], [[4.0, 4.0], [5.0, 6.0]], "No rollout"),
        (np.empty((0, 2)), np.empty((0, 2)), "No rollout"),
        (np.empty((3, 0)), np.empty((3, 0)), "No rollout"),
        ([[1.0, np.nan], [2.0, np.nan]], [[np.nan, 1.0], [np.nan, 2.0]], "no turn in common"),
        ([[1.0, np.nan], [2.0, 3.0], [2.5, 1.0]], [[4.0, 1.0], [5.0, 2.5], [4.5, 2.0]], "1 of 3 rollouts of a lack turns"),
        ([[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.5]], ""),
    ],
)
def test_degenerate_comparisons_have_a_sentence_and_no_nan(test, a, b, note):
    study = analyze(_table(a=np.array(a), b=np.array(b)), replace(FAST, test=Test(test), equivalence=0.5))
    assert note in (study.comparisons[0].note or "")
    _assert_plain(study)


def test_pairs_that_all_differ_by_the_same_have_no_test():
    values = np.random.default_rng(0).normal(size=(8, 3))
    study = analyze(_table(a=values, b=values + 0.1), replace(FAST, test=Test.PAIRED))
    assert "Every pair differs by the same" in study.comparisons[0].note
    _assert_plain(study)


def test_too_few_rollouts_for_a_method_are_refused_in_words():
    table = _table(a=np.random.default_rng(0).normal(size=(3, 2)), b=np.random.default_rng(1).normal(size=(3, 2)))
    assert "no permutation p is below 0.100" in analyze(table, replace(FAST, test=Test.PERMUTATION)).comparisons[0].note
    assert "needs 8 rollouts" in analyze(table, replace(FAST, test=Test.BOOTSTRAP)).comparisons[0].note
    welch = analyze(table, FAST)
    assert welch.comparisons[0].p is not None
    assert "no simultaneous band" in welch.turns[0].note
    assert welch.turns[0].turns[0].band_low is None


def test_nearly_equal_rollouts_are_no_division_by_rounding_noise():
    noise = np.array([[0.1 + 0.2], [0.3], [0.3]])
    (result,) = analyze(_table(a=noise, b=np.array([[1.0], [2.0]])), FAST).comparisons
    assert (result.p, result.hedges_g) == (None, None)


def test_conditions_that_never_meet_are_named_not_dropped():
    arrays = {_cell("a", temperature=0.0): np.eye(3), _cell("b", temperature=1.0): np.eye(3)}
    table = RunTable.from_arrays("run", "axis", arrays)
    (result,) = analyze(table, FAST).comparisons
    assert (result.a, result.b, result.transcript, result.difference) == ("b", "a", None, None)
    assert "share no transcript and temperature" in (result.note or "")
    (turned,) = analyze(table, replace(FAST, against="b")).comparisons
    assert (turned.a, turned.b) == ("a", "b")


def test_what_the_table_does_not_have_is_refused_with_the_choices():
    table = _random(0, a=0.0, b=0.0)
    with pytest.raises(UsageError, match=r"condition 'z' is not in this run\nIt has: a, b"):
        analyze(table, replace(FAST, against="z"))
    with pytest.raises(UsageError, match=r"turns 3-9 are not in run"):
        analyze(table, replace(FAST, turns=(3, 9)))
    with pytest.raises(UsageError, match="two transcripts"):
        analyze(table, replace(FAST, test=Test.MIXED))


def test_pairs_exist_only_where_common_random_numbers_were_recorded():
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match=r"no pairs.*\n.*welch"):
        analyze(_table(common_noise=False, a=rng.normal(size=(9, 2)), b=rng.normal(size=(9, 2))), Options(test=Test.PAIRED))


def test_pairs_are_matched_by_sample_number():
    values = np.random.default_rng(0).normal(size=(10, 4))
    table = _table(a=values, b=values + np.linspace(0, 1, 10)[:, None])
    order = np.concatenate([np.arange(10), 10 + np.random.default_rng(1).permutation(10)])
    shuffled = replace(table, projections=table.projections[order], sample=table.sample[order])
    options = replace(FAST, test=Test.PAIRED)
    expected, found = (analyze(given, options).comparisons[0] for given in (table, shuffled))
    assert found.r == pytest.approx(expected.r) == pytest.approx(np.corrcoef(*(table.of(c).mean(axis=1) for c in "ab"))[0, 1])
    assert found.statistic == pytest.approx(expected.statistic)


# --- drift and rollouts that lack turns ---------------------------------------------------------------------------------------------------------------


def test_measures_of_complete_rollouts_are_the_plain_ones():
    rng = np.random.default_rng(0)
    a, b = (Sample(_cell(n), rng.normal(size=(5, 9)), np.arange(5), np.arange(1.0, 10)) for n in "ab")
    turns = np.arange(1, 10)
    expected = {
        Measure.MEAN: a.values.mean(axis=1),
        Measure.SLOPE: [stats.linregress(turns, row).slope for row in a.values],
        Measure.AREA: (a.values - a.values[:, :1]).sum(axis=1),
        Measure.THIRDS: a.values[:, 6:].mean(axis=1) - a.values[:, :3].mean(axis=1),
    }
    holed = replace(b, values=np.where(np.eye(5, 9) == 1, np.nan, b.values))
    for measure in Measure:
        np.testing.assert_allclose(both(measure, a, b)[0], expected[measure], atol=1e-12)
        # The other condition's gaps change nothing of a rollout that has all turns, as long as some rollout there has each turn.
        np.testing.assert_allclose(both(measure, a, holed)[0], expected[measure], atol=1e-12)


def test_a_rollout_without_the_late_turns_is_measured_against_the_same_turns():
    script = np.array([9.0, 6.0, 3.0, 0.0, 0.0, 0.0])
    levels = np.array([-1.0, 0.0, 1.0])
    a = script + levels[:, None]
    b = a + 2.0
    a[0, 2:] = np.nan
    (result,) = analyze(_table(a=a, b=b), FAST).comparisons
    # a's own late turn means rest on two rollouts with a higher level: the additive rule is near, plain averaging is far off.
    assert result.difference == pytest.approx(2.0, abs=0.4)
    assert result.difference != pytest.approx(b.mean() - np.nanmean(a, axis=1).mean(), abs=1.0)


def test_turns_that_only_one_condition_has_do_not_count():
    a = np.array([[1.0, 2.0, 90.0], [2.0, 2.5, 95.0], [1.5, 2.0, 99.0]])
    b = np.array([[1.0, 2.5, np.nan], [2.0, 1.5, np.nan], [1.5, 3.0, np.nan]])
    (result,) = analyze(_table(a=a, b=b), FAST).comparisons
    assert result.difference == pytest.approx(b[:, :2].mean() - a[:, :2].mean())


def test_slopes_are_compared_not_shown_alone():
    turns = np.arange(1, 13)
    rng = np.random.default_rng(20)
    table = _table(a=-0.5 * turns + rng.normal(size=(10, 12)), b=-0.3 * turns + rng.normal(size=(10, 12)))
    study = analyze(table, FAST)
    slope = next(row for row in study.drift if row.measure is Measure.SLOPE)
    assert slope.difference == pytest.approx(0.2, abs=0.1)
    assert slope.low < 0.2 < slope.high
    assert [c.mean for c in study.cell_drift if c.measure is Measure.SLOPE] == pytest.approx([-0.5, -0.3], abs=0.1)
    assert {row.measure for row in study.drift} == {Measure.SLOPE, Measure.AREA, Measure.THIRDS}


@pytest.mark.parametrize(("turns", "measures"), [(1, set()), (2, {Measure.SLOPE, Measure.AREA}), (3, set(Measure) - {Measure.MEAN})])
def test_short_transcripts_have_the_drift_that_they_can_have(turns, measures):
    study = analyze(_table(a=np.random.default_rng(0).normal(size=(9, turns)), b=np.random.default_rng(1).normal(size=(9, turns))), FAST)
    assert {row.measure for row in study.drift} == measures
    _assert_plain(study)


def test_suspect_replies_can_be_left_out():
    table = _random(1, a=0.0, b=0.0)
    table.flags.reciting[0, 5] = table.flags.length[1, 5] = True
    table.projections[0, 5] = 1e6
    left = table.without_suspect()
    assert np.isnan(left.projections).sum() == 1
    assert analyze(table, FAST).comparisons[0].difference < -1e3
    assert abs(analyze(left, FAST).comparisons[0].difference) < 3


# --- turn by turn -------------------------------------------------------------------------------------------------------------------------------------


def test_turns_are_adjusted_over_the_turns_that_have_a_test():
    rng = np.random.default_rng(10)
    a, b = rng.normal(0, 1, (6, 4)), rng.normal(1, 1, (6, 4))
    a[1:, 3] = np.nan
    (pair,) = analyze(_table(a=a, b=b), replace(FAST, correction=Correction.HOLM)).turns
    assert [t.turn for t in pair.turns] == [1, 2, 3, 4]
    assert [t.p_adjusted for t in pair.turns] == pytest.approx([*adjust([t.p for t in pair.turns[:3]], Correction.HOLM), None])
    assert pair.turns[0].p == pytest.approx(stats.ttest_ind(b[:, 0], a[:, 0], equal_var=False).pvalue)
    assert "One rollout on one side" in (pair.turns[3].note or "")


def test_maxt_is_the_permutation_distribution_of_the_largest_t():
    rng = np.random.default_rng(11)
    a, b = rng.normal(0.8, 1, (5, 4)), rng.normal(0, 1, (5, 4))
    (pair,) = analyze(_table(b=b, a=a), Options()).turns
    largest = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.abs(stats.ttest_ind(x, y, axis=axis, equal_var=False).statistic),
        vectorized=True,
        axis=0,
        n_resamples=9999,
        alternative="greater",
    ).null_distribution.max(axis=1)
    observed = np.abs(stats.ttest_ind(a, b, equal_var=False).statistic)
    assert [t.p_adjusted for t in pair.turns] == pytest.approx([np.mean(largest >= t - 1e-9) for t in observed])


def test_bands_are_wider_than_pointwise_intervals_and_narrower_than_bonferronis():
    (pair,) = analyze(_random(12, a=0.0, b=0.5), Options()).turns
    for turn in pair.turns:
        assert turn.band_low < turn.low < turn.difference < turn.high < turn.band_high
    assert pair.critical < stats.t.ppf(1 - 0.025 / 6, 11)


def test_paired_turns_flip_whole_pairs():
    shared = np.random.default_rng(13).normal(0, 5, (10, 5))
    noise = np.random.default_rng(14).normal(0, 0.1, (10, 5))
    table = _table(a=shared, b=shared + 0.3 + noise)
    assert analyze(table, Options(test=Test.PAIRED)).turns[0].significant == (1, 2, 3, 4, 5)
    assert analyze(table, Options()).turns[0].significant == ()


def test_band_of_one_condition_lies_around_its_mean():
    values = np.random.default_rng(15).normal(size=(12, 4))
    values[0, 3] = np.nan
    found = band(values, Options())
    np.testing.assert_allclose(found.mean, np.nanmean(values, axis=0))
    assert (found.low < found.mean).all()
    assert found.critical > stats.t.ppf(0.975, 11)
    alone = band(values[:1], Options())
    assert (alone.critical, np.isnan(alone.low).all()) == (None, True)
    assert "no simultaneous band" in band(values[:4], Options()).note


def test_of_very_many_pairs_only_those_with_the_first_condition_go_turn_by_turn():
    rng = np.random.default_rng(16)
    table = _table(**{f"c{i}": rng.normal(size=(4, 3)) for i in range(24)})
    study = analyze(table, FAST)
    assert len(study.comparisons) == 276 > MOST_TURN_PAIRS
    assert {pair.b for pair in study.turns} == {"c0"}
    assert "276 pairs are too many" in study.notes[0]


# --- several transcripts ------------------------------------------------------------------------------------------------------------------------------


def _scripts(count: int, *, n: int = 6, effect: float = 1.0) -> RunTable:
    rng = np.random.default_rng(17)
    arrays = {}
    for script in range(count):
        level, own = rng.normal(0, 3), rng.normal(0, 0.5)
        for name, shift in (("a", 0.0), ("b", effect + own)):
            arrays[_cell(name, f"s{script}")] = level + shift + rng.normal(size=(n, 4))
    return RunTable.from_arrays("run", "axis", arrays)


def test_transcripts_are_the_units_over_transcripts():
    table = _scripts(6)
    mean, slope = analyze(table, FAST).across
    per_script = [table.of("b", f"s{i}").mean() - table.of("a", f"s{i}").mean() for i in range(6)]
    expected = stats.ttest_1samp(per_script, 0)
    assert (mean.difference, mean.p, mean.df, mean.transcripts) == pytest.approx((np.mean(per_script), expected.pvalue, 5, 6))
    assert (mean.transcript, slope.measure) == (None, Measure.SLOPE)
    assert mean.note is None


def test_mixed_agrees_with_the_t_test_over_transcripts_on_balanced_data():
    table = _scripts(6)
    (mixed,), clustered = analyze(table, replace(FAST, test=Test.MIXED)).comparisons, analyze(table, FAST).across[0]
    assert (mixed.difference, mixed.statistic) == pytest.approx((clustered.difference, clustered.statistic), rel=1e-2)
    assert (mixed.transcript, mixed.transcripts, mixed.n_a) == (None, 6, 36)
    assert "mixed model" in mixed.method


@pytest.mark.parametrize("test", ["welch", "mixed"])
def test_few_transcripts_are_warned_about(test):
    study = analyze(_scripts(3), replace(FAST, test=Test(test)))
    rows = study.comparisons if test == "mixed" else study.across
    assert "Only 3 transcripts" in rows[0].note
    _assert_plain(study)


def test_mixed_on_constant_rollouts_has_a_sentence():
    arrays = {_cell(name, script): np.ones((3, 2)) for name in ("a", "b") for script in ("x", "y")}
    study = analyze(RunTable.from_arrays("run", "axis", arrays), replace(FAST, test=Test.MIXED))
    assert "without sampling noise" in study.comparisons[0].note
    _assert_plain(study)


# --- power --------------------------------------------------------------------------------------------------------------------------------------------


def test_power_says_what_more_rollouts_would_show():
    table = _random(18, a=0.0, b=1.0)
    found = power(table, Options(), half_widths=(0.3,))
    assert [p.measure for p in found] == [Measure.MEAN, Measure.SLOPE]
    mean = found[0]
    a, b = (table.of(c).mean(axis=1) for c in "ab")
    assert mean.sd == pytest.approx(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
    assert mean.sd_low < mean.sd < mean.sd_high
    assert [at.n for at in mean.sizes] == [12, 16, 32, 64, 128, 256]
    now = stats.ttest_ind(a, b).confidence_interval()
    assert mean.sizes[0].half_width == pytest.approx((now.high - now.low) / 2)
    assert next(at for at in mean.sizes if at.n == 64).detectable == pytest.approx(0.4991 * mean.sd, rel=1e-3)
    n = mean.needed[0].n
    assert half_width(mean.sd, n, 0.95) <= 0.3 < half_width(mean.sd, n - 1, 0.95)


def test_power_without_a_variance_or_within_reach_is_said():
    assert "needed to know a variance" in power(_table(a=np.ones((3, 2)), b=np.eye(3, 2)), Options())[0].note
    assert rollouts_for(1e-9, 1.0, 0.95) is None
    assert rollouts_for(1e9, 1.0, 0.95) == 2


# --- size ---------------------------------------------------------------------------------------------------------------------------------------------


def _many(conditions: int, rollouts: int, turns: int = 50) -> RunTable:
    rng = np.random.default_rng(19)
    return _table(**{f"c{i}": rng.normal(size=(rollouts, turns)) for i in range(conditions)})


def test_cost_grows_no_faster_than_the_rollouts():
    def seconds(rollouts: int) -> float:
        table, start = _many(20, rollouts), time.process_time()
        analyze(table, Options(against="c0", resamples=4999))
        return time.process_time() - start

    seconds(64)
    assert seconds(256) < 6 * seconds(64)


def test_memory_stays_far_below_a_gigabyte():
    table = _many(200, 64)
    tracemalloc.start()
    study = analyze(table, Options(resamples=99, against="c0"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(study.turns) == 199
    assert peak < 200e6


@pytest.mark.skipif(os.environ.get("CI") == "true", reason="takes 10 s of an undisturbed machine")
def test_two_hundred_conditions_take_under_ten_seconds():
    table, start = _many(200, 64), time.process_time()
    analyze(table, Options())
    assert time.process_time() - start < 10
