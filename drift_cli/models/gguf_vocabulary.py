"""A tokenizer made from a GGUF file's metadata.

Only byte-level BPE vocabularies (`tokenizer.ggml.model` is `gpt2`), which a GGUF file describes completely but for two things that it gives by name
(`tokenizer.ggml.pre`): the expression that cuts text into words, and whether a word that is a token needs no merges. Both are known here for the names
below; another name is refused, since other words would be other tokens. transformers' own reader is not used: the release 5.17 takes `<|im_start|>` for
the end of a turn, and every release cuts `smollm` text like GPT-2's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Words:
    """How text is cut into words before merges."""

    split: str | None = None
    """An expression each match of which is a word; None: GPT-2's own."""
    digits: bool = False
    """Every digit is a word."""
    whole: bool = False
    """A word that is a token is taken as it is, without merges."""
    normalized: bool = False
    """Text is brought into the form NFC first."""


_LLAMA3 = _Words(_HEAD + r"|\p{N}{1,3}" + _TAIL, whole=True)
_QWEN2 = _Words(_HEAD + r"|\p{N}" + _TAIL, normalized=True)
_WORDS: Mapping[str, _Words] = {
    # From llama.cpp's llama-vocab.cpp and the tokenizer.json files of the models themselves.
    **dict.fromkeys(("gpt-2", "phi-2"), _Words()),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), _Words(digits=True)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "tekken": _Words(_TEKKEN, whole=True),
}
_CONTROL, _USER_DEFINED = 3, 4
"""llama.cpp's types of tokens that stand whole in text; the first are special."""


def tokenizer_from(path: Path, metadata: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that a file describes, chat template included. `DriftError` where that is not known for certain."""
    from transformers import PreTrainedTokenizerFast

    kind, words = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or not isinstance(words, str) or words not in _WORDS:
        what = f"a vocabulary of kind {kind!r}" if kind != "gpt2" else f"text that is cut into words as {words!r} does"
        raise DriftError(
            f"{path} cannot be used: it has {what}, which a GGUF file does not describe completely",
            mend=f"Use the model's safetensors version. Known: byte-level BPE with {', '.join(_WORDS)}.",
        )
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens") or []
    named = {
        name: tokens[place]
        for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))
        if isinstance(place := metadata.get(f"tokenizer.ggml.{key}_token_id"), int) and place < len(tokens)
    }
    inner = _inner(tokens, metadata, _WORDS[words])
    if metadata.get("tokenizer.ggml.add_bos_token") and "bos_token" in named:
        _begin_with(inner, named["bos_token"])
    template = metadata.get("tokenizer.chat_template")
    control = [token for token in _of_kind(tokens, metadata, _CONTROL) if token not in named.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=template, clean_up_tokenization_spaces=False, additional_special_tokens=control, **named
    )


def _inner(tokens: list[str], metadata: Mapping[str, Any], words: _Words) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges") or []]
    made = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges, ignore_merges=words.whole))
    if words.normalized:
        made.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.split is None)
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if words.digits else []
    if words.split is not None:
        steps.append(pre_tokenizers.Split(Regex(words.split), behavior="isolated"))
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _of_kind(tokens, metadata, _CONTROL)])
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in _of_kind(tokens, metadata, _USER_DEFINED)])
    return made


def _of_kind(tokens: list[str], metadata: Mapping[str, Any], kind: int) -> list[str]:
    """Tokens of one of llama.cpp's types."""
    return [token for token, found in zip(tokens, metadata.get("tokenizer.ggml.token_type") or [], strict=False) if found == kind]


def _begin_with(inner: Tokenizer, token: str) -> None:
    """Text that is encoded with special tokens begins with this one."""
    from tokenizers import processors

    inner.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, inner.token_to_id(token))]
    )
