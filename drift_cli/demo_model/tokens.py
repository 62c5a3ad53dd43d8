"""The built-in model's tokenizer: byte-level BPE with a vocabulary made from its corpus. Most words of its world are one token; any text is possible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from drift_cli.demo_model.shape import CONTEXT, END, SPECIALS, TEMPLATE

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def wrap(inner: Tokenizer) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers uses it, with the chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END,
        additional_special_tokens=list(SPECIALS[1:]),
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
    )


def load(path: Path) -> Tokenizer:
    """The tokenizer that was saved with the weights."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(path.read_text(encoding="utf-8"))
