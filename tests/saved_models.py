"""One tiny Llama, saved once, and ways to write it to disk, right and wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file, save_file

from drift_cli import models
from drift_cli.errors import DriftError

Tensors = dict[str, torch.Tensor]
IDS = torch.arange(3, 43)[None]
BLOCK = 16
"""Rows and columns of an FP8 block."""


@dataclass
class Kit:
    """Copies of a model folder to edit. `base` is untied; `tied` shares embeddings and head."""

    root: Path
    made: int = 0

    @cached_property
    def base(self) -> Path:
        return tiny.save("llama", self.root / "base")

    @cached_property
    def tied(self) -> Path:
        return tiny.save("llama", self.root / "tied", tie_word_embeddings=True)

    @cached_property
    def tensors(self) -> Tensors:
        return load_file(self.base / "model.safetensors")

    def copy(self, source: Path | None = None) -> Path:
        """A fresh copy of a folder, called `way`."""
        self.made += 1
        folder = self.root / str(self.made) / "way"
        shutil.copytree(source or self.base, folder)
        return folder

    def edited(self, edit: Callable[[Tensors], Tensors], source: Path | None = None, **config: Any) -> Path:
        """A copy with other tensors."""
        folder = self.copy(source)
        write(folder, edit(load_file(folder / "model.safetensors")))
        if config:
            patch(folder / "config.json", **config)
        return folder

    def configured(self, **config: Any) -> Path:
        """A copy with another config.json; None takes a key out."""
        folder = self.copy()
        patch(folder / "config.json", **config)
        return folder


def write(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata={"format": "pt"})


def patch(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    found = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def shard(folder: Path, number: int = 3) -> list[str]:
    """Split a folder's weights into files with an index; returns their names."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{place + 1:05d}-of-{number:05d}.safetensors" for place in range(number)]
    placed = {key: names[place % number] for place, key in enumerate(sorted(tensors))}
    for name in names:
        write(folder, {key: tensors[key] for key, where in placed.items() if where == name}, name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def logits(folder: Path, dtype: str = "float32", **how: Any) -> torch.Tensor:
    """What a model says of `IDS`, loaded as drift does: (tokens, vocabulary) float32. `DriftError` where it is refused."""
    loaded = models.load(models.describe(str(folder), **how), dtype=dtype, device="cpu")
    with torch.inference_mode():
        return loaded.network(input_ids=IDS, use_cache=False).logits[0].float()


def refusal(folder: Path, dtype: str = "float32", **how: Any) -> str | None:
    """The message that a model is refused with, None where it is not. Any other error passes through: it would be a traceback."""
    try:
        logits(folder, dtype, **how)
    except DriftError as error:
        return str(error)
    return None


def fp8(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Projections as FP8 with a scale for each block; and what they mean, as ordinary tensors."""
    packed, meant = dict(tensors), dict(tensors)
    for key, value in tensors.items():
        if key.endswith("proj.weight"):
            rows, columns = value.shape
            blocks = value.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scale = blocks.abs().amax((1, 3)) / 448
            packed[key] = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).reshape(rows, columns)
            packed[f"{key}_scale_inv"] = scale
            meant[key] = (packed[key].float().reshape(blocks.shape) * scale[:, None, :, None]).reshape(rows, columns)
    return packed, meant


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": ["lm_head"]}
