"""Where models come from: a folder, a GGUF file, an adapter's folder, the Hub. Each becomes a `ModelCard`, or is refused by name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli import plugins
from drift_cli.errors import DriftError, UsageError
from drift_cli.models import builtin, quantized
from drift_cli.models.adapters import Adapter, base_of, find_adapter, is_adapter
from drift_cli.models.card import ModelCard, make_card
from drift_cli.models.files import ADAPTER_CONFIG, CONFIG, Checkpoint, find_checkpoint, gguf_file, list_files, read_object
from drift_cli.models.gguf import check_installed, describe_gguf
from drift_cli.models.headers import all_tensors
from drift_cli.models.identity import Say, tree_digest
from drift_cli.models.quantized import Quantization
from drift_cli.models.reading import LOCAL_MEND, REMOTE_CODE, Reading

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

HUB_MEND = "See the model's page for which files it has, or give a local folder."
_COMMIT = re.compile(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")
_OTHER_TASKS = (
    *"ForSequenceClassification ForTokenClassification ForQuestionAnswering ForMultipleChoice ForMaskedLM ForNextSentencePrediction".split(),
    *"ForImageClassification ForAudioClassification ForRewardModel ForProcessRewardModel RewardModel".split(),
)


def describe(name: str, revision: str | None, adapter: str | None, say: Say | None) -> ModelCard:
    """See `card.describe`."""
    if name in builtin.BUILT_IN:
        if adapter is not None:
            raise UsageError("the built-in model takes no adapter", mend="Name a model with --model.")
        return builtin.card(name)
    for problem in plugins.added(plugins.ARCHITECTURES).problems.values():  # those that load have registered themselves by now
        if say is not None:
            say(problem)
    place = Path(name).expanduser()
    if place.is_dir() and is_adapter(place):
        if adapter is not None:
            raise UsageError(f"{name} holds an adapter, and --adapter names another", mend="Name a model with full weights: --model BASE")
        found = find_adapter(place, say)
        return _described(base_of(found), found.base_revision, found, say)
    return _described(name, revision, None if adapter is None else find_adapter(Path(adapter).expanduser(), say), say)


def content_of(place: Path, say: Say | None) -> str:
    """What the content of a local model is called by, every byte read again. `DriftError` where it cannot be read."""
    return tree_digest((find_checkpoint(place) if place.is_dir() else gguf_file(place)).files, say, remembered=False)


def _described(name: str, revision: str | None, adapter: Adapter | None, say: Say | None) -> ModelCard:
    place = Path(name).expanduser()
    if place.is_dir():
        return _folder(place, adapter, say)
    if place.is_file():
        if place.suffix != ".gguf":
            raise DriftError(
                f"{name} is a file, but not a GGUF file", mend="Give a folder that holds config.json, or a file that ends in .gguf."
            )
        return _gguf(gguf_file(place), place.name.removesuffix(".gguf"), adapter, say)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DriftError(f"model folder {name} does not exist", mend="Give a folder that holds config.json, or a hub id such as org/name.")
    return _hub(name, revision, adapter)


def _folder(folder: Path, adapter: Adapter | None, say: Say | None) -> ModelCard:
    name = folder.resolve().name
    beside = [found for found in list_files(folder) if found.startswith("adapter_") and found.endswith((".json", ".safetensors", ".bin"))]
    if beside and adapter is None:
        raise DriftError(
            f"{folder} holds full weights and an adapter ({', '.join(beside)}): whether the adapter is meant is not known",
            mend=f"Apply it with --adapter {folder}, or move {' and '.join(beside)} away.",
        )
    checkpoint = find_checkpoint(folder)
    if checkpoint.gguf:
        return _gguf(checkpoint, name, adapter, say)
    raw = read_object(checkpoint.files[CONFIG])
    quantization = _refused_or_quantized(name, raw, adapter)
    all_tensors(checkpoint.files[weights] for weights in checkpoint.weights)
    with checkpoint.view() as view:
        parts = _parts(name, view, None, adapter, checkpoint.files[CONFIG], LOCAL_MEND)
    revision = tree_digest(checkpoint.files, say)
    return make_card(name, revision, *parts, folder=checkpoint.folder, checkpoint=checkpoint, quantization=quantization, adapter=adapter)


def _gguf(checkpoint: Checkpoint, name: str, adapter: Adapter | None, say: Say | None) -> ModelCard:
    from transformers import GenerationConfig

    (path,) = checkpoint.files.values()
    check_installed(path)
    config, tokenizer, ends, kind = describe_gguf(path)
    if adapter is not None and adapter.tokenizer:
        with tempfile.TemporaryDirectory(prefix="drift-model-") as place:
            config.save_pretrained(place)
            tokenizer = _tokenizer_of(name, adapter, Path(place, CONFIG))
    _check_shape(name, config, tokenizer)
    generation = GenerationConfig(eos_token_id=list(ends) or None)
    quantization = Quantization("gguf", f"{kind}, unpacked", unpacked=True)
    revision = tree_digest(checkpoint.files, say)
    return make_card(
        name, revision, config, tokenizer, generation, folder=path, checkpoint=checkpoint, quantization=quantization, adapter=adapter
    )


def _hub(name: str, revision: str | None, adapter: Adapter | None) -> ModelCard:
    from transformers.utils import cached_file

    lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    with Reading(f"model {name}", HUB_MEND):
        # Without a network it may be unknown whether there is one; what is not in the cache cannot be applied either.
        beside = cached_file(name, ADAPTER_CONFIG, revision=revision, **lenient)
        found = cached_file(name, CONFIG, revision=revision, **({} if beside is None else lenient))
    if beside is not None:
        what = "holds an adapter only" if found is None else "holds full weights and an adapter"
        raise DriftError(
            f"model {name} {what}; adapters are read from local folders",
            mend=f"hf download {name} --local-dir FOLDER, then {'--model' if found is None else '--model BASE --adapter'} FOLDER",
        )
    if found is None:
        raise DriftError(
            f"model {name} cannot be read: the Hub's copy has no config.json",
            mend="If it holds GGUF files: hf download it with --local-dir FOLDER, then --model FOLDER/FILE.gguf",
        )
    commit = _COMMIT.search(str(found))
    resolved = commit[1] if commit else revision or "main"
    raw = read_object(Path(found))
    quantization = _refused_or_quantized(name, raw, adapter)
    parts = _parts(name, name, resolved, adapter, Path(found), HUB_MEND)
    return make_card(name, resolved, *parts, quantization=quantization, adapter=adapter)


def _refused_or_quantized(name: str, raw: Mapping[str, Any], adapter: Adapter | None) -> Quantization | None:
    """What a configuration (JSON) says of quantization; what it says that drift cannot use is refused."""
    _check_kind(name, raw)
    found = quantized.quantization_of(name, raw)
    if found is not None:
        quantized.check_packages(name, found)
        if adapter is not None and not found.unpacked:
            raise UsageError(
                f"adapter {adapter.name} cannot be merged into {name}, which is quantized ({found.text})",
                mend="Use the model that was quantized: its weights are the ones to merge into.",
            )
    return found


def _check_kind(name: str, raw: Mapping[str, Any]) -> None:
    """Refuse model types that transformers does not know, and networks that are no language models."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind, architectures = raw.get("model_type"), [str(found) for found in raw.get("architectures") or []]
    if not isinstance(kind, str):
        raise DriftError(f"model {name} cannot be read: its config.json names no model_type", mend=LOCAL_MEND)
    if kind not in CONFIG_MAPPING:
        own = ", and it brings code of its own" if raw.get("auto_map") else ""
        raise DriftError(
            f"model {name} cannot be read: its model type {kind!r} is unknown to transformers {transformers.__version__}{own}",
            mend=REMOTE_CODE if own else "pip install --upgrade transformers, should it be a new one.",
        )
    if architectures and all(found.endswith(_OTHER_TASKS) for found in architectures):
        raise DriftError(
            f"model {name} is a {architectures[0]}: it has no head that writes text", mend="Use the language model that it was made from."
        )
    if raw.get("is_encoder_decoder"):
        raise DriftError(f"model {name} is an encoder-decoder model ({kind})", mend="Use a decoder-only language model.")


