"""The rules by which a condition held the model, in the order in which they are tried (docs/statistics.md has them in words):

*held*: it stayed near its own start, the baseline did not, and a difference from the baseline in its favour is shown. *partly*: it is shown to drift less
than the baseline, but not to have stayed. *did not hold*: it is shown to have fallen by more than the margin, and not to drift less. *not shown to differ*:
neither its level nor its drift is. *undecided*: anything else, and wherever there is no interval.

The margin is the smallest effect of interest, `Options.equivalence`; without one, half of the baseline's own fall, with its uncertainty in the test (as
tests of a preserved fraction do).
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from scipy import stats

from drift_cli.analysis.measures import Sample
from drift_cli.analysis.results import Comparison, Measure
from drift_cli.analysis.table import FloatArray


class Verdict(StrEnum):
    """What is said of a condition."""

    HELD = "held"
    PARTLY = "partly"
    DID_NOT_HOLD = "did not hold"
    UNDECIDED = "undecided"
    NOT_SHOWN = "not shown to differ"


def rule(
    mean: Comparison | None, drift: Comparison | None, stayed: float | None, sank: float | None, *, base_fell: bool, level: float
) -> Verdict:
    """The verdict from what is shown."""
    alpha = 1 - level
    better = [row for row in (mean, drift) if row is not None and row.starred and (row.difference or 0.0) > 0]
    less = drift is not None and drift in better
    more = drift is not None and drift.starred and not less
    if mean is None or mean.p is None or drift is None or drift.p is None:
        return Verdict.UNDECIDED
    if stayed is not None and stayed <= alpha and base_fell and better and not more:
        return Verdict.HELD
    if less:
        return Verdict.PARTLY
    if sank is not None and sank <= alpha and base_fell:
        return Verdict.DID_NOT_HOLD
    return Verdict.UNDECIDED if mean.starred or drift.starred else Verdict.NOT_SHOWN


def changes(of: Sample) -> FloatArray:
    """Changes (n,) of the rollouts from their own starts, of those that have one."""
    values = of.own[Measure.CHANGE]
    return np.asarray(values[np.isfinite(values)])


def interval(values: FloatArray, level: float) -> tuple[float | None, float | None]:
    """The t interval of the mean of (n,) values; None where they are fewer than two, or all equal."""
    if len(values) < 2 or values.std() <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return None, None
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return float(values.mean()) - half, float(values.mean()) + half


def fell(of: Sample, level: float) -> bool:
    """Whether the rollouts are shown to have fallen at all."""
    high = interval(changes(of), level)[1]
    return high is not None and high < 0


def beside_margin(of: Sample, baseline: Sample | None, margin: float | None) -> tuple[float | None, float | None]:
    """One-sided p that the fall is less, and that it is more, than the margin."""
    change = changes(of)
    if len(change) < 2 or interval(change, 0.95)[0] is None:
        return None, None
    squared, df = float(stats.sem(change)) ** 2, float(len(change) - 1)
    if margin is not None:
        gap = float(change.mean()) + margin
    else:
        if baseline is None or len(base := changes(baseline)) < 2 or baseline is of:
            return None, None
        gap, other = float(change.mean() - base.mean() / 2), float(stats.sem(base) / 2) ** 2
        df = (squared + other) ** 2 / (squared**2 / (len(change) - 1) + other**2 / (len(base) - 1))
        squared += other
    t = gap / squared**0.5
    return float(stats.t.sf(t, df)), float(stats.t.cdf(t, df))
