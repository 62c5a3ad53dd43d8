"""What the statistics do where the truth is known: every offered test and interval, the turns together, and analyses that are wrong on purpose.

At least 5,000 simulated experiments each, with fixed seeds: a rate of 5 % is then known to ± .6 points.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulation import DRAWS, LEVEL, ROLLOUTS, SCRIPT, TURNS, Array, check_coverage, check_family, check_size, fails, rollouts

from drift_cli.analysis import effects, mixed, tests
from drift_cli.analysis.compare import holm
from drift_cli.analysis.maxt import errors, joint
from drift_cli.analysis.measures import Sample, both, take
from drift_cli.analysis.results import Measure
from drift_cli.spec import Cell

RESAMPLES = 999
CELL = Cell("script", "a", 0.5)


def _sample(values: Array) -> Sample:
    return Sample(CELL, values, np.arange(len(values)), np.arange(1.0, values.shape[1] + 1))


def _measured(measure: Measure, values: Array) -> Array:
    """(rollouts, experiments) of complete rollouts."""
    flat = _sample(values.reshape(-1, values.shape[-1]))
    return take(measure, flat, np.zeros(values.shape[-1])).reshape(values.shape[:2])


@pytest.fixture(scope="module")
def null() -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    return rollouts(rng), rollouts(rng)


# --- over rollout means -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", Measure)
def test_welch_on_rollouts_has_its_size_and_coverage(null, measure):
    found = tests.welch(_measured(measure, null[0]), _measured(measure, null[1]), LEVEL)
    check_size(found.p)
    check_coverage(found.low, found.high, 0.0)


def test_welch_holds_for_unequal_spread_and_numbers():
    rng = np.random.default_rng(2)
    a, b = rollouts(rng, 10, spread=2.0).mean(axis=2), rollouts(rng, 30).mean(axis=2)
    found = tests.welch(a, b, LEVEL)
    check_size(found.p)
    check_coverage(found.low, found.high, 0.0)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("test", [tests.permutation, tests.bootstrap])
def test_resampling_tests_have_their_size_and_coverage(test, skewed):
    rng = np.random.default_rng(3)
    a, b = (rollouts(rng, skewed=skewed).mean(axis=2) for _ in "ab")
    found = test(a, b, LEVEL, 1999, 0)
    check_size(found.p)
    check_coverage(found.low, found.high, 0.0)


def test_paired_holds_where_samples_share_their_noise_and_gains_what_it_says(null):
    shared = rollouts(np.random.default_rng(4))
    a, b = ((values + shared).mean(axis=2) for values in null)
    found = tests.paired(a, b, LEVEL, RESAMPLES, 0)
    check_size(found.p)
    check_size(found.p_flip)
    check_coverage(found.low, found.high, 0.0)
    assert np.median(found.r) == pytest.approx(0.5, abs=0.03)
    assert np.median(found.gain) == pytest.approx(2.0, abs=0.1)


def test_equivalence_is_claimed_at_the_margin_as_often_as_it_may_be(null):
    a, b = (values.mean(axis=2) for values in null)
    check_size(effects.equivalence(a + 0.4, b, 0.4))
    check_size(effects.equivalence_paired(a + 0.4, b, 0.4))


def test_interval_of_hedges_g_covers_the_true_effect():
    a, b = np.random.default_rng(10).normal(size=(2, ROLLOUTS, DRAWS))
    found = effects.hedges_g(a + 0.8, b, LEVEL)
    check_coverage(found.low, found.high, 0.8)
    assert found.g.mean() == pytest.approx(0.8, abs=0.02)


def _balanced(rng: np.random.Generator, draws: int, transcripts: int = 8, n: int = 6, varying: float = 0.5) -> Array:
    """(transcripts, 2, n, draws): no difference on average, one that varies from transcript to transcript."""
    level = rng.normal(0, 2, (transcripts, 1, 1, draws))
    difference = varying * rng.normal(size=(transcripts, 1, 1, draws)) * np.array([0.5, -0.5])[None, :, None, None]
    return level + difference + rng.normal(0, 1, (transcripts, 2, n, draws))


def _reml(y: Array) -> tuple[Array, Array]:
    """Estimate and standard error (draws,) of the mixed model, in the closed form that balanced data have."""
    transcripts, _, n, _ = y.shape
    differences = y[:, 0].mean(axis=1) - y[:, 1].mean(axis=1)
    within_df = 2 * transcripts * (n - 1)
    within = 2 / n * ((y - y.mean(axis=2, keepdims=True)) ** 2).sum(axis=(0, 1, 2)) / within_df
    between = differences.var(axis=0, ddof=1)
    pooled = ((transcripts - 1) * between + within_df * within) / (transcripts - 1 + within_df)
    return differences.mean(axis=0), np.sqrt(np.where(between < within, pooled, between) / transcripts)


@pytest.mark.parametrize("varying", [0.0, 0.5])
def test_mixed_model_is_its_closed_form_on_balanced_data(varying):
    y = _balanced(np.random.default_rng(5), 4, varying=varying)
    estimates, standard_errors = _reml(y)
    for draw in range(y.shape[-1]):
        found = mixed.mixed([(group[0, :, draw], group[1, :, draw]) for group in y], LEVEL)
        assert found.difference == pytest.approx(estimates[draw], abs=1e-6)
        assert found.statistic == pytest.approx(estimates[draw] / standard_errors[draw], rel=5e-3)
        assert found.df == 7.0


def test_mixed_has_its_size_and_coverage():
    estimate, error = _reml(_balanced(np.random.default_rng(6), DRAWS, varying=1.0))
    half = stats.t.ppf((1 + LEVEL) / 2, 7) * error
    check_size(2 * stats.t.sf(np.abs(estimate / error), 7))
    check_coverage(estimate - half, estimate + half, 0.0)


# --- rollouts that lack turns -------------------------------------------------------------------------------------------------------------------------


def _cut(rng: np.random.Generator, values: Array, share: float) -> Array:
    """This share of the rollouts ends early, anywhere from turn 5 on."""
    ends = np.where(rng.random(values.shape[:2]) < share, rng.integers(5, TURNS, values.shape[:2]), TURNS)
    return np.where(np.arange(TURNS) < ends[..., None], values, np.nan)


def test_rollouts_that_end_early_in_one_condition_do_not_make_a_difference(null):
    rng = np.random.default_rng(7)
    a, b = _cut(rng, null[0], 0.25), _cut(rng, null[1], 0.05)
    found = [both(Measure.MEAN, _sample(a[:, draw]), _sample(b[:, draw])) for draw in range(DRAWS)]
    kept = tests.welch(*(np.stack(side, axis=1) for side in zip(*found, strict=True)), LEVEL)
    check_size(kept.p)
    check_coverage(kept.low, kept.high, 0.0)
    plainly = tests.welch(np.nanmean(a, axis=2), np.nanmean(b, axis=2), LEVEL)
    assert "rejects" in fails(lambda: check_size(plainly.p))


# --- turn by turn -------------------------------------------------------------------------------------------------------------------------------------


def test_turns_together_keep_the_family_wise_error_and_bands_hold_the_whole_curve(null):
    effect = np.where(np.arange(TURNS) >= 9, 0.8, 0.0)
    rows = np.concatenate(null)
    found = joint(rows, ROLLOUTS, LEVEL, RESAMPLES, 0)
    check_family(found.p)
    difference = rows[:ROLLOUTS].mean(axis=0) - rows[ROLLOUTS:].mean(axis=0)
    half = found.critical[:, None] * errors(rows.reshape(2 * ROLLOUTS, -1), ROLLOUTS).reshape(DRAWS, TURNS)
    distance = (np.abs(difference) / half).max(axis=1)
    check_coverage(-np.ones(DRAWS), np.ones(DRAWS), distance)
    # A real difference at later turns must not make the others significant.
    rows = np.concatenate([null[0] + effect, null[1]])[:, :1000]
    check_family(joint(rows, ROLLOUTS, LEVEL, RESAMPLES, 0).p[:, :9])


def test_band_of_one_curve_holds_it_and_flipped_signs_keep_the_family_wise_error(null):
    rows = null[0] - SCRIPT
    found = joint(rows, ROLLOUTS, LEVEL, RESAMPLES, 0)
    check_family(found.p)
    error = errors(rows.reshape(ROLLOUTS, -1), ROLLOUTS).reshape(DRAWS, TURNS)
    distance = np.abs(rows.mean(axis=0) / (found.critical[:, None] * error)).max(axis=1)
    check_coverage(-np.ones(DRAWS), np.ones(DRAWS), distance)


def _turn_p(null: tuple[Array, Array]) -> Array:
    """Welch's p (experiments, turns)."""
    return np.asarray(stats.ttest_ind(*null, axis=0, equal_var=False).pvalue)


