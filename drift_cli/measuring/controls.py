"""Control axes: what an effect on the real axis is to be compared with. Is it this axis, or any axis?

`random`: unit vectors uniform on the sphere. `shuffled`: the same contrast of the same persona means with the labels shuffled, each side as large as it was.
`covariance`: unit vectors drawn from the covariance of the run's own residual means, so that directions in which replies vary much are drawn more often: in a
space where a few directions have most of the variance, uniform ones miss them all. All are at one layer, drawn from a seed, and the same numbers always.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift_cli.axis import Axis, project_each
from drift_cli.errors import DriftError, StoreError
from drift_cli.measuring.contrast import contrast, sides_of, unit
from drift_cli.segments import Part

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
    covariance: NDArray[np.float32] | None = None
    """(N, width); None in files of earlier versions, and where the run has no replies to draw from."""

    @property
    def kinds(self) -> dict[str, NDArray[np.float32]]:
        """The vectors by kind, kinds without any left out."""
        kinds = {"random": self.random, "shuffled": self.shuffled, "covariance": self.covariance}
        return {kind: vectors for kind, vectors in kinds.items() if vectors is not None and len(vectors)}


def make(axis: Axis, layer: int, count: int, seed: int = 0, activations: NDArray[np.float64] | None = None) -> Controls:
    """`count` of each kind; those of the covariance from `activations` (replies, width), where there are two or more."""
    drawn = np.random.default_rng([seed, layer]).standard_normal((count, axis.width))
    random = unit(drawn, "control axes")
    found = None if activations is None or len(activations) < 2 else _covariance(activations, layer, count, seed)
    return Controls(axis.name, axis.digest, layer, seed, random, _shuffled(axis, layer, count, seed), found)


def activations(run: Run, layer: int, width: int, most: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Residual means (replies, width) of the run at a stored layer, of at most `most` replies drawn at random."""
    from drift_cli.store.reader import read_residual_layer

    stored, states = run.manifest.layers, [state for state in run.states() if state.done]
    if layer not in stored:
        raise StoreError(f"run {run.paths.run_id} stores no residuals of layer {layer}", mend="Measure at a layer that it stores.")
    rows = [(state, turn) for state in states for turn in range(state.done)]
    chosen = np.sort(np.random.default_rng([seed, layer, 2]).permutation(len(rows))[:most])
    wanted: dict[int, list[int]] = {}
    for place in chosen:
        wanted.setdefault(id(rows[place][0]), []).append(rows[place][1])
    parts = [
        read_residual_layer(run.paths, state.rollout, stored.index(layer), len(stored), width)[wanted[id(state)]]
        for state in states
        if id(state) in wanted
    ]
    found = np.concatenate(parts).astype(np.float64) if parts else np.empty((0, width))
    return np.asarray(found[np.isfinite(found).all(axis=1)])


def _covariance(sample: NDArray[np.float64], layer: int, count: int, seed: int) -> NDArray[np.float32] | None:
    """Unit vectors (count, width) of a normal distribution with the sample's covariance."""
    centred = sample - sample.mean(axis=0)
    if not np.any(centred):
        return None
    return unit(np.random.default_rng([seed, layer, 3]).standard_normal((count, len(centred))) @ centred, "control axes")


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
    kinds = controls.kinds
    vectors = np.concatenate(list(kinds.values()))
    states = run.states()
    found = np.full((len(vectors), len(states), max((state.total for state in states), default=0)), np.nan)
    for index, state in enumerate(states):
        if state.done:
            row = stored.index(controls.layer)
            means = read_residual_layer(run.paths, state.rollout, row, len(stored), vectors.shape[1], part)[: state.done]
            found[:, index, : len(means)] = project_each(means, vectors)
    ends = np.cumsum([len(values) for values in kinds.values()])
    return dict(zip(kinds, np.split(found, ends[:-1]), strict=True))


def save(controls: Controls, path: Path) -> None:
    """Write them atomically: safetensors `random`, `shuffled` and, where there are any, `covariance`; the rest in the header."""
    from safetensors.numpy import save as serialize

    from drift_cli.files import atomic_write, create_folder, stable

    header = {"format": FORMAT, "axis": controls.axis, "digest": controls.digest, "layer": str(controls.layer), "seed": str(controls.seed)}
    tensors = {"random": controls.random, "shuffled": controls.shuffled}
    if controls.covariance is not None:
        tensors["covariance"] = controls.covariance
    create_folder(path.parent)
    atomic_write(path, stable(serialize(tensors, metadata=header)))


def load(path: Path) -> Controls:
    """Read what `save` wrote; `DriftError` where it is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {json.dumps(header.get('format'))}")
            names = header["axis"], header["digest"], int(header["layer"]), int(header["seed"])
            drawn = file.get_tensor("covariance") if "covariance" in file.keys() else None  # noqa: SIM118 (safetensors has no __contains__)
            return Controls(*names, file.get_tensor("random"), file.get_tensor("shuffled"), drawn)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DriftError(f"control axes {path} cannot be read: {error}", mend="Make them again: drift measure RUN --controls N") from error
