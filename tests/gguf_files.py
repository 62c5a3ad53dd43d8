"""Writes a model folder of the tests as a GGUF file, as llama.cpp's converter would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file
from transformers import AutoTokenizer

_BLOCKS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ENDS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
Writer = gguf.GGUFWriter


def write(
    folder: Path,
    path: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    pre: str | None = "gpt-2",
    vocabulary: str = "gpt2",
    more: Callable[[Writer], None] = lambda writer: None,
    tensors: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda found: found,
) -> Path:
    """Write a Llama folder as `path`, its matrices quantized as `kind`. `more` may add metadata, `tensors` change what is stored."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("Tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(int({"F32": 0, "F16": 1, "Q8_0": 7}[kind.name]))
    _vocabulary(writer, folder, pre, vocabulary)
    more(writer)
    for name, value in tensors(_tensors(folder, config)).items():
        packed = kind if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(value, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(folder: Path, kind: gguf.GGMLQuantizationType) -> Mapping[str, np.ndarray]:
    """A folder's tensors, matrices as `kind` rounds them."""
    found = {key: value.numpy() for key, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    return {
        key: _undo(config, key, gguf.dequantize(gguf.quants.quantize(_permuted(config, key, value), kind), kind))
        if value.ndim == 2
        else value
        for key, value in found.items()
    }


def _tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    made = {}
    for key, value in load_file(folder / "model.safetensors").items():
        name = _ENDS.get(key)
        if name is None:
            _, _, number, rest = key.split(".", 3)
            name = f"blk.{number}.{_BLOCKS[rest.removesuffix('.weight')]}.weight"
        made[name] = _permuted(config, key, value.numpy())
    return made


def _heads(config: Mapping[str, Any], key: str) -> int | None:
    return {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(key.split(".")[-2])


def _permuted(config: Mapping[str, Any], key: str, value: np.ndarray) -> np.ndarray:
    """Queries and keys as llama.cpp rotates them: pairs side by side, where transformers has halves."""
    heads = _heads(config, key)
    return value if heads is None else value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)


def _undo(config: Mapping[str, Any], key: str, value: np.ndarray) -> np.ndarray:
    heads = _heads(config, key)
    return value if heads is None else np.ascontiguousarray(value.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape))


def _vocabulary(writer: Writer, folder: Path, pre: str | None, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens) | {token["content"] for token in inner["added_tokens"] if token["special"]}
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in inner["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
