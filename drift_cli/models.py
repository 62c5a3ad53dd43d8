"""Finds a model, says what it is, and loads it: a hub id, a local folder, or the built-in `demo` model.

`describe` reads the configuration and tokenizer only, so that a run's id, its prompts and its length are known before any weight is read. Weights are
read from safetensors files only, and no code that comes with a model is ever run (`trust_remote_code` is off).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEMO = "demo"
DTYPES = ("auto", "bfloat16", "float16", "float32")

_WHOLE = 64 << 20
"""Weight files up to this size are hashed whole; of larger ones the header and evenly spread blocks are."""
_BLOCKS, _BLOCK = 64, 1 << 20

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


@dataclass(frozen=True)
class LoadedModel:
    """A network in memory, ready to run, and its card."""

    card: ModelCard
    network: PreTrainedModel
    device: torch.device
    dtype: str
    parameters: int


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
        raise DriftError(f"model {name} cannot be read: {_first_line(error)}", mend=_HUB_MEND) from error
    commit = getattr(config, "_commit_hash", None) or revision or "main"
    return _card(name, str(commit), name, str(commit), None)


_HUB_MEND = (
    "Check the id and the network, log in for gated models (hf auth login), or give a local folder. "
    "Models that need trust_remote_code are not supported."
)


def _card(name: str, revision: str, source: str, commit: str | None, folder: Path | None) -> ModelCard:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=commit, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DriftError(f"model {name} cannot be read: {_first_line(error)}", mend=_HUB_MEND) from error
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
    text = config.get_text_config()
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
        end_ids=_end_ids(name, generation.eos_token_id, text.eos_token_id, tokenizer),
        context=min(context, int(min(tokenizer.model_max_length, 2**31))),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        ignored=ignored,
        folder=folder,
        note=note,
        **filters,
    )


def _end_ids(name: str, generation: Any, config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ids: set[int] = set()
    for source in (generation, config, tokenizer.eos_token_id):
        if source is not None:
            ids.update(int(i) for i in (source if isinstance(source, list | tuple) else [source]))
    if not ids:
        raise DriftError(f"model {name} names no end-of-text token", mend="Set eos_token_id in its generation_config.json.")
    return frozenset(ids)


def choose_device(asked: str) -> str:
    """`auto` → the first CUDA device where there is one, else the CPU. Anything else is checked and returned."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"device {asked!r} is unknown", mend="Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {asked} was asked for, but torch sees no CUDA device", mend="Use --device cpu, or see `drift doctor`.")
    return asked


def choose_dtype(asked: str, device: str) -> str:
    """`auto` → bfloat16 on an accelerator, float32 on the CPU."""
    if asked not in DTYPES:
        raise UsageError(f"dtype {asked!r} is unknown", mend=f"Use one of {', '.join(DTYPES)}.")
    if asked != "auto":
        return asked
    return "float32" if device == "cpu" else "bfloat16"


def load(card: ModelCard, *, dtype: str, device: str, gpus: int = 1) -> LoadedModel:
    """Read the weights (safetensors only) on to a device, or, block by block, on to the first `gpus` GPUs (transformers' `device_map="auto"`).

    Raises:
        UsageError: there are not so many GPUs, or accelerate, which spreads the model, is not installed.
        DriftError: they cannot be read, or the network does not have the layers its configuration promises.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = getattr(torch, dtype)
    spread = {} if gpus == 1 else _spread(gpus)
    if card.name == DEMO and card.folder is None:
        from drift_cli.demo_model import network

        loaded = network()
    else:
        revision = None if card.folder else card.revision
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                str(card.folder or card.name), revision=revision, dtype=kind, use_safetensors=True, trust_remote_code=False, **spread
            )
        except (OSError, ValueError) as error:
            raise DriftError(f"the weights of {card.name} cannot be read: {_first_line(error)}", mend=_HUB_MEND) from error
    # What is spread stays where it was put; ids go to where the embeddings are.
    placed = loaded.eval() if hasattr(loaded, "hf_device_map") else loaded.to(device=device, dtype=kind).eval()
    # `generate` fills what it is not told from the network's own defaults: a repetition penalty there would change every draw.
    placed.generation_config = GenerationConfig()
    found = len(blocks(placed))
    if found != card.layers:
        raise DriftError(f"{card.name} has {found} blocks where its configuration says {card.layers}")
    first = torch.device(device) if not spread else placed.get_input_embeddings().weight.device
    return LoadedModel(card, placed, first, dtype, sum(p.numel() for p in placed.parameters()))


def _spread(gpus: int) -> dict[str, Any]:
    """What tells transformers to spread a model's blocks over GPUs evenly."""
    import importlib.util

    import torch

    if importlib.util.find_spec("accelerate") is None:
        raise UsageError(
            f"a model is spread over {gpus} GPUs with accelerate, which is not installed", mend="pip install 'drift-cli[large]'"
        )
    if torch.cuda.device_count() < gpus:
        raise UsageError(
            f"{gpus} GPUs were asked for, torch sees {torch.cuda.device_count()}", mend="Use fewer with --gpus, or see `drift doctor`."
        )
    free = {place: torch.cuda.mem_get_info(place)[0] for place in range(gpus)}
    # Weights may take all but what keys, values and logits need; anything beyond is refused rather than put into the machine's own memory.
    return {"device_map": "auto", "max_memory": {place: int(0.9 * size) for place, size in free.items()}}


def count_parameters(card: ModelCard) -> int:
    """How many parameters the network has, from its configuration alone: it is laid out without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(card.config)
    return sum(p.numel() for p in network.parameters())


def blocks(network: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder's blocks in order, found in the module tree: the longest list of modules that are all of one class."""
    import torch

    lists = [m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) and len({type(x) for x in m}) == 1]
    if not lists:
        raise DriftError("no list of decoder blocks was found in this model", mend="It may not be a causal language model.")
    return max((list(modules) for modules in lists), key=len)


def folder_digest(folder: Path) -> str:
    """SHA-256 over a model folder's configuration, tokenizer and weights; of large weight files, size, header and 64 spread blocks of 1 MiB."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".json", ".jinja", ".model", ".txt", ".safetensors"}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for block in range(_BLOCKS):
                file.seek(block * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
