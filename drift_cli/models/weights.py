"""Loads a network: weights from safetensors files only, and no code that comes with a model is ever run (`trust_remote_code` is off)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError, UsageError
from drift_cli.models.card import DEMO, HUB_MEND, ModelCard, first_line
from drift_cli.models.network import auto_class, parameters
from drift_cli.models.residuals import Residuals, look

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadedModel:
    """A network in memory, ready to run, and its card."""

    card: ModelCard
    network: PreTrainedModel
    device: torch.device
    dtype: str
    parameters: int
    residuals: Residuals = field(default=Residuals())
    """What its hidden states are."""


def load(card: ModelCard, *, dtype: str, device: str, gpus: int = 1) -> LoadedModel:
    """Read the weights (safetensors only) on to a device, or, block by block, on to the first `gpus` GPUs (transformers' `device_map="auto"`).

    Raises:
        UsageError: there are not so many GPUs, or accelerate, which spreads the model, is not installed.
        DriftError: they cannot be read, or the network does not have the layers its configuration promises.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = getattr(torch, dtype)
    spread = {} if gpus == 1 else _spread(gpus)
    if card.name == DEMO and card.folder is None:
        from drift_cli.demo_model import network

        loaded = network()
    else:
        revision = None if card.folder else card.revision
        try:
            loaded = auto_class(card.config).from_pretrained(
                str(card.folder or card.name), revision=revision, dtype=kind, use_safetensors=True, trust_remote_code=False, **spread
            )
        except (OSError, ValueError) as error:
            raise DriftError(f"the weights of {card.name} cannot be read: {first_line(error)}", mend=HUB_MEND) from error
    # What is spread stays where it was put; ids go to where the embeddings are.
    placed = loaded.eval() if hasattr(loaded, "hf_device_map") else loaded.to(device=device, dtype=kind).eval()
    # `generate` fills what it is not told from the network's own defaults: a repetition penalty there would change every draw.
    placed.generation_config = GenerationConfig()
    first = torch.device(device) if not spread else placed.get_input_embeddings().weight.device
    residuals = look(placed, card.name, card.layers, card.width)
    return LoadedModel(card, placed, first, dtype, sum(p.numel() for p in placed.parameters()), residuals)


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
    return parameters(card.config)
