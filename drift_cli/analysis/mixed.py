"""Two conditions over several transcripts: is the difference there on other scripts too? Arrays in, one `Difference` out.

Rollouts of one transcript share its script, so they are no independent evidence about other scripts: the transcript is the cluster.

- `mixed`: linear mixed model (`statsmodels` MixedLM, REML): condition as the fixed effect; each transcript has a random level and a random difference
  between the conditions, independent of each other. Leaving the random difference out would take every rollout for evidence about every script.
- `clustered`: one difference per transcript, Student's t over these (`scipy.stats.ttest_1samp`). For equal numbers of rollouts this is what the mixed
  model comes to, wherever the transcripts differ by more than sampling noise.

Both take transcripts - 1 degrees of freedom (the containment rule), since statsmodels itself gives a normal approximation, which rejects a true null
far too often for few transcripts. Where the model finds no variation between transcripts, that is conservative.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from drift_cli.analysis.results import Difference
from drift_cli.analysis.summary import constant, percent, plain
from drift_cli.analysis.table import FloatArray

FEW_TRANSCRIPTS = 5
Group = tuple[FloatArray, FloatArray]
"""One transcript: observations of a (n,) and of b (m,), all finite."""


def mixed(groups: Sequence[Group], level: float, margin: float | None = None) -> Difference:
    """The difference over transcripts by the mixed model; a note where there is none."""
    result = _start(
        groups, level, f"linear mixed model (REML), transcript as random level and difference, {percent(level)} interval with t"
    )
    if result.note:
        return result
    y, x, transcript = _stacked(groups)
    spread = y.std()
    estimate, error, sentences = _fit((y - y.mean()) / spread, x, transcript)
    return _finish(result, estimate * spread, error * spread, len(groups), margin, sentences)


def clustered(groups: Sequence[Group], level: float, margin: float | None = None) -> Difference:
    """The mean of the transcripts' own differences, each transcript counting once."""
    result = _start(groups, level, f"t test over transcripts' differences, {percent(level)} t interval")
    if result.note:
        return result
    differences = np.array([a.mean() - b.mean() for a, b in groups])
    if constant(differences[:, None])[0]:
        return replace(
            result, difference=float(differences.mean()), note="The difference is the same on every transcript: there is no test."
        )
    return _finish(result, float(differences.mean()), float(stats.sem(differences)), len(groups), margin, [])


def _start(groups: Sequence[Group], level: float, method: str) -> Difference:
    n_a, n_b = (sum(len(group[side]) for group in groups) for side in (0, 1))
    result = Difference(n_a=n_a, n_b=n_b, difference=None, level=level, method=method)
    if len(groups) < 2:
        return replace(result, note="Fewer than two transcripts have both conditions: nothing can be said about other scripts.")
    if all(constant(side[:, None])[0] for group in groups for side in group):
        return replace(
            result, note="All rollouts of a transcript and condition are equal: without sampling noise there is no model to fit."
        )
    return result


def _stacked(groups: Sequence[Group]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Observations (N,), condition (N,) as ½ for a and -½ for b, transcript number (N,)."""
    y = np.concatenate([side for group in groups for side in group])
    x = np.concatenate([np.full(len(side), half) for group in groups for side, half in zip(group, (0.5, -0.5), strict=True)])
    transcript = np.concatenate([np.full(len(a) + len(b), float(index)) for index, (a, b) in enumerate(groups)])
    return y, x, transcript


def _fit(y: FloatArray, x: FloatArray, transcript: FloatArray) -> tuple[float, float, list[str]]:
    """The condition's effect, its standard error, and what there is to say about the fit."""
    from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams
    from statsmodels.tools.sm_exceptions import ConvergenceWarning, SingularMatrixWarning

    design = np.column_stack([np.ones_like(x), x])
    model = MixedLM(y, design, groups=transcript, exog_re=design)
    with warnings.catch_warnings():
        # It warns on its way from one optimizer to the next, and where a variance is estimated as 0; what became of it is said below.
        for kind in (ConvergenceWarning, SingularMatrixWarning):
            warnings.simplefilter("ignore", kind)
        fit = model.fit(reml=True, free=MixedLMParams.from_components(np.ones(2), np.eye(2)))
    sentences = []
    if not fit.converged:
        sentences.append("The model's optimizer did not fully converge; compare with the t test over transcripts.")
    if fit.cov_re[1, 1] < 1e-6:
        sentences.append(
            "No variation of the difference between transcripts was found beyond sampling noise; the interval is then conservative."
        )
    return float(fit.fe_params[1]), float(fit.bse_fe[1]), sentences


def _finish(result: Difference, estimate: float, error: float, transcripts: int, margin: float | None, sentences: list[str]) -> Difference:
    """The result with estimate, t test, interval and equivalence; and the warning about few transcripts."""
    df = transcripts - 1
    half = float(stats.t.ppf((1 + result.level) / 2, df)) * error
    if transcripts < FEW_TRANSCRIPTS:
        sentences = [f"Only {transcripts} transcripts: what is said about other scripts rests on {transcripts} cases.", *sentences]
    return replace(
        result,
        difference=estimate,
        low=plain(estimate - half),
        high=plain(estimate + half),
        statistic=plain(estimate / error),
        df=float(df),
        p=plain(2 * stats.t.sf(abs(estimate) / error, df)),
        p_equivalence=None if margin is None else plain(stats.t.sf((margin - abs(estimate)) / error, df)),
        note=" ".join(sentences) or None,
    )
