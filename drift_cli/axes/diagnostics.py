"""How an axis sits among the personas it was made from.

All numbers are over persona means at one layer, in float64. The first principal component is of the centred means (scikit-learn's PCA gives the same). d' is
the difference of the two sides' mean projections over the root of the mean of their variances (ddof 1). Leaving one persona out, the axis is made again from
the others, and the one that was left out is projected on it, measured from the midpoint between the others' sides: what is seen of a persona that the axis
does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift_cli.axes.axis import Axis
from drift_cli.axes.contrast import contrast

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
    sides = np.array([persona in axis.assistants for persona in axis.personas])
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
    scores = {d.layer: d.left_out.d_prime if d.left_out is not None else d.d_prime for d in found}
    known = {layer: score for layer, score in scores.items() if score is not None}
    above = {layer: score for layer, score in known.items() if layer > 0} or known
    return max(above, key=lambda layer: above[layer]) if above else None


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
    cosines, along = np.empty(len(values)), np.empty(len(values))
    for index in range(len(values)):
        others = np.arange(len(values)) != index
        rest, those = values[others], sides[others]
        made = contrast(rest, those)
        made /= np.linalg.norm(made)
        middle = (rest[those].mean(0) + rest[~those].mean(0)) / 2
        cosines[index], along[index] = made @ unit, (values[index] - middle) @ made
    d_prime = separation(along[sides], along[~sides])
    if d_prime is None:
        return None
    return LeaveOneOut(float(cosines.min()), float(cosines.mean()), axis.personas[int(cosines.argmin())], d_prime)