def test_holm_keeps_the_family_wise_error(null):
    check_family(holm(_turn_p(null)))


# --- wrong on purpose ---------------------------------------------------------------------------------------------------------------------------------


def test_cells_as_independent_observations_fail(null):
    a, b = (np.moveaxis(values, 1, 2).reshape(-1, DRAWS) for values in null)
    found = tests.welch(a, b, LEVEL)
    assert "rejects" in fails(lambda: check_size(found.p))
    assert "covers" in fails(lambda: check_coverage(found.low, found.high, 0.0))


def test_pairing_by_turn_fails(null):
    a, b = (values.mean(axis=0).T for values in null)
    assert "rejects" in fails(lambda: check_size(stats.ttest_rel(a, b, axis=0).pvalue))


def test_turns_without_correction_fail(null):
    assert "finds a turn" in fails(lambda: check_family(_turn_p(null)))


def test_leaving_pairs_out_of_account_fails_too(null):
    # Samples that share their noise, compared as if they did not: the test rejects too little, and the harness sees that side as well.
    shared = rollouts(np.random.default_rng(8))
    a, b = ((values + shared).mean(axis=2) for values in null)
    assert "rejects" in fails(lambda: check_size(tests.welch(a, b, LEVEL).p))


def test_percentile_bootstrap_of_few_rollouts_fails(null):
    a, b = (values.mean(axis=2) for values in null)
    rng = np.random.default_rng(9)
    means = (
        np.quantile((rng.multinomial(ROLLOUTS, [1 / ROLLOUTS] * ROLLOUTS, 999) / ROLLOUTS) @ (a - b), q, axis=0) for q in (0.025, 0.975)
    )
    assert "covers" in fails(lambda: check_coverage(*means, 0.0))
