"""The built-in model's shape: its network's configuration, its special tokens, and its chat template, which takes system messages anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Olmo3Config

WIDTH, LAYERS, HEADS, INNER = 192, 6, 6, 512
VOCABULARY = 2048
WINDOW = 256
"""Of the sliding layers; every third layer looks back over the whole conversation."""
CONTEXT = 16384
TRAINED = 4096
"""The longest conversation it was trained on; beyond, it goes on to work, and less well."""

END, SYSTEM, USER, ASSISTANT = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIALS = (END, SYSTEM, USER, ASSISTANT)
"""Ids 0, 1, 2, 3."""

TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def config(vocabulary: int = VOCABULARY, *, width: int = WIDTH, layers: int = LAYERS) -> Olmo3Config:
    """The network's configuration; width and layers are given only where a smaller one is trained to try something out."""
    from transformers import Olmo3Config

    return Olmo3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=INNER * width // WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS * width // WIDTH,
        max_position_embeddings=CONTEXT,
        sliding_window=WINDOW,
        layer_types=["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(layers)],
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
    )
