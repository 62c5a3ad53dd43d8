"""Finds a model and says what it is: a hub id, a local folder, or the built-in `demo` model.

`describe` reads the configuration and tokenizer only, so that a run's id, its prompts and its length are known before any weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError
from drift_cli.models.identity import folder_digest
from drift_cli.models.network import text_config

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

DEMO = "demo"

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
    note: str | None = None


def describe(name: str, revision: str | None = None) -> ModelCard:
    """Read a model's configuration and tokenizer.

    Raises:
        DriftError: it cannot be found or read.
    """
    if name == DEMO:
        from drift_cli.demo_model import card

        return card()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _describe_folder(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DriftError(f"model folder {name} does not exist", mend="Give a folder that holds config.json, or a hub id such as org/name.")
    return _describe_hub(name, revision)


def _describe_folder(folder: Path) -> ModelCard:
    if not (folder / "config.json").is_file():
        raise DriftError(f"{folder} holds no config.json", mend="Give the folder that save_pretrained wrote.")
    resolved = folder.resolve()
    return _card(folder.resolve().name, folder_digest(resolved), str(resolved), None, resolved)


def _describe_hub(name: str, revision: str | None) -> ModelCard:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DriftError(f"model {name} cannot be read: {first_line(error)}", mend=HUB_MEND) from error
    commit = getattr(config, "_commit_hash", None) or revision or "main"
    return _card(name, str(commit), name, str(commit), None)


HUB_MEND = (
    "Check the id and the network, log in for gated models (hf auth login), or give a local folder. "
    "Models that need trust_remote_code are not supported."
)


def _card(name: str, revision: str, source: str, commit: str | None, folder: Path | None) -> ModelCard:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=commit, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DriftError(f"model {name} cannot be read: {first_line(error)}", mend=HUB_MEND) from error
    try:
        generation = GenerationConfig.from_pretrained(source, revision=commit)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    return make_card(name, revision, config, tokenizer, generation, folder=folder)


def make_card(
    name: str,
    revision: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    generation: GenerationConfig,
    *,
    folder: Path | None = None,
    note: str | None = None,
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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
