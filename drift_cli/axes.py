"""Axes: unit directions in residual space, one per layer, with the layer convention written into the file.

Layer l is transformers' `hidden_states[l]` (0 is the embeddings). Tools that number block outputs mean our l + 1 with their l: imports convert, and say
so. Files are safetensors: tensor `axis` (layers, width) float32, optionally `personas` (personas, layers, width) float32, and a header of JSON strings
(format, name, layers, model, source, note, personas, assistants). Pickles are read by `import_torch` only, with `weights_only`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_cli.errors import DriftError, UsageError
from drift_cli.spec import checked_name

_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, NameError, AssertionError, ArithmeticError),
    *(MemoryError, ImportError, pickle.UnpicklingError, struct.error),
)
"""What torch raises, found by fuzzing, on a file that is not one of its own: its reader takes the bytes' word for many things."""

FORMAT = "drift-axis-1"
DEMO = "demo"


@dataclass(frozen=True)
class Axis:
    """One unit direction per layer."""

    name: str
    layers: tuple[int, ...]
    vectors: NDArray[np.float32]
    """(len(layers), width), each row of unit norm."""
    model: str | None = None
    source: str = ""
    """Where it came from and how its layers were numbered there, in words."""
    note: str | None = None
    personas: tuple[str, ...] = ()
    means: NDArray[np.float32] | None = None
    """(len(personas), len(layers), width): what the axis was made from, where known."""
    assistants: tuple[str, ...] = ()
    """The personas on the assistant's side."""

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
            raise UsageError(f"axis {self.name} has no layer {layer}", mend=f"It has {_ranges(self.layers)}; choose one with --layer.")
        return np.asarray(self.vectors[self.layers.index(layer)])

    def only(self, layer: int) -> Axis:
        """This axis at one layer."""
        place = [self.layers.index(layer)] if layer in self.layers else []
        vectors = self.at(layer)[None]
        return replace(self, layers=(layer,), vectors=vectors, means=None if self.means is None else self.means[:, place])

    def check_model(self, model: str, width: int, layers: int) -> None:
        """Refuse to measure another model than the one the axis was made on."""
        if self.width != width:
            raise UsageError(
                f"axis {self.name} has width {self.width}, but {model} has width {width}", mend="Use an axis that was built on this model."
            )
        if self.model is not None and _short(self.model) != _short(model):
            raise UsageError(
                f"axis {self.name} was built on {self.model}, not on {model}", mend="Use an axis that was built on this model."
            )
        beyond = [layer for layer in self.layers if layer > layers]
        if beyond:
            raise UsageError(f"axis {self.name} has layer {beyond[0]}, but {model} has layers 0 to {layers}")


def demo_axis() -> Axis:
    """The built-in model's axis: a random direction per layer, labelled as such."""
    from drift_cli.demo_model import LAYERS, NOTE, axis_vectors

    return Axis(DEMO, tuple(range(LAYERS + 1)), axis_vectors(), model=DEMO, source="random directions with a fixed key", note=NOTE)


def save(axis: Axis, path: Path) -> None:
    """Write an axis file atomically."""
    from safetensors.numpy import save as serialize

    from drift_cli.store.files import atomic_write, create_folder

    tensors = {"axis": np.ascontiguousarray(axis.vectors, dtype=np.float32)}
    if axis.means is not None:
        tensors["personas"] = np.ascontiguousarray(axis.means, dtype=np.float32)
    header = {
        "format": FORMAT,
        "name": axis.name,
        "layers": json.dumps(list(axis.layers)),
        "convention": "hidden_states: 0 is the embeddings, l is the output of block l-1",
        "model": json.dumps(axis.model),
        "source": axis.source,
        "note": json.dumps(axis.note),
        "personas": json.dumps(list(axis.personas)),
        "assistants": json.dumps(list(axis.assistants)),
        "digest": axis.digest,
    }
    create_folder(path.parent)
    atomic_write(path, serialize(tensors, metadata=header))


