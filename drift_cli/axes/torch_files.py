"""Axes from and to torch files, the way others keep them.

Two kinds are known. A dict of persona → tensor (width,) or (layers, width) is what the original experiment and most persona-vector code write; layers are taken
as `hidden_states` unless said otherwise. A bare tensor (layers, width) is what assistant-axis writes; it numbers block outputs, so that its layer l is our
l + 1. Pickles run code: files are read with `weights_only`, tensors only.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drift_cli.axes.axis import Axis, ranges
from drift_cli.axes.contrast import contrast, sides_of, unit
from drift_cli.errors import DriftError, UsageError
from drift_cli.store.files import atomic_write, create_folder

if TYPE_CHECKING:
    import torch

_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, NameError, AssertionError, ArithmeticError),
    *(MemoryError, ImportError, pickle.UnpicklingError, struct.error),
)
"""What torch raises, found by fuzzing, on a file that is not one of its own: its reader takes the bytes' word for many things."""


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
        return Axis(name, layers, unit(stacked[0], str(path)), model, source=source)
    chosen = tuple(assistants) or tuple(p for p in personas if p == "assistant" or "default" in p)
    vectors = unit(contrast(stacked, sides_of(personas, chosen, str(path))), str(path))
    return Axis(name, layers, vectors, model, source=source, personas=personas, means=stacked.astype(np.float32), assistants=chosen)


def export_torch(axis: Axis, path: Path, kind: str, layer: int | None = None) -> str:
    """Write an axis as others read it, and return in words what was written.

    Args:
        axis: the axis.
        path: the file to write.
        kind: `axis`: a tensor (layers, width) as assistant-axis has it, numbered by block outputs from 0 (the embeddings are left out); `personas`: a dict of
            persona → tensor of their means, (width,) at a layer, else (layers, width).
        layer: with `personas`, one layer, as `hidden_states` index.
    """
    import torch

    made, said = _as_tensor(axis) if kind == "axis" else _as_dict(axis, layer)
    buffer = io.BytesIO()
    torch.save(made, buffer)
    create_folder(path.parent)
    atomic_write(path, buffer.getvalue())
    return said


def _as_tensor(axis: Axis) -> tuple[torch.Tensor, str]:
    import torch

    blocks = tuple(layer for layer in axis.layers if layer > 0)
    if blocks != tuple(range(1, len(blocks) + 1)):
        raise UsageError(
            f"axis {axis.name} has {ranges(axis.layers)}, and assistant-axis files have the output of every block",
            mend="Export its personas instead: --kind personas",
        )
    return torch.from_numpy(np.stack([axis.at(layer) for layer in blocks])), f"{len(blocks)} block outputs: row l is our layer l + 1"


def _as_dict(axis: Axis, layer: int | None) -> tuple[dict[str, torch.Tensor], str]:
    import torch

    if axis.means is None:
        raise UsageError(f"axis {axis.name} does not know its personas' means", mend="Export the axis itself: --kind axis")
    only = axis if layer is None else axis.only(layer)
    assert only.means is not None
    means = only.means if layer is None else only.means[:, 0]
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in zip(axis.personas, means, strict=True)}
    return tensors, f"{len(tensors)} personas at {ranges(only.layers)}, numbered as hidden_states"


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


def _layer_of(path: Path, layer: int | None) -> int:
    if layer is not None:
        return layer
    named = re.search(r"layer[_-]?(\d+)", path.name)
    if named is None:
        raise UsageError(f"{path} does not say which layer its vectors are from", mend="Name it: --layer 21")
    return int(named.group(1))
