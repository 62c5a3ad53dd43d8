"""Axis files.

Safetensors: tensor `axis` (layers, width) float32, where known `personas` (personas, layers, width) float32, and a header whose values are JSON, but for the
texts `format`, `name`, `convention`, `source` and `digest`:

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

import json
from pathlib import Path

import numpy as np

from drift_cli.axes.axis import Axis
from drift_cli.errors import DriftError, UsageError, did_you_mean
from drift_cli.spec import checked_name

FORMAT = "drift-axis-1"
DEMO = "demo"
_JSON = ("layers", "model", "revision", "note", "personas", "assistants", "personas_digest")
"""Fields of an axis that stand in the header as JSON."""


def demo_axis() -> Axis:
    """The built-in model's axis, made by `drift axis build --model demo`."""
    from drift_cli.demo_model import axis_path

    return load(axis_path())


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
        "convention": "hidden_states: 0 is the embeddings, l is the output of block l-1",
        "source": axis.source,
        "digest": axis.digest,
        **{field: json.dumps(getattr(axis, field)) for field in _JSON},
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
            fields = {field: json.loads(header.get(field, "null")) for field in _JSON}
            fields = {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}
            axis = Axis(
                **fields, name=header["name"], source=header["source"], vectors=file.get_tensor("axis").astype(np.float32), means=means
            )
    except FileNotFoundError:
        close = did_you_mean(path.stem, [DEMO, *names(path.parent)])
        raise DriftError(
            f"axis file {path} does not exist",
            mend=f"{close}`drift axis build` or `drift axis import FILE` makes one; `drift axis show` lists them.",
        ) from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DriftError(f"axis file {path} cannot be read: {error}", mend="Import it again with `drift axis import`.") from error
    if axis.digest != header.get("digest"):
        raise DriftError(f"axis file {path} is damaged: its digest does not match its vectors", mend="Import it again.")
    return axis


def names(folder: Path) -> list[str]:
    """Names of the axes in a folder, sorted; none where the folder cannot be read."""
    try:
        return sorted(path.stem for path in folder.glob("*.safetensors"))
    except OSError:
        return []


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
