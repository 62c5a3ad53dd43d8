"""Axes from and to torch files, the way others keep them.

Two kinds are known: a dict of persona → tensor (width,) or (rows, width), and a bare tensor (width,) or (rows, width) that already is an axis. Layers are
numbered in two ways. `hidden-states`: row 0 is the embeddings, and a model of L blocks has L + 1 rows (persona_vectors, and drift itself). `blocks`: row l is
the output of block l, our layer l + 1, and there are L rows (assistant-axis). Which of the two a file of several rows is in is told by the model's number of
blocks or by whoever imports it, never guessed. Pickles run code: files are read with `weights_only`, tensors only.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drift_cli.axis import Axis, ranges
from drift_cli.errors import DriftError, UsageError, did_you_mean
from drift_cli.files import atomic_write, check_regular, create_folder
from drift_cli.measuring.contrast import contrast, sides_of, unit

if TYPE_CHECKING:
    import torch

CONVENTIONS = {"hidden-states": 0, "blocks": 1}
"""How files number layers, and what is added to a number to make it ours."""
_FORMER = {"block-outputs": "blocks"}
"""What conventions were called before."""
_LIMIT = 16 << 30
"""Bytes."""
_SAVE = "Save a tensor, or a dict of persona → tensor: torch.save({'assistant': tensor, …}, FILE)."

_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, NameError, AssertionError, ArithmeticError),
    *(MemoryError, ImportError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
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
    blocks: Callable[[], int | None] = lambda: None,
) -> Axis:
    """Read somebody else's tensors (`weights_only`).

    Args:
        path: a dict of persona → (width,) or (rows, width); or one (width,) or (rows, width) tensor that already is an axis.
        name: what the axis is to be called.
        layer: the layer of (width,) vectors, in the file's convention; read off a file name such as `…_layer21.pt` when None.
        convention: one of `CONVENTIONS`. None: as the model's blocks tell; for single vectors of personas, hidden states.
        assistants: names of the personas on the assistant's side; where empty, those called `assistant` or containing `default`.
        model: what it was made on.
        blocks: asked for the model's number of blocks where rows are to be counted; None where that is not known.

    Raises:
        UsageError: what the layers are is not known, or does not fit the model.
        DriftError: the file is not one of tensors.
    """
    found = _loaded(path)
    by_persona, (stacked, personas) = isinstance(found, dict), _stack(found, path)
    rows = stacked.shape[1]
    if rows > 1:
        first, convention = 0, _counted(path, rows, layer, convention, blocks())
    else:
        first, convention = _layer_of(path, layer), _of_single(path, by_persona, convention)
    offset = CONVENTIONS[convention]
    layers = tuple(range(first + offset, first + offset + rows))
    source = f"{path.name}, {convention} numbering" + (", 1 added to every layer" if offset else "")
    if not by_persona:
        return Axis(name, layers, unit(stacked[0], str(path)), model, source=source)
    chosen = tuple(assistants) or tuple(p for p in personas if p == "assistant" or "default" in p)
    vectors = unit(contrast(stacked, sides_of(personas, chosen, str(path))), str(path))
    return Axis(name, layers, vectors, model, source=source, personas=personas, means=stacked.astype(np.float32), assistants=chosen)


def convention_of(text: str | None) -> str | None:
    """A convention by name, former names included; None for None. `UsageError` lists the names."""
    if text is None or text in CONVENTIONS:
        return text
    if text in _FORMER:
        return _FORMER[text]
    raise UsageError(f"convention {text!r} is unknown", mend=f"{did_you_mean(text, CONVENTIONS)}Use {' or '.join(CONVENTIONS)}.")


def _loaded(path: Path) -> Any:
    """What a torch file holds. torch's own words are kept out: they advise to switch the protection off."""
    import torch

    try:
        _check_stored(path)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DriftError(f"{path} does not exist") from None
    except _UNREADABLE as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        holds = f": it holds {named[1]}, which drift does not load" if named and isinstance(error, pickle.UnpicklingError) else ""
        raise DriftError(f"{path} is not a torch file of plain tensors{holds}", mend=_SAVE) from error


def _check_stored(path: Path) -> None:
    """Refuse a file that would be larger in memory than it is: torch compresses nothing. Raises `DriftError` and `OSError`."""
    check_regular(path, _LIMIT)
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        packed = next((info.filename for info in file.infolist() if info.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise DriftError(f"{path} is not a torch file: its part {packed} is compressed, which torch's never are", mend=_SAVE)


def _counted(path: Path, rows: int, layer: int | None, convention: str | None, blocks: int | None) -> str:
    """The convention of a file with several rows to a vector."""
    if layer is not None:
        raise UsageError(
            f"{path} has {rows} rows, a layer each, so --layer {layer} says nothing of them",
            mend="Leave it out; which layer an axis is used at is chosen where it is used.",
        )
    if blocks is None:
        if convention is None:
            raise _uncounted(path, rows)
        return convention
    expected = {name: blocks + 1 - offset for name, offset in CONVENTIONS.items()}
    fitting = [name for name, count in expected.items() if count == rows and convention in (None, name)]
    if not fitting:
        wanted = {convention: expected[convention]} if convention else expected
        said = " or ".join(f"{count} ({name})" for name, count in wanted.items())
        raise UsageError(
            f"{path} has {rows} rows, and the model, which has {blocks} blocks, asks for {said}",
            mend="Check the model and the convention. (Rows of some layers only: save them one by one, and import each with --layer.)",
        )
    return fitting[0]


def _uncounted(path: Path, rows: int) -> UsageError:
    return UsageError(
        f"{path} has {rows} rows, and nothing says whether the first is the embeddings (as in persona_vectors, of a model with {rows - 1} blocks) "
        f"or the output of the first block (as in assistant-axis, of a model with {rows} blocks)",
        mend="Name the model, whose number of blocks tells (--model ID or FOLDER), or say which: --convention hidden-states or --convention blocks.",
    )


def _of_single(path: Path, by_persona: bool, convention: str | None) -> str:
    """The convention of single vectors: those of personas are taken as hidden states, as the original experiment writes them."""
    if convention is None and not by_persona:
        raise UsageError(
            f"{path} holds one vector, and nothing says how its layer is counted",
            mend="Say so: --convention hidden-states (0 is the embeddings) or --convention blocks (0 is the first block's output).",
        )
    return convention or "hidden-states"


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