def _parts(name: str, where: str, commit: str | None, adapter: Adapter | None, config_file: Path, mend: str) -> tuple[Any, Any, Any]:
    """Configuration, tokenizer and generation settings of a view or a hub id."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    with Reading(f"model {name}", mend):
        config = AutoConfig.from_pretrained(where, revision=commit, trust_remote_code=False)
        _forget_end(config, read_object(config_file))
        try:
            generation = GenerationConfig.from_pretrained(where, revision=commit)
        except OSError:
            generation = GenerationConfig.from_model_config(config)
    if adapter is not None and adapter.tokenizer:
        tokenizer = _tokenizer_of(name, adapter, config_file)
    else:
        with Reading(f"the tokenizer of {name}", mend):
            tokenizer = AutoTokenizer.from_pretrained(where, revision=commit, trust_remote_code=False)
            _add_template(tokenizer, where, commit)
    _check_shape(name, config, tokenizer)
    return config, tokenizer, generation


def _forget_end(config: PretrainedConfig, raw: Mapping[str, Any]) -> None:
    """Take an end token away that only the configuration's class names: its default is some other model's."""
    text = raw.get("text_config")
    if "eos_token_id" not in raw and not (isinstance(text, dict) and "eos_token_id" in text):
        config.eos_token_id = config.get_text_config().eos_token_id = None


def _tokenizer_of(name: str, adapter: Adapter, config_file: Path) -> PreTrainedTokenizerBase:
    """An adapter's own tokenizer, read beside the model's configuration."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="drift-model-") as view, Reading(f"the tokenizer of adapter {adapter.name}"):
        for entry, path in {**adapter.tokenizer, CONFIG: config_file}.items():
            link = Path(view, entry)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.resolve())
        tokenizer = AutoTokenizer.from_pretrained(view, trust_remote_code=False)
        _add_template(tokenizer, view, None)
    return tokenizer


def _add_template(tokenizer: Any, where: str, commit: str | None) -> None:
    """Take the chat template from `chat_template.json`, where older releases kept it, if the tokenizer has none."""
    from transformers.utils import cached_file

    if tokenizer.chat_template:
        return
    found = cached_file(where, "chat_template.json", revision=commit, _raise_exceptions_for_missing_entries=False)
    if found is not None:
        tokenizer.chat_template = read_object(Path(found)).get("chat_template")


def _check_shape(name: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse configurations without a decoder, and a tokenizer that is another model's."""
    text = config.get_text_config()
    for key in ("num_hidden_layers", "hidden_size", "vocab_size"):
        value = getattr(text, key, None)
        if not isinstance(value, int) or value < 1:
            raise DriftError(f"model {name} cannot be read: its configuration has {key} = {value}", mend=LOCAL_MEND)
    beyond = len(tokenizer) - int(text.vocab_size)
    # A few tokens may have no embedding: placeholders for images, say, which text does not contain.
    if beyond > max(64, int(text.vocab_size) // 100):
        raise DriftError(
            f"model {name} cannot be used: its tokenizer has {len(tokenizer)} tokens, and the network embeds {text.vocab_size}",
            mend="Copy the tokenizer's files there from the original model.",
        )
