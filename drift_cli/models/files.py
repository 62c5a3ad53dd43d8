"""Which files of a model's folder loading reads, and nothing else of it.

A model is loaded from a *view*: a temporary folder with links to exactly the files listed here. So what lies beside them (a README, optimizer states, an
adapter, another checkpoint) can change neither what is loaded nor the model's identity, which is a digest of the same list.

Everything that can be wrong with the list is refused here by name: no weights, pickles, an index that names what is not there, JSON that is none.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from drift_cli.errors import DriftError
from drift_cli.files import read_regular

CONFIG = "config.json"
GGUF = "model.gguf"
"""What a GGUF file is called in a view."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_VOCABULARIES = "tokenizer.json tokenizer.*.json tekken.json vocab.json vocab.txt vocab.bpe encoder.json dict.txt bpe.codes *.model *.tiktoken *.spm".split()
"""Files of which a tokenizer needs at least one; `*.model` are SentencePiece's."""
_TOKENIZER = (*_VOCABULARIES, *"merges.txt tokenizer_config.json special_tokens_map.json added_tokens.json".split())
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
_GENERATION = "generation_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model that loading reads."""

    folder: Path
    """What the user named; with a GGUF file, the folder it is in."""
    files: Mapping[str, Path]
    """Name as transformers looks for it → the file."""
    weights: tuple[str, ...]
    """Those of `files` that hold tensors."""
    gguf: bool = False

    def view(self) -> tempfile.TemporaryDirectory[str]:
        """A temporary folder that holds links to these files and nothing else. To be cleaned up by the caller."""
        made = tempfile.TemporaryDirectory(prefix="drift-model-")
        for name, path in self.files.items():
            link = Path(made.name, name)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
        return made


def find_checkpoint(folder: Path) -> Checkpoint:
    """The files of a folder that holds full weights, or one GGUF file. `DriftError` names what is missing or cannot be read."""
    folder = folder.resolve()
    names = list_files(folder)
    if CONFIG not in names:
        return _without_config(folder, names)
    config = read_object(folder / CONFIG)
    weights, others = _weights(folder, names, config)
    kept = [CONFIG, *others, *tokenizer_files(names), *(name for name in names if name == _GENERATION)]
    checkpoint = Checkpoint(folder, {name: (folder / name).resolve() for name in sorted({*kept, *weights})}, weights)
    for name in checkpoint.files:
        if name.endswith(".json") and name != INDEX:
            read_object(folder / name)
    if not has_vocabulary(checkpoint.files):
        raise DriftError(
            f"{folder} holds no tokenizer",
            mend="Copy the tokenizer's files (tokenizer.json, tokenizer_config.json) there from the original model.",
        )
    return checkpoint


def gguf_file(path: Path) -> Checkpoint:
    """A single GGUF file as a checkpoint: it holds configuration, tokenizer and weights, whatever it is called."""
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise DriftError(
            f"{path} is one of several parts of a model, which transformers cannot read", mend="Join them first: llama-gguf-split --merge"
        )
    return Checkpoint(path.resolve().parent, {GGUF: path.resolve()}, (GGUF,), gguf=True)


def tokenizer_files(names: Iterable[str]) -> list[str]:
    """Those that a tokenizer may be made of, chat templates included."""
    return [name for name in names if _fits(name, (*_TOKENIZER, *_TEMPLATES))]


def has_vocabulary(names: Iterable[str]) -> bool:
    """Whether some file holds a tokenizer's vocabulary."""
    return any(_fits(name, _VOCABULARIES) for name in names)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    depth = len(PurePosixPath(name).parts)
    return any(fnmatch(name, pattern) and len(PurePosixPath(pattern).parts) == depth for pattern in patterns)


def list_files(folder: Path) -> list[str]:
    """Names of a folder's files, and of those in its folder of chat templates, sorted."""
    templates = folder / "additional_chat_templates"
    found = [path.name for path in folder.iterdir() if path.is_file()]
    return sorted(
        [*found, *(f"{templates.name}/{path.name}" for path in (templates.iterdir() if templates.is_dir() else ()) if path.is_file())]
    )


