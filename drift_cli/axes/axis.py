"""An axis: a unit direction in residual space at each of some layers.

Layer l is transformers' `hidden_states[l]` (0 is the embeddings, l the output of block l - 1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drift_cli.errors import DriftError, UsageError
from drift_cli.spec import CONTENT, checked_name


@dataclass(frozen=True)
class Axis:
    """One unit direction per layer."""

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

    @property
    def width(self) -> int:
        """The residual stream's width."""
        return int(self.vectors.shape[1])

    @property
    def digest(self) -> str:
        """SHA-256 of layers and vectors."""
        body = json.dumps(list(self.layers)).encode() + self.vectors.astype("<f4").tobytes()
        return hashlib.sha256(body).hexdigest()

    def at(self, layer: int) -> NDArray[np.float32]:
        """The unit vector (width,) of a layer; `UsageError` where the axis has none."""
        if layer not in self.layers:
            raise UsageError(f"axis {self.name} has no layer {layer}", mend=f"It has {ranges(self.layers)}; choose one with --layer.")
        return np.asarray(self.vectors[self.layers.index(layer)])

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


def short(model: str) -> str:
    """A model's name without its owner or folder, lower case."""
    return model.rstrip("/").rsplit("/", 1)[-1].lower()


def ranges(layers: Sequence[int]) -> str:
    """`layer 21`, `layers 0 to 32`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if tuple(layers) == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return "layers " + ", ".join(map(str, layers))
