"""LoRA adapters: found, checked, and merged into the weights.

An adapter is merged, not kept beside the weights: slots need plain modules. Each matrix is brought to float32, the adapter's change is added there, and
the sum is rounded once to the dtype that the network runs in; how much of the change that rounding is gets measured and said. Only what is exact that way
is accepted: plain LoRA, rank-stabilized LoRA and DoRA, biases, and modules that were trained whole. Anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError, UsageError
from drift_cli.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS, has_vocabulary, list_files, read_object, tokenizer_files
from drift_cli.models.headers import tensors
from drift_cli.models.identity import Say, tree_digest
from drift_cli.models.reading import Reading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_SUPPORTED = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules exclude_modules lora_alpha lora_dropout "
    "fan_in_fan_out bias use_rslora modules_to_save init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern use_dora "
    "megatron_core qalora_group_size runtime_config".split()
)
"""Settings of an adapter that merging keeps exactly, or that say nothing of the network."""
_INITIAL = (True, False, None, "gaussian", "eva")
"""Ways to begin training that leave the base model's weights as they are."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that is to be merged into a model."""

    name: str
    """The folder's."""
    folder: Path
    digest: str
    """Of all its files that are read: see `identity.tree_digest`."""
    base: str | None
    """The model that it says it was trained on: a hub id or a folder."""
    base_revision: str | None
    tokenizer: Mapping[str, Path]
    """Files of a tokenizer of its own, which is used in place of the model's; empty where it has none."""
    rank: int


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no full weights."""
    names = list_files(folder)
    full = {WEIGHTS, INDEX} & set(names) or any(name.endswith(".gguf") or name.startswith("pytorch_model") for name in names)
    return ADAPTER_CONFIG in names and not full


def find_adapter(folder: Path, say: Say | None = None, *, remembered: bool = True) -> Adapter:
    """The adapter in a folder, checked as far as that needs no network. `DriftError` names what is wrong with it.

    `say` and `remembered`: see `identity.tree_digest`.
    """
    if not folder.is_dir():
        raise DriftError(
            f"adapter folder {folder} does not exist", mend="Give a local folder. (From the Hub: hf download org/name --local-dir FOLDER)"
        )
    folder = folder.resolve()
    names = list_files(folder)
    if ADAPTER_CONFIG not in names:
        raise DriftError(f"{folder} holds no {ADAPTER_CONFIG}", mend="Give the folder that peft's save_pretrained wrote.")
    if ADAPTER_WEIGHTS not in names:
        pickled = " (adapter_model.bin is a pickle, which can run code when it is opened)" if "adapter_model.bin" in names else ""
        raise DriftError(
            f"the weights of adapter {folder.name} cannot be read: there is no {ADAPTER_WEIGHTS}{pickled}", mend="Save it again with peft."
        )
    config = read_object(folder / ADAPTER_CONFIG)
    _check(folder.name, config)
    tensors(folder / ADAPTER_WEIGHTS)
    own = {name: folder / name for name in tokenizer_files(names)}
    if own and not has_vocabulary(own):
        raise DriftError(
            f"adapter {folder.name} holds part of a tokenizer ({', '.join(own)})",
            mend="Copy the rest of it there from the base model, or take that part away to use the base model's.",
        )
    files = {name: (folder / name).resolve() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *own)}
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return Adapter(
        folder.name, folder, tree_digest(files, say, remembered=remembered), base or None, revision or None, own, int(config.get("r") or 0)
    )


def base_of(adapter: Adapter) -> str:
    """The model to load under an adapter that was given alone: a folder that exists, or a hub id."""
    said = adapter.base
    if said is None:
        raise UsageError(
            f"adapter {adapter.name} does not say which model it was made for", mend=f"Name it: --model BASE --adapter {adapter.folder}"
        )
    for place in (Path(said).expanduser(), adapter.folder / said, adapter.folder.parent / said):
        if place.is_dir() or place.is_file():
            return str(place)
    if said.startswith((".", "/", "~")) or said.count("/") != 1:
        raise DriftError(
            f"adapter {adapter.name} was made for the model {said}, which is not here",
            mend=f"Say where it is: --model BASE --adapter {adapter.folder}",
        )
    return said


def _check(name: str, config: Mapping[str, Any]) -> None:
    """Refuse adapters that are no LoRA, or whose settings merging would not keep."""
    kind = str(config.get("peft_type", "unknown")).removeprefix("PeftType.")
    if kind != "LORA":
        raise DriftError(f"adapter {name} is of kind {kind}; only LoRA adapters can be merged into the weights", mend=_MERGE_IT)
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise DriftError(
            f"adapter {name} was trained for {task}: it is not a language model's", mend="Use an adapter with task_type CAUSAL_LM."
        )
    beyond = sorted(key for key, value in config.items() if key not in _SUPPORTED and value not in (None, False, {}, []))
    if config.get("init_lora_weights") not in _INITIAL:
        beyond.append(f"init_lora_weights = {config['init_lora_weights']}")
    if beyond:
        raise DriftError(f"adapter {name} uses {', '.join(beyond)}, which drift does not merge", mend=_MERGE_IT)


_MERGE_IT = "Merge it into its model with peft (merge_and_unload), save the result, and give that folder as --model."


def merge_adapter(network: PreTrainedModel, adapter: Adapter) -> tuple[PreTrainedModel, str]:
    """A network with an adapter merged into it, made of plain modules again, and a sentence that says how exact that is. `network` is used up.

    Raises:
        DriftError: peft is not installed, or the adapter does not fit the network.
    """
    with Reading(f"adapter {adapter.name}", _MERGE_IT):
        try:
            import peft
        except ImportError:
            raise DriftError(
                f"adapter {adapter.name} is merged with peft, which is not installed", mend="pip install 'drift-cli[lora]'"
            ) from None
        from safetensors.torch import load_file

        config = peft.LoraConfig.from_pretrained(str(adapter.folder))
        _check_known(adapter.name, read_object(adapter.folder / ADAPTER_CONFIG), config)
        dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
        config.inference_mode = True
        tied = _tied(network)
        wrapped = peft.PeftModel(network, config)
        _check_fit(adapter, wrapped, network)
        peft.set_peft_model_state_dict(wrapped, load_file(adapter.folder / ADAPTER_WEIGHTS))
        change, lost = _merge(adapter.name, wrapped, tied)
        plain = wrapped.merge_and_unload()
        _restore(adapter.name, plain, dtypes)
    share, dtype = (lost / change) ** 0.5 if change else 0.0, str(_most(dtypes)).removeprefix("torch.")
    coarse = " (--dtype float32 keeps it whole)" if share > 0.01 else ""
    return plain, f"adapter {adapter.name} is merged into the weights in float32; rounding to {dtype} is {share:.2g} of its change{coarse}"


def _check_known(name: str, said: Mapping[str, Any], config: Any) -> None:
    """Refuse settings that this peft drops because it does not know them."""
    unknown = sorted(
        key for key, value in said.items() if key not in {f.name for f in fields(config)} and value not in (None, False, {}, [])
    )
    if unknown:
        raise DriftError(f"adapter {name} uses {', '.join(unknown)}, which this peft does not know", mend="pip install --upgrade peft")


def _check_fit(adapter: Adapter, wrapped: Any, network: PreTrainedModel) -> None:
    """Refuse an adapter whose tensors are not exactly those that the network would train with its settings."""
    import peft

    wanted = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    possible = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=True)  # peft saves them whole where an adapter changes them
    held = tensors(adapter.folder / ADAPTER_WEIGHTS)
    for name in sorted(possible.keys() & held.keys()):
        if tuple(possible[name].shape) != held[name].shape:
            raise _misfit(adapter, network, f"{name} is {_shape(held[name].shape)} where the network takes {_shape(possible[name].shape)}")
    absent, extra = sorted(wanted.keys() - held.keys()), sorted(held.keys() - possible.keys())
    if absent or extra:
        what = f"it holds {extra[0]}, for which the network has no place" if extra else f"it lacks {absent[0]}"
        raise _misfit(adapter, network, what)


def _misfit(adapter: Adapter, network: PreTrainedModel, why: str) -> DriftError:
    of = f"It says that it was trained on {adapter.base}." if adapter.base else "It does not say what it was trained on."
    return DriftError(
        f"adapter {adapter.name} does not fit this {type(network).__name__}: {why}", mend=f"Use the model that it was made for. {of}"
    )


def _shape(shape: Any) -> str:
    return " × ".join(map(str, shape)) or "a number"


def _tied(network: PreTrainedModel) -> frozenset[int]:
    """The places of weights that the embeddings share with the head."""
    ends = [module.weight for module in (network.get_input_embeddings(), network.get_output_embeddings()) if module is not None]
    return frozenset({ends[0].data_ptr()} if len(ends) == 2 and ends[0].data_ptr() == ends[1].data_ptr() else set())


def _merge(name: str, wrapped: Any, tied: frozenset[int]) -> tuple[float, float]:
    """Merge every LoRA layer in float32; returns the sums of squares of the change, and of what rounding it took away."""
    from peft.tuners.lora import LoraLayer

    change = lost = 0.0
    for place, module in wrapped.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        weight: torch.nn.Parameter = module.get_base_layer().weight  # type: ignore[assignment]
        if weight.data_ptr() in tied:
            raise DriftError(
                f"adapter {name} changes {place.rpartition('model.')[2]}, which the model's embeddings and head share", mend=_MERGE_IT
            )
        dtype, before = weight.dtype, weight.data.float()
        weight.data = before.clone()
        module.merge(safe_merge=True)
        exact = weight.data
        weight.data = exact.to(dtype)
        change += float((exact - before).double().square().sum())
        lost += float((exact - weight.data.float()).double().square().sum())
    return change, lost


def _restore(name: str, network: PreTrainedModel, dtypes: Mapping[str, torch.dtype]) -> None:
    """See that nothing of peft is left, and that every parameter has the dtype that it had."""
    left = [type(module).__name__ for module in network.modules() if type(module).__module__.startswith("peft")]
    if left:
        raise DriftError(f"adapter {name} cannot be merged: peft leaves {left[0]} in the network", mend=_MERGE_IT)
    for place, parameter in network.named_parameters():
        # A head that was tied and was trained whole is a parameter of its own now.
        parameter.data = parameter.data.to(dtypes.get(place, _most(dtypes)))


def _most(dtypes: Mapping[str, torch.dtype]) -> torch.dtype:
    """The dtype of most parameters."""
    found = list(dtypes.values())
    return max(set(found), key=found.count)
