"""What the statistics do where the truth is known: every offered test and interval, the turns together, and analyses that are wrong on purpose.

Mostly 4,000 simulated experiments each, with fixed seeds: a rate of 5 % is then known to ± .7 points. `make simulation` runs all cases, slow ones too.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated import CASES, Case, sample
from simulation import DRAWS, LEVEL, ROLLOUTS, TURNS, Array, check_coverage, check_family, check_size, cut_short, fails, rollouts
from wrong_procedures import deviations

from drift_cli.analysis import effects, tests
from drift_cli.analysis.compare import holm
from drift_cli.analysis.maxt import Rows, joint
from drift_cli.analysis.measures import both, take
from drift_cli.analysis.results import Measure

RESAMPLES = 999


def _measured(measure: Measure, values: Array) -> Array:
    """(rollouts, experiments) of complete rollouts."""
    flat = sample(values.reshape(-1, values.shape[-1]))
    return take(measure, flat, np.ones(values.shape[-1], dtype=bool)).reshape(values.shape[:2])


@pytest.mark.parametrize("case", [case for case in CASES if not case.slow], ids=lambda case: f"{case.procedure}: {case.situation}")
def test_a_procedure_does_what_it_promises_and_those_of_the_past_do_not(case: Case):
    rates = case.run(np.random.default_rng((7, CASES.index(case))), case.draws)
    if case.sound:
        case.check(rates, case.draws)
    else:
        assert fails(lambda: case.check(rates, case.draws))


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
    a, b = (rollouts(rng, kind="skewed" if skewed else "normal").mean(axis=2) for _ in "ab")
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


def test_hedges_g_is_unbiased_and_its_paired_interval_covers():
    a, b, shared = np.random.default_rng(10).normal(size=(3, ROLLOUTS, DRAWS))
    assert effects.hedges_g(a + 0.8, b, LEVEL).g.mean() == pytest.approx(0.8, abs=0.02)
    found = effects.hedges_g_paired((a + shared) / np.sqrt(2) + 0.8, (b + shared) / np.sqrt(2), LEVEL)
    check_coverage(found.low, found.high, 0.8)
    assert found.g.mean() == pytest.approx(0.8, abs=0.02)


# --- rollouts that lack turns -------------------------------------------------------------------------------------------------------------------------


def test_a_difference_that_grows_is_not_shrunk_by_rollouts_that_end_early(null):
    rng = np.random.default_rng(7)
    a, b = cut_short(rng, null[0] + np.linspace(0, 1, TURNS), 0.5), cut_short(rng, null[1], 0.1)
    found = [both(Measure.MEAN, sample(a[:, draw]), sample(b[:, draw])) for draw in range(1000)]
    assert np.mean([x.mean() - y.mean() for x, y in found]) == pytest.approx(0.5, abs=0.01)
    past = deviations(a[:, :1000], b[:, :1000])
    assert (past[0].mean(axis=0) - past[1].mean(axis=0)).mean() < 0.47
    plainly = tests.welch(np.nanmean(a, axis=2), np.nanmean(b, axis=2), LEVEL)
    assert "rejects" in fails(lambda: check_size(plainly.p))


# --- turn by turn -------------------------------------------------------------------------------------------------------------------------------------


def test_a_real_difference_at_later_turns_does_not_make_the_others_significant(null):
    effect = np.where(np.arange(TURNS) >= 9, 0.8, 0.0)
    found = joint([Rows.of(null[0] + effect, 0), Rows.of(null[1], 1)], [(0, 1)], LEVEL, 499, 0)
    check_family(found.p[:, 0, :9])
    largest = np.abs(found.statistic[:, 0, 9:]).max(axis=1)
    assert np.mean(largest > found.critical) > 0.95


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
    assert "finds something" in fails(lambda: check_family(_turn_p(null)))


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
