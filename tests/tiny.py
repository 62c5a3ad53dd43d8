"""Tiny models with random weights in four architectures, each with a byte-level tokenizer and a chat template of another habit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GenerationConfig,
    LlamaConfig,
    Olmo3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

WORDS = "hello there you are kind and the light is quiet tell me more about that please what who help I feel".split()

# Adds a system prompt of its own when the conversation does not begin with one; takes system messages anywhere.
OLMO = (
    "{%- if messages[0]['role'] != 'system' -%}<|im_start|>system\nYou are Olmo, a helpful model.<|im_end|>{{ '\n' }}{%- endif -%}"
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)
# Trims every message, and tells the model today's date in a system header that is always there.
LLAMA = (
    "<|begin|>{%- set date = strftime_now('%d %b %Y') -%}<|head|>system<|/head|>\n\nToday is {{ date }}.<|eot|>"
    "{%- for m in messages -%}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|head|>assistant<|/head|>{{ '\n\n' }}{%- endif -%}"
)
# Drops what stands before </think> from earlier replies; opens an empty thought in the generation prompt unless thinking is on.
QWEN = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] + '\n' }}"
    "{%- if m['role'] == 'assistant' and '</think>' in m['content'] -%}{{ m['content'].split('</think>')[-1] }}"
    "{%- else -%}{{ m['content'] }}{%- endif -%}<|im_end|>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}"
    "{%- if not enable_thinking | default(true) -%}<think></think>{%- endif -%}{%- endif -%}"
)
# Refuses system messages and anything but strict alternation; calls the assistant "model".
GEMMA = (
    "<bos>{%- for m in messages -%}"
    "{%- if m['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
    "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('Roles must alternate') }}{%- endif -%}"
    "<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<start>model{{ '\n' }}{%- endif -%}"
)

_SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "initializer_range": 0.4}


@dataclass(frozen=True)
class Architecture:
    name: str
    config: type[PretrainedConfig]
    template: str
    specials: tuple[str, ...]
    end: str
    extra: dict[str, Any]
    placements: tuple[str, ...]


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "olmo3",
            Olmo3Config,
            OLMO,
            ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
            "<|im_end|>",
            {"num_hidden_layers": 4, "sliding_window": 24, "num_key_value_heads": 4},
            ("start", "first-user", "every-turn", "user-suffix"),
        ),
        Architecture(
            "llama",
            LlamaConfig,
            LLAMA,
            ("<|eot|>", "<|begin|>", "<|head|>", "<|/head|>"),
            "<|eot|>",
            {"num_hidden_layers": 3, "num_key_value_heads": 2},
            ("start", "first-user", "every-turn", "user-suffix"),
        ),
        Architecture(
            "qwen3",
            Qwen3Config,
            QWEN,
            ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
            "<|im_end|>",
            {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8},
            ("start", "first-user", "every-turn", "user-suffix"),
        ),
        Architecture(
            "gemma",
            GemmaConfig,
            GEMMA,
            ("<end>", "<bos>", "<start>", "<eos>"),
            "<end>",
            {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8},
            ("first-user", "user-suffix"),
        ),
    )
}


def tokenizer(architecture: Architecture, *, template: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes and a few whole words, so that sampled ids are often not those the text would be tokenized to."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        letters = "Ġ" + word
        for end in range(1, len(letters)):
            merges[letters[:end], letters[end]] = None
    tokens = [*architecture.specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys(a + b for a, b in merges)]
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in architecture.specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=architecture.specials[-1] if architecture.name != "llama" else "<|eot|>",
        additional_special_tokens=[s for s in architecture.specials if s != architecture.specials[-1]],
        chat_template=architecture.template if template is None else template,
        model_max_length=100000,
    )


def save(name: str, folder: Path, *, context: int = 8192, template: str | None = None, added: tuple[str, ...] = (), **extra: Any) -> Path:
    """Write a tiny model as `save_pretrained` would: configuration, tokenizer (with some tokens added), safetensors."""
    architecture = ARCHITECTURES[name]
    made = tokenizer(architecture, template=template)
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    torch.manual_seed(7)
    config = architecture.config(
        vocab_size=len(made),
        max_position_embeddings=context,
        eos_token_id=made.eos_token_id,
        bos_token_id=None,
        pad_token_id=made.eos_token_id,
        **{**_SHAPE, "tie_word_embeddings": False, **architecture.extra, **extra},
    )
    network = AutoModelForCausalLM.from_config(config)
    network.generation_config = GenerationConfig(eos_token_id=made.eos_token_id, do_sample=True, top_p=0.9)
    network.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
