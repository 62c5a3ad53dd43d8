"""Loads a network: weights from safetensors or GGUF files only, and no code that comes with a model is ever run (`trust_remote_code` is off).

Every parameter comes from the model's files, as it stands there, or the model is refused (`checks.py`). What transformers loads is never cast afterwards:
it has put every parameter into the dtype asked for, but for those whose makers want float32, and rotary frequencies must stay in float32.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.errors import UsageError
from drift_cli.models import builtin, checks, quantized
from drift_cli.models.adapters import merge_adapter
from drift_cli.models.card import ModelCard
from drift_cli.models.files import INDEX, WEIGHTS, read_object
from drift_cli.models.gguf import check_count, load_gguf
from drift_cli.models.headers import Stored, all_tensors
from drift_cli.models.network import auto_class, parameters
from drift_cli.models.reading import LOCAL_MEND, Reading
from drift_cli.models.residuals import Residuals, look
from drift_cli.models.sources import HUB_MEND

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class LoadedModel:
    """A network in memory, ready to run, and its card."""

    card: ModelCard
    network: PreTrainedModel
    device: torch.device
    dtype: str
    parameters: int
    notes: tuple[str, ...] = ()
    """What is to be said about how it was loaded, a sentence each."""
    residuals: Residuals = field(default=Residuals())
    """What its hidden states are."""


def load(card: ModelCard, *, dtype: str, device: str, gpus: int = 1) -> LoadedModel:
    """Read the weights on to a device, or, block by block, on to the first `gpus` GPUs (transformers' `device_map="auto"`).

    Raises:
        UsageError: there are not so many GPUs, or accelerate, which spreads the model, is not installed.
        DriftError: they cannot be read, are not those of the network, or the network does not have the layers its configuration promises.
    """
    import torch
    from transformers import GenerationConfig

    kind = getattr(torch, dtype)
    if card.quantization is not None:
        quantized.check_device(card.name, card.quantization, device)
    spread = {} if gpus == 1 else _spread(gpus)
    if card.name in builtin.BUILT_IN and card.folder is None:
        loaded, notes = _built_in(card.name, kind), list[str]()
    else:
        loaded, notes = _read(card, kind, device, spread)
    # What is spread, or was put in its place by a quantizer, stays there; ids go to where the embeddings are.
    placed = loaded.eval() if hasattr(loaded, "hf_device_map") else loaded.to(device=device).eval()
    # `generate` fills what it is not told from the network's own defaults: a repetition penalty there would change every draw.
    placed.generation_config = GenerationConfig()
    checks.check_numbers(card.name, placed, dtype)
    first = torch.device(device) if not spread else placed.get_input_embeddings().weight.device
    return LoadedModel(
        card,
        placed,
        first,
        dtype,
        sum(p.numel() for p in placed.parameters()),
        tuple(notes),
        look(placed, card.name, card.layers, card.width),
    )


def _built_in(name: str, kind: torch.dtype) -> PreTrainedModel:
    """A built-in network: its parameters in the dtype asked for."""
    made = builtin.network(name)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(kind)
    return made


def _read(card: ModelCard, kind: torch.dtype, device: str, spread: Mapping[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    """The network with its files' weights and an adapter merged into them, checked, and what is to be said of it."""
    as_they_are = card.quantization is not None and not card.quantization.unpacked
    how = {**spread, **({"device_map": {"": device}} if as_they_are and not spread else {})}
    loaded, info = _from_files(card, kind, how)
    said = checks.check_loaded(card.name, loaded, info)
    notes = [] if said is None else [said]
    if card.checkpoint is not None and card.checkpoint.gguf:
        check_count(card.name, card.checkpoint.files[card.checkpoint.weights[0]], loaded)
    if card.quantization is None:
        checks.check_stored(card.name, loaded, _stored(card))
    elif as_they_are and card.quantization is not None:
        # Some of these packages log a line at every product of matrices.
        logging.getLogger(card.quantization.method).setLevel(logging.ERROR)
        checks.check_dtype(card.name, loaded, kind)
    else:
        checks.check_unpacked(card.name, loaded)
    if card.adapter is not None:
        loaded, merged = merge_adapter(loaded, card.adapter)
        notes.append(merged)
    return loaded, notes


def _from_files(card: ModelCard, kind: torch.dtype, how: Mapping[str, Any]) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """What transformers makes of a model's files, and its report."""
    network, checkpoint = auto_class(card.config), card.checkpoint
    asked = {"dtype": kind, "trust_remote_code": False, "output_loading_info": True, "ignore_mismatched_sizes": True, **how}
    if checkpoint is None:
        with Reading(f"the weights of {card.name}", HUB_MEND):
            made = network.from_pretrained(card.name, revision=card.revision, config=_config(card), use_safetensors=True, **asked)
        return made  # type: ignore[no-any-return]
    view = checkpoint.view()
    try:
        if checkpoint.gguf:
            loaded, info = load_gguf(card.name, network, Path(view.name), card.config, kind)
        else:
            with Reading(f"the weights of {card.name}", _unknown_rope(card) or LOCAL_MEND):
                loaded, info = network.from_pretrained(view.name, config=_config(card), use_safetensors=True, **asked)
    except BaseException:
        view.cleanup()
        raise
    if hasattr(loaded, "hf_device_map"):  # weights that wait on a disk are read through the view again and again
        weakref.finalize(loaded, view.cleanup)
    else:
        view.cleanup()
    return loaded, info


def _config(card: ModelCard) -> PretrainedConfig:
    """The configuration to load with: where weights are unpacked, it says so."""
    config = copy.deepcopy(card.config)
    if card.quantization is not None and card.quantization.unpacked:
        for place in (config, config.get_text_config()):
            if isinstance(getattr(place, "quantization_config", None), dict):
                place.quantization_config["dequantize"] = True
    return config


def _stored(card: ModelCard) -> Mapping[str, Stored]:
    """The tensors in a model's safetensors files, by name; those of a model from the Hub are in its cache by now."""
    if card.checkpoint is not None:
        return all_tensors(card.checkpoint.files[name] for name in card.checkpoint.weights)
    from transformers.utils import cached_file

    def cached(name: str) -> Path | None:
        found = cached_file(card.name, name, revision=card.revision, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    if (whole := cached(WEIGHTS)) is not None:
        return all_tensors([whole])
    index = cached(INDEX)
    shards = sorted(set(read_object(index)["weight_map"].values())) if index is not None else []
    return all_tensors(path for shard in shards if (path := cached(shard)) is not None)


def _spread(gpus: int) -> dict[str, Any]:
    """What tells transformers to spread a model's blocks over GPUs evenly."""
    import importlib.util

    import torch

    if importlib.util.find_spec("accelerate") is None:
        raise UsageError(
            f"a model is spread over {gpus} GPUs with accelerate, which is not installed", mend="pip install 'drift-cli[large]'"
        )
    if torch.cuda.device_count() < gpus:
        raise UsageError(
            f"{gpus} GPUs were asked for, torch sees {torch.cuda.device_count()}", mend="Use fewer with --gpus, or see `drift doctor`."
        )
    free = {place: torch.cuda.mem_get_info(place)[0] for place in range(gpus)}
    # Weights may take all but what keys, values and logits need; anything beyond is refused rather than put into the machine's own memory.
    return {"device_map": "auto", "max_memory": {place: int(0.9 * size) for place, size in free.items()}}


def count_parameters(card: ModelCard) -> int:
    """How many parameters the network has, from its configuration alone: it is laid out without memory for its weights."""
    with Reading(f"model {card.name}", _unknown_rope(card) or LOCAL_MEND):
        return parameters(card.config)


def _unknown_rope(card: ModelCard) -> str | None:
    """A sentence on a kind of rotary embedding that this transformers does not know, where the configuration names one."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = getattr(card.config.get_text_config(), "rope_parameters", None)
    sets = [entry for entry in (rope, *rope.values()) if isinstance(entry, dict)] if isinstance(rope, dict) else []
    unknown = sorted({str(entry["rope_type"]) for entry in sets if "rope_type" in entry} - {*ROPE_INIT_FUNCTIONS, "default"})
    return f"Its rope type {unknown[0]!r} may be unknown to this transformers: pip install --upgrade transformers" if unknown else None
