"""How an axis sits among the personas it was made from.

All numbers are over persona means at one layer, in float64. The first principal component is of the centred means (scikit-learn's PCA gives the same). d' is
the difference of the two sides' mean projections over the root of the mean of their variances (ddof 1). Leaving one persona out, the axis is made again from
the others, and the one that was left out is projected on it, measured from the midpoint between the others' sides: what is seen of a persona that the axis
does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift_cli.axis import Axis

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LeaveOneOut:
    """The axis made again without each persona in turn."""

    cosine_min: float
    cosine_mean: float
    """Of those axes with the axis."""
    least: str
    """The persona without which the axis changes most."""
    d_prime: float
    """Over the projections of each persona on the axis that was made without it."""


@dataclass(frozen=True)
class Diagnostics:
    """One layer's."""

    layer: int
    cosine_with_pc1: float
    """PC1's sign is taken so that this is positive."""
    variance_explained: float
    """Share of the centred personas' variance along the axis."""
    pc1_variance: float
    ordering: tuple[tuple[str, float], ...]
    """(persona, projection of its mean, centred over personas), from the assistant's end down."""
    d_prime: float | None
    """None where a side has fewer than two personas, or no spread."""
    left_out: LeaveOneOut | None
    """None where a side has fewer than three personas."""


def diagnose(axis: Axis, layer: int) -> Diagnostics | None:
    """None where the axis does not know its personas."""
    if axis.means is None:
        return None
    values = axis.means[:, axis.layers.index(layer)].astype(np.float64)
    sides = _sides(axis)
    centred = values - values.mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    unit = axis.at(layer).astype(np.float64)
    along = centred @ unit
    total = float((centred**2).sum())
    if total == 0:
        return None
    return Diagnostics(
        layer,
        float(abs(rows[0] @ unit)),
        float((along**2).sum() / total),
        float(singular[0] ** 2 / total),
        tuple((axis.personas[i], float(along[i])) for i in np.argsort(-along, kind="stable")),
        separation(along[sides], along[~sides]),
        _left_out(axis, values, sides, unit),
    )


def sweep(axis: Axis) -> list[Diagnostics]:
    """Every layer's, in the axis's order; empty where the axis does not know its personas."""
    return [found for layer in axis.layers if (found := diagnose(axis, layer)) is not None]


def suggest(found: list[Diagnostics]) -> int | None:
    """The layer at which a persona left out lies on its own side most clearly (largest held-out d', else largest d').

    Never layer 0, which knows words only, unless there is no other. None where no layer has such a number.
    """
    return _best({d.layer: d.left_out.d_prime if d.left_out is not None else d.d_prime for d in found})


def suggested_layer(axis: Axis) -> int | None:
    """`suggest` without everything else that a sweep finds out; None where the axis does not know its personas."""
    if axis.means is None:
        return None
    scores = {}
    for place, layer in enumerate(axis.layers):
        values, sides = axis.means[:, place].astype(np.float64), _sides(axis)
        left_out = _left_out(axis, values, sides, axis.vectors[place].astype(np.float64))
        along = (values - values.mean(0)) @ axis.vectors[place].astype(np.float64)
        scores[layer] = left_out.d_prime if left_out is not None else separation(along[sides], along[~sides])
    return _best(scores)


def _best(scores: Mapping[int, float | None]) -> int | None:
    """The layer of the largest score. Never layer 0, which knows words only, unless there is no other."""
    known = {layer: score for layer, score in scores.items() if score is not None and np.isfinite(score)}
    above = {layer: score for layer, score in known.items() if layer > 0} or known
    return max(above, key=lambda layer: above[layer]) if above else None


def _sides(axis: Axis) -> NDArray[np.bool_]:
    """(personas,), True for the assistant's."""
    return np.array([persona in axis.assistants for persona in axis.personas])


def separation(a: Array, b: Array) -> float | None:
    """d' of two samples (n,), (m,); None where one has fewer than two values or neither has spread."""
    if min(len(a), len(b)) < 2:
        return None
    spread = float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
    return float((a.mean() - b.mean()) / spread) if spread > 0 else None


def _left_out(axis: Axis, values: Array, sides: NDArray[np.bool_], unit: Array) -> LeaveOneOut | None:
    """`values` (personas, width), `sides` (personas,), `unit` (width,)."""
    if min(sides.sum(), (~sides).sum()) < 3:
        return None
    # Without persona i only its own side's mean changes: to (sum - value) / (n - 1).
    means = {side: values[sides == side].mean(0) for side in (True, False)}
    without = {side: means[side] + (means[side] - values) / ((sides == side).sum() - 1) for side in (True, False)}
    ours, theirs = (np.where((sides == side)[:, None], without[side], means[side]) for side in (True, False))
    made = ours - theirs
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    cosines, along = made @ unit, np.einsum("pw,pw->p", values - (ours + theirs) / 2, made)
    d_prime = separation(along[sides], along[~sides])
    if d_prime is None:
        return None
    return LeaveOneOut(float(cosines.min()), float(cosines.mean()), axis.personas[int(cosines.argmin())], d_prime)