def _without_config(folder: Path, names: list[str]) -> Checkpoint:
    """A folder that holds only a GGUF file, else a refusal that says what the folder is."""
    found = [name for name in names if name.endswith(".gguf")]
    if len(found) == 1 and WEIGHTS not in names:
        return gguf_file(folder / found[0])
    if found:
        raise DriftError(f"{folder} holds {len(found)} GGUF files and no config.json", mend=f"Name one: --model {folder / found[0]}")
    if "params.json" in names:
        raise DriftError(
            f"{folder} holds a model in its makers' own format (params.json)",
            mend="Use the version for transformers, which has a config.json beside its safetensors files.",
        )
    what = " but safetensors files" if any(name.endswith(".safetensors") for name in names) else ""
    raise DriftError(f"{folder} holds no config.json{what}", mend="Give the folder that save_pretrained wrote.")


def _weights(folder: Path, names: list[str], config: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files that hold tensors, and the index where there is one. transformers looks in this order."""
    chosen = config.get("transformers_weights")
    if isinstance(chosen, str):
        if chosen not in names or not chosen.endswith(".safetensors"):
            raise _no_weights(folder, f"its configuration names {chosen}, which is not a safetensors file there", None)
        return (chosen,), ()
    if WEIGHTS in names:
        return (WEIGHTS,), ()
    if INDEX in names:
        return _indexed(folder, names), (INDEX,)
    pickles = [name for name in names if name.endswith(_PICKLES) and name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")]
    gguf = [name for name in names if name.endswith(".gguf")]
    others = [name for name in names if name.endswith(".safetensors")]
    if ADAPTER_WEIGHTS in others and others == [ADAPTER_WEIGHTS]:
        raise _no_weights(folder, "it holds an adapter's only", f"Name the model that it was made for: --model BASE --adapter {folder}")
    if others:
        raise _no_weights(
            folder,
            f"there is no {WEIGHTS} nor {INDEX} (only {_some(others)})",
            f"Rename the file that is meant to {WEIGHTS}, or save the model again.",
        )
    if gguf:
        raise _no_weights(folder, "they are in a GGUF file", f"Name the file itself: --model {folder / gguf[0]}")
    if pickles:
        raise _no_weights(
            folder,
            f"they are pickles only ({_some(pickles)}), which can run code when they are opened",
            "Where you trust them, convert them once: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER2)",
        )
    raise _no_weights(folder, f"there is no {WEIGHTS}", "Copy or download them; a model's page lists its files.")


def _indexed(folder: Path, names: list[str]) -> tuple[str, ...]:
    placed = read_object(folder / INDEX).get("weight_map")
    shards = sorted(set(placed.values())) if isinstance(placed, dict) and all(isinstance(v, str) for v in placed.values()) else []
    if not shards:
        raise DriftError(f"{folder / INDEX} names no files", mend="Copy or download it again.")
    missing = [name for name in shards if name not in names]
    if missing:
        number = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise _no_weights(
            folder,
            f"{number} missing that {INDEX} names ({_some(missing)})",
            "Copy or download what is missing; a model's page lists its files.",
        )
    return tuple(shards)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _no_weights(folder: Path, why: str, mend: str | None) -> DriftError:
    return DriftError(f"the weights of {folder.name} cannot be read: {why}", mend=mend or "Copy or download them again.")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `DriftError` names the file where it is something else."""
    try:
        value = json.loads(read_regular(path, 256 << 20))
    except (ValueError, RecursionError) as error:
        raise DriftError(f"{path} is not valid JSON: {error}", mend="Copy or download the file again.") from None
    if not isinstance(value, dict):
        raise DriftError(f"{path} is not a JSON object", mend="Copy or download the file again.")
    return value
