"""Finds a model and says what it is: a hub id, a local folder, a GGUF file, an adapter's folder, or the built-in `demo` model.

`describe` reads configuration and tokenizer, and hashes local weights, so that a run's id, its prompts and its length are known before any weight is
loaded. What can be refused before that is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError
from drift_cli.models.adapters import Adapter
from drift_cli.models.files import Checkpoint
from drift_cli.models.identity import Say
from drift_cli.models.network import text_config
from drift_cli.models.quantized import Quantization
from drift_cli.names import brief

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase


_IGNORED_DEFAULTS = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_new_tokens": None,
    "min_length": 0,
    "guidance_scale": None,
}
"""Settings of a model's `generation_config` that change the distribution and that drift does not apply, with their neutral values."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model before its weights are read."""

    name: str
    revision: str
    """What its content is called by: a digest of local files (`identity`), the Hub's commit."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    """Every token that ends a reply."""
    context: int
    """The most tokens a conversation may have, the reply included."""
    layers: int
    """Blocks; residual layers run from 0 (embeddings) to this number."""
    width: int
    top_p: float | None
    top_k: int | None
    min_p: float | None
    """Sampling filters the model's own generation_config asks for; None where it is silent."""
    ignored: tuple[str, ...]
    """Other settings of generation_config that would change the distribution and are not applied."""
    folder: Path | None = None
    """Where a local model is: the folder, or the GGUF file."""
    note: str | None = None
    checkpoint: Checkpoint | None = None
    """The files of a local model."""
    quantization: Quantization | None = None
    adapter: Adapter | None = None
    """To be merged into the weights."""

    @property
    def identity(self) -> str:
        """The revision, and the adapter's digest where there is one: what an axis or a reference line was made with."""
        return self.revision if self.adapter is None else f"{self.revision}+{self.adapter.digest}"

    def notices(self) -> Iterator[str]:
        """What is to be known of weights that are not simply the model's own, a sentence each."""
        if self.quantization is not None:
            yield f"the weights are stored as {self.quantization.text}"
        adapter = self.adapter
        if adapter is None:
            return
        yield f"adapter {adapter.name} ({brief(adapter.digest)}) is merged into the weights of {self.name}"
        if adapter.base is not None and Path(adapter.base).name != Path(self.folder or self.name).name:
            yield f"adapter {adapter.name} says that it was trained on {adapter.base}"
        if adapter.tokenizer:
            yield f"adapter {adapter.name} brings a tokenizer of its own: it is used in place of the model's"


def describe(name: str, revision: str | None = None, *, adapter: str | None = None, say: Say | None = None) -> ModelCard:
    """Read a model's configuration and tokenizer, and find out what its content is called by.

    Args:
        name: `demo`, a folder, a GGUF file, or a hub id.
        revision: of a hub id.
        adapter: the folder of a LoRA adapter to merge into it.
        say: told what takes long.

    Raises:
        DriftError: it cannot be found, read or used.
    """
    from drift_cli.models import sources

    return sources.describe(name, revision, adapter, say)


def make_card(
    name: str,
    revision: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    generation: GenerationConfig,
    *,
    folder: Path | None = None,
    note: str | None = None,
    checkpoint: Checkpoint | None = None,
    quantization: Quantization | None = None,
    adapter: Adapter | None = None,
) -> ModelCard:
    """Put a card together from its parts."""
    text = text_config(config)
    context = int(getattr(text, "max_position_embeddings", 0) or tokenizer.model_max_length)
    filters = {key: getattr(generation, key, None) for key in ("top_p", "top_k", "min_p")}
    ignored = tuple(
        f"{key}={value}" for key, neutral in _IGNORED_DEFAULTS.items() if (value := getattr(generation, key, None)) not in (None, neutral)
    )
    return ModelCard(
        name=name,
        revision=revision,
        config=config,
        tokenizer=tokenizer,
        end_ids=_end_ids(name, generation.eos_token_id, (getattr(part, "eos_token_id", None) for part in (config, text)), tokenizer),
        context=min(context, int(min(tokenizer.model_max_length, 2**31))),
        layers=_size(name, text, "num_hidden_layers"),
        width=_size(name, text, "hidden_size"),
        ignored=ignored,
        folder=folder,
        note=note,
        checkpoint=checkpoint,
        quantization=quantization,
        adapter=adapter,
        **filters,
    )


def _size(name: str, config: PretrainedConfig, key: str) -> int:
    size = getattr(config, key, None)
    if not isinstance(size, int):
        raise DriftError(f"the configuration of {name} has no {key}", mend="Give a causal language model.")
    return size


def _end_ids(name: str, generation: Any, configs: Iterable[Any], tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ids: set[int] = set()
    for source in (generation, *configs, tokenizer.eos_token_id):
        if source is not None:
            ids.update(int(i) for i in (source if isinstance(source, list | tuple) else [source]))
    if not ids:
        raise DriftError(f"model {name} names no end-of-text token", mend="Set eos_token_id in its generation_config.json.")
    return frozenset(ids)
