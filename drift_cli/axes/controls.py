"""Control axes: what an effect on the real axis is to be compared with. Is it this axis, or any axis?

`random`: unit vectors uniform on the sphere. `shuffled`: the same contrast of the same persona means with the labels shuffled, each side as large as it was.
Both are at one layer, drawn from a seed, and the same numbers always.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift_cli.axes.axis import Axis
from drift_cli.axes.contrast import contrast, sides_of, unit
from drift_cli.errors import DriftError, StoreError
from drift_cli.spec import Part

if TYPE_CHECKING:
    from drift_cli.store.run import Run

FORMAT = "drift-controls-1"


@dataclass(frozen=True)
class Controls:
    """Unit vectors at one layer, made for an axis."""

    axis: str
    digest: str
    """The axis's."""
    layer: int
    seed: int
    random: NDArray[np.float32]
    """(N, width)."""
    shuffled: NDArray[np.float32]
    """(N, width), or (0, width) where the axis does not know its personas."""


def make(axis: Axis, layer: int, count: int, seed: int = 0) -> Controls:
    """`count` of each kind."""
    drawn = np.random.default_rng([seed, layer]).standard_normal((count, axis.width))
    random = unit(drawn, "control axes")
    return Controls(axis.name, axis.digest, layer, seed, random, _shuffled(axis, layer, count, seed))


def _shuffled(axis: Axis, layer: int, count: int, seed: int) -> NDArray[np.float32]:
    if axis.means is None:
        return np.empty((0, axis.width), dtype=np.float32)
    values = axis.means[:, axis.layers.index(layer)].astype(np.float64)
    sides = sides_of(axis.personas, axis.assistants, f"axis {axis.name}")
    draw = np.random.default_rng([seed, layer, 1])
    return unit(np.stack([contrast(values, draw.permutation(sides)) for _ in range(count)]), f"controls of axis {axis.name}")


def project(run: Run, controls: Controls, part: Part = Part.ANSWER) -> dict[str, NDArray[np.float64]]:
    """By kind, projections (N, rollouts, turns) of the run's stored residual means of a part, in the order of its rollouts; NaN where a turn is missing.

    `StoreError` where the controls' layer is not stored, or a file is damaged.
    """
    from drift_cli.store.reader import read_residual_layer

    stored = run.manifest.layers
    if controls.layer not in stored:
        raise StoreError(f"run {run.paths.run_id} stores no residuals of layer {controls.layer}", mend="Measure at a layer that it stores.")
    vectors = np.concatenate([controls.random, controls.shuffled]).astype(np.float64)
    states = run.states()
    found = np.full((len(vectors), len(states), max((state.total for state in states), default=0)), np.nan)
    for index, state in enumerate(states):
        if state.done:
            row = stored.index(controls.layer)
            means = read_residual_layer(run.paths, state.rollout, row, len(stored), vectors.shape[1], part)[: state.done]
            found[:, index, : len(means)] = vectors @ means.astype(np.float64).T
    count = len(controls.random)
    return {kind: values for kind, values in (("random", found[:count]), ("shuffled", found[count:])) if len(values)}


def save(controls: Controls, path: Path) -> None:
    """Write them atomically: safetensors `random` and `shuffled`, and the rest in the header."""
    from safetensors.numpy import save as serialize

    from drift_cli.store.files import atomic_write, create_folder

    header = {"format": FORMAT, "axis": controls.axis, "digest": controls.digest, "layer": str(controls.layer), "seed": str(controls.seed)}
    create_folder(path.parent)
    atomic_write(path, serialize({"random": controls.random, "shuffled": controls.shuffled}, metadata=header))


def load(path: Path) -> Controls:
    """Read what `save` wrote; `DriftError` where it is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {json.dumps(header.get('format'))}")
            names = header["axis"], header["digest"], int(header["layer"]), int(header["seed"])
            return Controls(*names, file.get_tensor("random"), file.get_tensor("shuffled"))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DriftError(f"control axes {path} cannot be read: {error}", mend="Make them again: drift measure RUN --controls N") from error
