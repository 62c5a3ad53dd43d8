"""Axes of tiny models whose personas lie apart most clearly at a layer of one's choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drift_cli.axis import Axis
from drift_cli.measuring.contrast import contrast, unit

SIDES = ("default", "helper", "assistant")
OTHERS = ("ghost", "king", "bard")


def made_axis(name: str, layers: int, best: int, *, width: int = 32, model: str | None = None, revision: str | None = None) -> Axis:
    """An axis of layers 0 to `layers` that suggests layer `best`."""
    draw = np.random.default_rng(5)
    means = draw.standard_normal((6, layers + 1, width))
    means[:3, :, 0] += 3.0
    means[:3, best, 0] += 40.0
    vectors = unit(contrast(means, np.array([True] * 3 + [False] * 3)), name)
    return Axis(
        name,
        tuple(range(layers + 1)),
        vectors,
        model,
        revision,
        personas=(*SIDES, *OTHERS),
        means=means.astype(np.float32),
        assistants=SIDES,
    )


def put(axis: Axis) -> Axis:
    """Save it where a name finds it."""
    axis.save(Path("data/axes") / f"{axis.name}.safetensors")
    return axis
