"""Models in GGUF files, read through transformers, which unpacks their weights: the result is an ordinary network in the run's dtype.

transformers reads some of what a file says of its network and leaves the rest at its classes' defaults, without a word. So everything the file says of its
architecture is looked for in the configuration that came out, and a file that says more is refused by name: wrong rotary frequencies or a missing window
would be wrong numbers. For the same reason the numbers in the file are counted, and must be as many as the network has.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError
from drift_cli.models.files import GGUF as NAME
from drift_cli.models.files import gguf_file
from drift_cli.models.gguf_header import Header, check_size, read_header
from drift_cli.models.gguf_vocabulary import tokenizer_from
from drift_cli.models.reading import Reading

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_SAFETENSORS = "Use the model's safetensors version."
_REFLECTED = {
    # What a file says of its architecture → where a configuration has it.
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx"),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_attention_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "vocab_size": ("vocab_size",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
}


def check_installed(path: Path) -> None:
    """Refuse where the packages that read GGUF files are not there."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise DriftError(
            f"{path} is a GGUF file; reading it takes {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            mend="pip install 'drift-cli[gguf]'",
        )


def describe_gguf(path: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, tuple[int, ...], str]:
    """A file's configuration, tokenizer, tokens that end a reply, and its type in words (`GGUF Q4_1`). No tensor is read."""
    from gguf import GGML_QUANT_SIZES

    header = read_header(path)
    kind = header.metadata.get("general.type", "model")
    if kind != "model" or int(header.metadata.get("split.count", 0)) > 1:
        raise DriftError(f"{path} holds no whole model ({kind}, {header.metadata.get('split.count', 1)} parts)", mend=_SAFETENSORS)
    check_size(path, header, {int(kind): size for kind, size in GGML_QUANT_SIZES.items()})
    tokenizer = tokenizer_from(path, header.metadata)
    facts = path.stat()
    config = copy.deepcopy(_config(path, facts.st_size, facts.st_mtime_ns))
    _check_said(path, header, config)
    ends = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return config, tokenizer, tuple(end for end in ends if isinstance(end, int)), f"GGUF {_type(header)}"


@lru_cache(maxsize=1)
def _config(path: Path, size: int, changed: int) -> PretrainedConfig:
    """The configuration that transformers makes of a file. Its reader takes seconds for a large vocabulary, and some commands describe a model twice."""
    from transformers import AutoConfig

    with gguf_file(path).view() as view, Reading(f"model {path.name}", _SAFETENSORS):
        return AutoConfig.from_pretrained(view, gguf_file=NAME)


def _type(header: Header) -> str:
    """The type of most of a file's numbers: `Q4_1`."""
    from gguf import GGMLQuantizationType, LlamaFileType

    named = header.metadata.get("general.file_type")
    if isinstance(named, int) and named in {int(kind) for kind in LlamaFileType}:
        return LlamaFileType(named).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: Counter[int] = Counter()
    for tensor in header.tensors.values():
        sizes[tensor.kind] += math.prod(tensor.shape)
    return str(GGMLQuantizationType(sizes.most_common(1)[0][0]).name) if sizes else "without tensors"


def _check_said(path: Path, header: Header, config: PretrainedConfig) -> None:
    """Refuse a file that says something of its network that is not in the configuration."""
    text, prefix = config.get_text_config(), f"{header.architecture}."
    said = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    lost = [f"{key} {value}" for key, value in said.items() if not _reflected(key, value, text)]
    lost += [f"tensor {name}" for name in header.tensors if name.startswith("rope_")]
    if lost:
        raise DriftError(
            f"{path} cannot be used: it says of its network what transformers does not read from a GGUF file ({', '.join(lost[:4])})",
            mend=_SAFETENSORS,
        )


def _reflected(key: str, value: Any, text: Any) -> bool:
    rope = getattr(text, "rope_parameters", None) or {}
    if key == "rope.freq_base":
        return _same(value, rope.get("rope_theta"))
    if key == "rope.dimension_count":
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return _same(value, head * float(rope.get("partial_rotary_factor") or 1.0))
    if key == "rope.scaling.type":
        return value in ("none", rope.get("rope_type"))
    if key.startswith("rope.scaling."):
        name = {"original_context_length": "original_max_position_embeddings"}.get(key.rpartition(".")[2], key.rpartition(".")[2])
        return _same(value, rope.get(name)) or (key == "rope.scaling.finetuned")
    if key in ("attention.key_length", "attention.value_length") and not getattr(text, "head_dim", None):
        return _same(value, text.hidden_size // text.num_attention_heads)
    return any(_same(value, getattr(text, name, None)) for name in _REFLECTED.get(key, ()))


def _same(said: Any, found: Any) -> bool:
    if isinstance(said, int | float) and isinstance(found, int | float):
        return math.isclose(said, found, rel_tol=1e-6)
    return bool(said == found)


def load_gguf(name: str, network: Any, view: Path, config: PretrainedConfig, dtype: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The network of a file in a view, unpacked into `dtype`, and transformers' report on loading it. `network` is the class to make."""
    from transformers.utils import quantization_config

    with Reading(f"the weights of {name}", _SAFETENSORS):
        how = quantization_config.GgufConfig(dequantize=True)
        made: tuple[PreTrainedModel, dict[str, Any]] = network.from_pretrained(
            view, gguf_file=NAME, config=config, dtype=dtype, quantization_config=how, output_loading_info=True
        )
        return made


def check_count(name: str, path: Path, network: PreTrainedModel) -> None:
    """Refuse a file that holds more or fewer numbers than the network: transformers drops tensors that it has no place for."""
    held = sum(math.prod(tensor.shape) for tensor in read_header(path).tensors.values())
    has = sum(parameter.numel() for parameter in network.parameters())
    if held != has:
        raise DriftError(
            f"the weights of {name} cannot be used: the GGUF file holds {held} numbers, and the network that transformers makes of it {has}",
            mend=_SAFETENSORS,
        )
