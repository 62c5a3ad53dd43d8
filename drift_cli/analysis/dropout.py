"""What missing turns may hide. `measures.py` is right where turns are missing independently of what would have been said; an early end for want of context,
say, depends on how much was said. So a difference between conditions with missing turns comes with

- worst-case bounds (Manski 1990): every missing reply at the lowest or the highest projection that any reply of the two conditions has, whichever is worse
  for the difference; the outer ends of the Welch intervals of the rollouts so completed. (A projection has no bounds of its own: those seen stand in.)
- a tipping point: how far the missing replies would have to lie from the mean of those that are there, at the same turn, all in the worse direction, for
  the interval to reach 0 (its width taken as it is).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis import tests
from drift_cli.analysis.measures import Sample, least_turns, take, weights
from drift_cli.analysis.results import Difference, Worst
from drift_cli.analysis.summary import constant
from drift_cli.analysis.table import FloatArray


def worst(measure: str, a: Sample, b: Sample, found: Difference) -> Worst | None:
    """The bounds of a difference `found`; None where no turn is missing, there is no interval, or the measure is not linear."""
    counts = a.counts & b.counts
    if (a.complete and b.complete) or found.low is None or found.high is None or counts.sum() < least_turns(measure):
        return None
    weight = weights(measure, a.turns[counts])
    if weight is None:
        return None
    seen = np.concatenate([of.values[of.has] for of in (a, b)])
    ends = []
    for toward in (-1, 1):
        filled = [_filled(of, counts, weight * toward * side, seen) for of, side in ((a, 1), (b, -1))]
        x, y = (take(measure, of, np.ones(len(weight), dtype=np.bool_))[:, None] for of in filled)
        if constant(x)[0] and constant(y)[0]:
            ends.append(float(x.mean() - y.mean()))
            continue
        estimate = tests.welch(x, y, found.level)
        ends.append(float((estimate.low if toward < 0 else estimate.high)[0]))
    gaps = [1 - of.has[of.has.any(axis=1)][:, counts].mean(axis=0) for of in (a, b)]
    reach = float(np.abs(weight) @ (gaps[0] + gaps[1]))
    clear = found.low if found.low > 0 else -found.high if found.high < 0 else None
    tipping = None if clear is None or reach == 0 else clear / reach
    return Worst(ends[0], ends[1], tipping, *(float(gap.mean()) for gap in gaps))


def _filled(of: Sample, counts: NDArray[np.bool_], pull: FloatArray, seen: FloatArray) -> Sample:
    """The started rollouts on the turns that count, missing replies at the highest projection `seen` where `pull` (T,) is positive, else the lowest."""
    rows = of.has.any(axis=1)
    values = of.values[rows][:, counts]
    filled = np.where(np.isfinite(values), values, np.where(pull > 0, seen.max(), seen.min()))
    return replace(of, values=filled, samples=of.samples[rows], turns=of.turns[counts])
