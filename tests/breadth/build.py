"""Tiny networks with random weights of every generative model type that transformers knows.

A configuration is made from the class's own defaults with every size that it names made small: windows, chunks and thresholds by position lie well below
the length of the test's conversations, so that each of them matters there.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import tiny
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from breadth.sizes import LAYERS, TEXT, TOWER
from breadth.types import CHANGES, VARIANTS
from drift_cli.errors import DriftError
from drift_cli.models.network import auto_class

TEXT_PARTS = ("text_config", "thinker_config", "decoder", "talker_config")
_MOST = 45_000_000
"""Parameters of the largest network that is built."""


class TooLarge(Exception):
    """No sizes of ours make a network small."""


NOT_BUILT = (
    TooLarge,
    StrictDataclassError,
    DriftError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    AssertionError,
    ImportError,
    RuntimeError,
    NotImplementedError,
)
"""What a configuration or a network may raise that cannot be built with sizes of ours, or not here."""


def tiny_config(kind: type[PretrainedConfig], sizes: dict[str, Any], changes: dict[str, Any], vocabulary: int) -> PretrainedConfig:
    """A configuration of class `kind` with small sizes, in which `changes` come last; of its parts, those that are text have TEXT's sizes."""
    default = _default(kind)
    known = _names(kind, default)
    made = _sized(kind, known, sizes)
    if sizes is TEXT:
        made |= {key: vocabulary for key in ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size") if key in known}
    if "qk_rope_head_dim" in made:  # latent attention: all heads have keys of their own, of which a part is rotated
        made |= {"num_key_value_heads": 4, "head_dim": 8}
    parts = set(getattr(kind, "sub_configs", None) or {})
    own = {key: value for key, value in changes.items() if key not in parts}
    if default is not None:
        made |= _kinds_of_layers(kind, default, {**made, **own}) | _sections(default, made)
    for name in parts:
        part = getattr(default, name, None)
        inner = changes.get(name, {})
        if isinstance(part, PretrainedConfig) and inner is not None:
            made[name] = tiny_config(type(part), TEXT if name in TEXT_PARTS else TOWER, inner, vocabulary).to_dict()
    return kind(**{**made, **own})


def _sized(kind: type[PretrainedConfig], known: set[str], sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a configuration's class takes, under its own names for them."""
    renamed = {key: to for key, to in (getattr(kind, "attribute_map", None) or {}).items() if isinstance(to, str)}
    made = {key: value for key, value in sizes.items() if key in known and key not in renamed}
    for key, target in renamed.items():
        if key in sizes and target in known:
            made.setdefault(target, sizes[key])
    return made


def _default(kind: type[PretrainedConfig]) -> PretrainedConfig | None:
    try:
        return kind()
    except NOT_BUILT:
        return None


def _names(kind: type[PretrainedConfig], default: PretrainedConfig | None) -> set[str]:
    """What a configuration's class takes."""
    names = set(inspect.signature(kind.__init__).parameters)
    for base in kind.__mro__:
        names |= set(getattr(base, "__annotations__", {}))
    return names | (set(default.to_dict()) if default is not None else set())


def _kinds_of_layers(kind: type[PretrainedConfig], default: PretrainedConfig, made: dict[str, Any]) -> dict[str, list[str]]:
    """Of lists that name every layer's kind: each kind that the default has, in turn."""
    found = {}
    renamed = getattr(kind, "attribute_map", None) or {}
    for key in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = getattr(default, key, None)
        if not kinds or key in renamed or isinstance(getattr(kind, key, None), property):
            continue
        each = list(dict.fromkeys(kinds))
        layers = made.get("num_hidden_layers", LAYERS)
        found[key] = (each * layers)[:layers]
    return found


def _sections(default: PretrainedConfig, made: dict[str, Any]) -> dict[str, Any]:
    """Rotations of three kinds of positions share a head: as many of each as in the default, as far as this head goes."""
    rope = dict(getattr(default, "rope_parameters", None) or {})
    if "mrope_section" not in rope:
        return {}
    half = int(made["head_dim" if "head_dim" in made else "hidden_size"] * rope.get("partial_rotary_factor", 1.0)) // 2
    if "head_dim" not in made:
        half //= made["num_attention_heads"]
    return {"rope_parameters": {**rope, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}}


def scramble(network: PreTrainedModel, seed: int = 0) -> None:
    """Weights that make every layer matter: what decays or counts time keeps its scale, norms and biases move a little."""
    draw = torch.Generator().manual_seed(seed)
    head = network.get_output_embeddings()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if not weight.is_floating_point():
                continue
            noise = torch.randn(weight.shape, generator=draw)
            low = name.lower()
            if any(part in low for part in ("a_log", "dt_bias", "time_decay", "time_first", "recurrent_param", "decay")):
                weight.add_(0.05 * noise)
            elif weight.ndim >= 2:
                fan = weight[0].numel() if "conv" in low else weight.shape[-1]
                weight.copy_(noise / math.sqrt(max(fan, 1)))
                if head is not None and weight is getattr(head, "weight", None):
                    weight.mul_(2.5)
            else:
                weight.add_(0.15 * noise)


def _whole(config: PretrainedConfig) -> Any:
    """The auto class of the network that a checkpoint of this configuration holds: with the parts that see or hear, where it has them."""
    for kind in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        if type(config) in kind._model_mapping:
            return kind
    return auto_class(config)


def save(name: str, folder: Path) -> Path:
    """Write a tiny model of a type, or of a variant of one, as `save_pretrained` would. Raises one of `NOT_BUILT` where it cannot be made."""
    logging.disable_progress_bar()
    kind, changes = VARIANTS.get(name, (name, {}))
    made = tiny.tokenizer(tiny.ARCHITECTURES["olmo3"])
    config = tiny_config(CONFIG_MAPPING[kind], TEXT, {**CHANGES.get(kind, {}), **changes}, len(made))
    with torch.device("meta"):
        size = sum(weight.numel() for weight in _whole(config).from_config(config).parameters())
    if size > _MOST:
        raise TooLarge(f"it has {size / 1e6:.0f} million parameters with the sizes of the test")
    torch.manual_seed(1)
    network = _whole(config).from_config(config, dtype=torch.float32).eval()
    scramble(network)
    network.generation_config = GenerationConfig(eos_token_id=made.eos_token_id)
    network.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
