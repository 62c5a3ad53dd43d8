"""Two conditions over several transcripts: is the difference there on other scripts too? Arrays in, one `Difference` out.

Rollouts of one transcript share its script, so they are no independent evidence about other scripts: the transcript is the cluster.

- `mixed`: linear mixed model by REML (`reml.py`): condition as the fixed effect; each transcript has a random level and a random difference between the
  conditions, independent of each other; Kenward-Roger standard error and degrees of freedom. Leaving the random difference out would take every rollout for
  evidence about every script. With fewer than `LEAST_TRANSCRIPTS` it is refused in favour of `clustered`, which then rests on the same few differences.
- `clustered`: one difference per transcript, Student's t over these (`scipy.stats.ttest_1samp`). For equal numbers of rollouts this is what the mixed
  model comes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from drift_cli.analysis import reml
from drift_cli.analysis.results import Difference
from drift_cli.analysis.summary import constant, percent, plain
from drift_cli.analysis.table import FloatArray

FEW_TRANSCRIPTS = 5
LEAST_TRANSCRIPTS = 4
Group = tuple[FloatArray, FloatArray]
"""One transcript: observations of a (n,) and of b (m,), all finite."""


def mixed(groups: Sequence[Group], level: float, margin: float | None = None) -> Difference:
    """The difference over transcripts by the mixed model; a note where there is none."""
    if 2 <= len(groups) < LEAST_TRANSCRIPTS:
        instead = clustered(groups, level, margin)
        said = f"The mixed model needs {LEAST_TRANSCRIPTS} transcripts; this is the t test over transcripts' differences."
        return replace(instead, note=" ".join(filter(None, (said, instead.note))))
    result = _start(
        groups,
        level,
        f"linear mixed model (REML), transcript as random level and difference, {percent(level)} interval with Kenward-Roger t",
    )
    if result.note:
        return result
    if constant(np.array([a.mean() - b.mean() for a, b in groups])[:, None])[0]:
        return clustered(groups, level, margin)
    center, spread = _scale(groups)
    found = reml.fit([_data(a, b, center, spread) for a, b in groups])
    sentences = []
    if found.components[1] <= 0:
        sentences.append("The difference varies no more between transcripts than sampling noise alone would make it.")
    return _finish(
        result,
        float(found.beta[1]) * spread,
        float(found.error[1]) * spread,
        len(groups),
        margin,
        sentences,
        df=float(found.df[1]),
    )


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


def _scale(groups: Sequence[Group]) -> tuple[float, float]:
    """Mean and SD of all observations: the fit is of standardized ones."""
    y = np.concatenate([side for group in groups for side in group])
    return float(y.mean()), float(y.std())


def _data(a: FloatArray, b: FloatArray, center: float, spread: float) -> reml.Data:
    """A transcript's observations, the condition as ½ for a and -½ for b."""
    x = np.concatenate([np.full(len(a), 0.5), np.full(len(b), -0.5)])
    design = np.column_stack([np.ones_like(x), x])
    return reml.Data((np.concatenate([a, b]) - center) / spread, design, design)


def _finish(
    result: Difference,
    estimate: float,
    error: float,
    transcripts: int,
    margin: float | None,
    sentences: list[str],
    df: float | None = None,
) -> Difference:
    """The result with estimate, t test, interval and equivalence; and the warning about few transcripts. `df`: transcripts - 1 unless given."""
    df = transcripts - 1.0 if df is None else df
    half = float(stats.t.ppf((1 + result.level) / 2, df)) * error
    if transcripts < FEW_TRANSCRIPTS:
        sentences = [f"Only {transcripts} transcripts: what is said about other scripts rests on {transcripts} cases.", *sentences]
    return replace(
        result,
        difference=estimate,
        low=plain(estimate - half),
        high=plain(estimate + half),
        statistic=plain(estimate / error),
        df=df,
        p=plain(2 * stats.t.sf(abs(estimate) / error, df)),
        p_equivalence=None if margin is None else plain(stats.t.sf((margin - abs(estimate)) / error, df)),
        note=" ".join(sentences) or None,
    )