def load(path: Path) -> Axis:
    """Read an axis file that `save` wrote; `DriftError` names what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise DriftError(f"{path} is not an axis file of drift", mend=f"Import it first: drift axis import {path}")
            means = file.get_tensor("personas") if "personas" in file.keys() else None  # noqa: SIM118 (not a dict)
            axis = Axis(
                name=header["name"],
                layers=tuple(int(layer) for layer in json.loads(header["layers"])),
                vectors=file.get_tensor("axis").astype(np.float32),
                model=json.loads(header["model"]),
                source=header["source"],
                note=json.loads(header["note"]),
                personas=tuple(json.loads(header["personas"])),
                means=means,
                assistants=tuple(json.loads(header["assistants"])),
            )
    except FileNotFoundError:
        raise DriftError(
            f"axis file {path} does not exist", mend="`drift axis import FILE` makes one; `drift axis show` lists them."
        ) from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DriftError(f"axis file {path} cannot be read: {error}", mend="Import it again with `drift axis import`.") from error
    if axis.digest != header.get("digest"):
        raise DriftError(f"axis file {path} is damaged: its digest does not match its vectors", mend="Import it again.")
    return axis


def find(name: str, folder: Path) -> Axis:
    """An axis by path, by name in `folder`, or the built-in `demo`."""
    if name == DEMO:
        return demo_axis()
    path = Path(name)
    if path.suffix == ".safetensors" or "/" in name:
        return load(path)
    if path.suffix in {".pt", ".pth"}:
        raise UsageError(f"{name} is a torch file", mend=f"Import it first: drift axis import {name}")
    return load(folder / f"{checked_name('axis', name)}.safetensors")


def import_torch(
    path: Path,
    *,
    name: str,
    layer: int | None = None,
    convention: str | None = None,
    assistants: Sequence[str] = (),
    model: str | None = None,
) -> Axis:
    """Read somebody else's tensors (`weights_only`).

    Args:
        path: a dict of persona → (width,) or (layers, width); or one (width,) or (layers, width) tensor that already is an axis.
        layer: the layer of (width,) vectors, in the file's convention; read off a file name such as `…_layer21.pt` when None.
        convention: `hidden-states` (ours) or `block-outputs` (assistant-axis: its layer l is our l + 1). None: block outputs for a bare
            tensor, as assistant-axis writes it, and hidden states for a dict.
        assistants: names of the personas on the assistant's side; where empty, those called `assistant` or containing `default`.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DriftError(f"{path} does not exist") from None
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DriftError(f"{path} is not a torch file of plain tensors: {reason}") from error
    by_persona = isinstance(found, dict)
    convention = convention or ("hidden-states" if by_persona else "block-outputs")
    stacked, personas = _stack(found, path)
    first = 0 if stacked.shape[1] > 1 else _layer_of(path, layer)
    offset = {"hidden-states": 0, "block-outputs": 1}[convention]
    layers = tuple(range(first + offset, first + offset + stacked.shape[1]))
    source = f"{path.name}, {convention} numbering" + (", 1 added to every layer" if offset else "")
    if not by_persona:
        return Axis(name, layers, _unit(stacked[0], path), model, source)
    sides = tuple(assistants) or tuple(p for p in personas if p == "assistant" or "default" in p)
    vectors = _unit(_contrast(stacked, personas, sides, path), path)
    return Axis(name, layers, vectors, model, source, None, personas, stacked.astype(np.float32), sides)


def _stack(found: Any, path: Path) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Tensors → (personas, layers, width) float64 and the personas' names."""
    import torch

    tensors = found if isinstance(found, dict) else {"": found}
    if not tensors or not all(isinstance(k, str) and isinstance(v, torch.Tensor) and v.ndim in (1, 2) for k, v in tensors.items()):
        raise DriftError(f"{path} holds neither a tensor nor a dict of persona → tensor of (width,) or (layers, width)")
    if not all(map(_plain, tensors.values())):
        raise DriftError(f"{path} holds a tensor that is sparse, quantized, complex, without data, or larger than its data")
    shapes = {tuple(v.shape) for v in tensors.values()}
    if len(shapes) > 1:
        raise DriftError(f"{path}: personas have tensors of different shapes: {', '.join(map(str, sorted(shapes)))}")
    arrays = [np.atleast_2d(v.to(torch.float64).numpy()) for v in tensors.values()]
    stacked = np.stack(arrays)
    if not np.isfinite(stacked).all():
        raise DriftError(f"{path} holds numbers that are not finite")
    return stacked, tuple(tensors)


def _plain(tensor: Any) -> bool:
    """Whether a tensor has a number in memory for each of its elements: strides can make a few bytes look like terabytes."""
    import torch

    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized and not tensor.is_complex()
    return dense and 0 < tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _contrast(stacked: NDArray[np.float64], personas: tuple[str, ...], assistants: tuple[str, ...], path: Path) -> NDArray[np.float64]:
    """Mean of the assistant personas minus mean of the others, (layers, width)."""
    unknown = [p for p in assistants if p not in personas]
    if unknown:
        raise UsageError(f"{path} has no persona {unknown[0]!r}", mend=f"It has: {', '.join(personas)}.")
    side = np.array([p in assistants for p in personas])
    if side.all() or not side.any():
        raise UsageError(f"{path}: no two sides to contrast", mend="Name the assistant personas with --assistant NAME (repeat it).")
    return np.asarray(stacked[side].mean(0) - stacked[~side].mean(0))


def _unit(vectors: NDArray[np.float64], path: Path) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if np.any(norms == 0):
        raise DriftError(f"{path}: the axis is zero at some layer")
    return np.asarray(vectors / norms, dtype=np.float32)


def _layer_of(path: Path, layer: int | None) -> int:
    if layer is not None:
        return layer
    named = re.search(r"layer[_-]?(\d+)", path.name)
    if named is None:
        raise UsageError(f"{path} does not say which layer its vectors are from", mend="Name it: --layer 21")
    return int(named.group(1))


def _short(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1].lower()


def _ranges(layers: Sequence[int]) -> str:
    """`layer 21`, `layers 0 to 32`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if tuple(layers) == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return "layers " + ", ".join(map(str, layers))


@dataclass(frozen=True)
class Diagnostics:
    """How an axis sits among the personas it was made from, at one layer."""

    layer: int
    cosine_with_pc1: float
    variance_explained: float
    """Share of the centred personas' variance along the axis."""
    pc1_variance: float
    ordering: tuple[tuple[str, float], ...]
    """(persona, projection of its mean, centred over personas), from the assistant's end down."""


def diagnose(axis: Axis, layer: int) -> Diagnostics | None:
    """None where the axis does not know its personas. PC1's sign is taken so that the cosine is positive."""
    if axis.means is None:
        return None
    values = axis.means[:, axis.layers.index(layer)].astype(np.float64)
    centred = values - values.mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    unit = axis.at(layer).astype(np.float64)
    along = centred @ unit
    total = float((centred**2).sum())
    order = np.argsort(-along)
    return Diagnostics(
        layer,
        float(abs(rows[0] @ unit)),
        float((along**2).sum() / total),
        float(singular[0] ** 2 / total),
        tuple((axis.personas[i], float(along[i])) for i in order),
    )
