"""An axis: a unit direction in residual space at each of some layers; its file; and how residual means are projected on it.

Layer l is transformers' `hidden_states[l]`: 0 is the embeddings, l the output of block l - 1.

The file is safetensors: tensor `axis` (layers, width) float32, where known `personas` (personas, layers, width) float32, and a header whose values are JSON,
but for the texts `format`, `name`, `convention`, `source` and `digest`:

    format      drift-axis-1
    name        the axis's name
    layers      [0, 1, …]: the layer of each row, as `hidden_states` index
    convention  the same in words
    model, revision          what it was made on, or null
    source      where it came from, in words
    note        a warning to be shown with it, or null
    personas    the names of the rows of the tensor `personas`
    assistants  those of them on the assistant's side
    personas_digest          SHA-256 of the prompts and questions it was built with, or null
    digest      SHA-256 of `layers` and the tensor `axis`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_cli.errors import DriftError, UsageError
from drift_cli.files import check_regular
from drift_cli.names import CONTENT, checked_name

FORMAT = "drift-axis-1"
_LIMIT = 4 << 30
"""Bytes: the means of hundreds of personas at every layer of a large model."""
SUFFIX = ".safetensors"
_JSON = ("layers", "model", "revision", "note", "personas", "assistants", "personas_digest")
"""Fields of an axis that stand in the header as JSON."""


def project(means: NDArray[Any], direction: NDArray[Any]) -> NDArray[np.float64]:
    """Dot products of residual means with a direction: the one arithmetic of every projection, stored or read.

    Products and sums are in float64, and each mean is by itself: its bits do not depend on how many are projected together.

    Args:
        means: (…, width), any float type.
        direction: (width,), or a shape that broadcasts with `means`: (layers, width), say.

    Returns:
        (…,) float64, in the units of the means; NaN where a mean is NaN.
    """
    return np.asarray(np.vecdot(means.astype(np.float64), direction.astype(np.float64)), dtype=np.float64)


def project_each(means: NDArray[Any], directions: NDArray[Any]) -> NDArray[np.float64]:
    """Dot products of means (n, width) with many directions (m, width), as one product of matrices: (m, n) float64. Equal to `project` but for rounding."""
    return np.asarray(directions.astype(np.float64) @ means.astype(np.float64).T, dtype=np.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Axis:
    """One unit direction per layer.

    >>> axis = drift_cli.load_axis("demo")
    >>> axis.project(run.residuals(3).values, 3)  # (rows,) float64
    """

    name: str
    layers: tuple[int, ...]
    vectors: NDArray[np.float32]
    """(len(layers), width), each row of unit norm."""
    model: str | None = None
    revision: str | None = None
    """The model's, where the axis was built with it."""
    source: str = ""
    """Where it came from and how its layers were numbered there, in words."""
    note: str | None = None
    personas: tuple[str, ...] = ()
    means: NDArray[np.float32] | None = None
    """(len(personas), len(layers), width): what the axis was made from, where known."""
    assistants: tuple[str, ...] = ()
    """The personas on the assistant's side."""
    personas_digest: str | None = None
    """Of the personas' prompts and the questions, where the axis was built here."""

    def __post_init__(self) -> None:
        checked_name("axis", self.name)
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.layers):
            raise DriftError(f"axis {self.name}: {len(self.layers)} layers but vectors of shape {self.vectors.shape}")
        norms = np.linalg.norm(self.vectors.astype(np.float64), axis=1)
        if not np.all(np.isfinite(norms)) or np.any(np.abs(norms - 1.0) > 1e-4):
            raise DriftError(f"axis {self.name}: its vectors are not of unit norm", mend="Import it again with `drift axis import`.")

    @classmethod
    def load(cls, path: str | Path) -> Axis:
        """Read an axis file. `DriftError` where it is missing, damaged or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            check_regular(Path(path), _LIMIT)
            with safe_open(str(path), framework="numpy") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise DriftError(f"{path} is not an axis file of drift", mend=f"Import it first: drift axis import {path}")
                means = file.get_tensor("personas") if "personas" in file.keys() else None  # noqa: SIM118 (not a dict)
                fields = {field: json.loads(header.get(field, "null")) for field in _JSON}
                fields = {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}
                axis = cls(
                    **fields, name=header["name"], source=header["source"], vectors=file.get_tensor("axis").astype(np.float32), means=means
                )
        except FileNotFoundError:
            raise DriftError(
                f"axis file {path} does not exist",
                mend="`drift axis build` or `drift axis import FILE` makes one; `drift axis show` lists them.",
            ) from None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise DriftError(f"axis file {path} cannot be read: {error}", mend="Import it again with `drift axis import`.") from error
        if axis.digest != header.get("digest"):
            raise DriftError(f"axis file {path} is damaged: its digest does not match its vectors", mend="Import it again.")
        return axis

    def save(self, path: str | Path) -> None:
        """Write its file atomically, and the folders that it takes."""
        from safetensors.numpy import save as serialize

        from drift_cli.files import atomic_write, create_folder, stable

        tensors = {"axis": np.ascontiguousarray(self.vectors, dtype=np.float32)}
        if self.means is not None:
            tensors["personas"] = np.ascontiguousarray(self.means, dtype=np.float32)
        header = {
            "format": FORMAT,
            "name": self.name,
            "convention": "hidden_states: 0 is the embeddings, l is the output of block l-1",
            "source": self.source,
            "digest": self.digest,
            **{field: json.dumps(getattr(self, field)) for field in _JSON},
        }
        create_folder(Path(path).parent)
        atomic_write(Path(path), stable(serialize(tensors, metadata=header)))

    @property
    def width(self) -> int:
        """The residual stream's width."""
        return int(self.vectors.shape[1])

    @property
    def digest(self) -> str:
        """SHA-256 of layers and vectors: what a manifest calls an axis by."""
        return hashlib.sha256(json.dumps(list(self.layers)).encode() + self.vectors.astype("<f4").tobytes()).hexdigest()

    def at(self, layer: int) -> NDArray[np.float32]:
        """The unit vector (width,) of a layer; `UsageError` where the axis has none."""
        if layer not in self.layers:
            raise UsageError(f"axis {self.name} has no layer {layer}", mend=f"It has {ranges(self.layers)}; choose one with --layer.")
        return np.asarray(self.vectors[self.layers.index(layer)])

    def project(self, means: NDArray[Any], layer: int) -> NDArray[np.float64]:
        """Projections (…,) float64 of residual means (…, width) of a layer; `UsageError` where the axis has no such layer or another width."""
        if means.shape[-1:] != (self.width,):
            raise UsageError(f"axis {self.name} has width {self.width}, but the residual means have shape {means.shape}")
        return project(means, self.at(layer))

    def only(self, layer: int) -> Axis:
        """This axis at one layer."""
        place = [self.layers.index(layer)] if layer in self.layers else []
        vectors = self.at(layer)[None]
        return replace(self, layers=(layer,), vectors=vectors, means=None if self.means is None else self.means[:, place])

    def check_model(self, model: str, width: int, layers: int, *, revision: str | None = None, foreign: bool = False) -> str | None:
        """Refuse to measure another model than the one the axis was made on.

        Args:
            model: the model's name; a folder counts by its last part.
            width: its residual stream's width.
            layers: its blocks.
            revision: its revision: an axis of the same revision is of the same model, whatever the folder is called.
            foreign: accept an axis of another model of the same width.

        Returns:
            The other model's name where the axis is of another one, else None.

        Raises:
            UsageError: width, model or layers do not fit.
        """
        other = self.foreign_to(model, revision)
        if self.width != width:
            raise UsageError(
                f"axis {self.name} has width {self.width}, but {model} has width {width}", mend="Use an axis that was built on this model."
            )
        if other is not None and not foreign:
            raise UsageError(
                f"axis {self.name} was built on {other}, not on {model}",
                mend="Use an axis that was built on this model, or say --foreign-axis where that is meant (base and instruct model on one axis, say).",
            )
        beyond = [layer for layer in self.layers if layer > layers]
        if beyond and other is None:
            raise UsageError(f"axis {self.name} has layer {beyond[0]}, but {model} has layers 0 to {layers}")
        return other

    def foreign_to(self, model: str, revision: str | None) -> str | None:
        """The model that the axis was made on, where that is known and another one than this.

        Digests of content decide where both are known, whatever the folders are called; else names do.
        """
        same = _same_weights(self.revision, revision)
        if self.model is None or same or (same is None and short(self.model) == short(model)):
            return None
        return self.model if short(self.model) != short(model) else f"other weights of that name ({self.revision})"

    def __repr__(self) -> str:
        return f"Axis {self.name}: {ranges(self.layers)}, width {self.width}, of {self.model or 'an unknown model'}"

    def _repr_html_(self) -> str:
        note = "" if self.note is None else f"<p><small>{escape(self.note)}</small></p>"
        return f"<p>{escape(repr(self))}; {len(self.personas)} personas; {escape(self.source)}</p>{note}"


def _same_weights(one: str | None, other: str | None) -> bool | None:
    """Whether two identities are of the same weights; None where that cannot be known: one is not recorded, or not a digest of content."""
    if one is None or other is None:
        return None
    if one == other:
        return True
    (one_base, _, one_adapter), (other_base, _, other_adapter) = one.partition("+"), other.partition("+")
    if one_adapter != other_adapter or (one_base.startswith(CONTENT) and other_base.startswith(CONTENT)):
        return False
    return None


def model_of(path: Path) -> str | None:
    """The model that an axis file names, from its header alone; None where it names none or cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            found = json.loads((file.metadata() or {}).get("model", "null"))
    except (SafetensorError, OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def short(model: str) -> str:
    """A model's name without its owner or folder, lower case."""
    return model.rstrip("/").rsplit("/", 1)[-1].lower()


def elsewhere(axis: str, foreign: str, model: str) -> str:
    """That an axis is another model's, in words."""
    return f"axis {axis} was built on {foreign}, not on {model}"


def ranges(layers: Sequence[int]) -> str:
    """`layer 21`, `layers 0 to 32`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if tuple(layers) == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return "layers " + ", ".join(map(str, layers))
