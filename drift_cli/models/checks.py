"""Is what was loaded what was stored? A network whose parameters did not all come from its files, or not as they stood there, is refused by name.

transformers fills parameters that a file lacks with random numbers, leaves tensors that it has no place for aside, and casts integers to whatever is asked
for, each with a line in a log at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError
from drift_cli.models.headers import FLOATS, Stored
from drift_cli.models.network import blocks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_AGAIN = "Save the whole model again with save_pretrained, or use another copy of it."
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_HEADS = ("score", "classifier", "v_head", "value_head", "reward_head", "rm_head", "regression_head", "qa_outputs")
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|absmax|quant_map|SCB|weight_scale(_inv)?|weight_packed|input_scale|weight_zero_point|W_q)$"
)
_UNUSED = re.compile(
    r"(^|\.)(vision\w*|visual|vit|image\w*|audio\w*|speech\w*|multi_modal_projector|mm_projector|embed_vision|embed_audio|mtp\w*)(\.|$)"
)
"""Parts that a language model does without: towers for images and sound, heads that predict several tokens at once."""


def check_loaded(name: str, network: PreTrainedModel, info: Mapping[str, Any]) -> str | None:
    """Refuse a network whose parameters are not exactly what its files hold. Returns a sentence on parts of the files that it does without.

    `info` is transformers' report (`output_loading_info`): tied weights, and what a class declares to be left out, are not in it.
    """
    missing, extra = sorted(map(str, info.get("missing_keys", ()))), sorted(map(str, info.get("unexpected_keys", ())))
    mismatched = sorted(info.get("mismatched_keys", ()), key=str)
    unused = [key for key in extra if _UNUSED.search(key)]
    if mismatched:
        key, stored, wanted = mismatched[0]
        more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
        raise _wrong(name, f"{key} is {_shape(stored)} in the file and {_shape(wanted)} by the configuration{more}", _AGAIN)
    strangers = [key for key in extra if not _UNUSED.search(key)]
    if missing or strangers:
        raise _wrong(name, *_explained(network, missing, strangers))
    errors = [str(error) for error in info.get("error_msgs", ())]
    if errors:
        raise _wrong(name, errors[0].splitlines()[0], _AGAIN)
    _check_tied(name, network)
    _check_causal(name, network)
    return f"not used of {name}'s files: {_some(unused)}" if unused else None


def check_stored(name: str, network: PreTrainedModel, stored: Mapping[str, Stored]) -> None:
    """Refuse weights that are stored as something other than floating-point numbers, where no quantization says what they mean."""
    odd = {key: tensor.dtype for key, tensor in stored.items() if tensor.dtype not in FLOATS}
    if not odd:
        return
    floats = {key for key, parameter in network.named_parameters() if parameter.is_floating_point()}
    for key, dtype in sorted(odd.items()):
        if any(key == wanted or key.endswith(f".{wanted}") or wanted.endswith(f".{key}") for wanted in floats):
            raise _wrong(
                name,
                f"{key} is stored as {dtype}, and no quantization_config says how to read that",
                "Use the original model, or put its quantization_config back into config.json.",
            )


def check_numbers(name: str, network: PreTrainedModel, dtype: str) -> None:
    """Refuse parameters that were never filled, and values that are not numbers or do not fit into the dtype."""
    import torch

    for key, parameter in network.named_parameters():
        if parameter.device.type == "meta":
            if hasattr(network, "hf_device_map"):  # it waits elsewhere until it is needed
                continue
            raise _wrong(name, f"{key} was not filled", _AGAIN)
        if parameter.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64) or not parameter.numel():
            continue
        low, high = torch.aminmax(parameter.detach())
        if bool(torch.isfinite(low) & torch.isfinite(high)):
            continue
        too_large = dtype == "float16" and not bool(torch.isnan(low))
        raise _wrong(
            name,
            f"{key} holds {'numbers too large for float16' if too_large else 'values that are not numbers (NaN or infinite)'}",
            "Use --dtype bfloat16 or float32." if too_large else "Use another copy of the model.",
        )


def check_dtype(name: str, network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuse a network that its quantizer computes with in another dtype than the run says."""
    found = network.get_input_embeddings().weight.dtype
    if found.is_floating_point and found != dtype:
        spelled = str(found).removeprefix("torch.")
        raise DriftError(f"{name} is quantized and computes in {spelled} only", mend=f"Use --dtype {spelled}.")


def check_unpacked(name: str, network: PreTrainedModel) -> None:
    """Refuse a network that was to be unpacked and is not an ordinary one: some releases of transformers go on rounding activations."""
    packed = [key for key, parameter in network.named_parameters() if parameter.element_size() < 2 or not parameter.is_floating_point()]
    packed += [key for key, module in network.named_modules() if getattr(module, "quantization_scheme", None) is not None]
    if packed:
        raise _wrong(
            name, f"this transformers leaves {packed[0]} quantized where it was to be unpacked", "pip install --upgrade transformers"
        )


def _check_tied(name: str, network: PreTrainedModel) -> None:
    """Refuse files that hold a head of its own where the configuration ties it to the embeddings: one of the two is wrong."""
    text = network.config.get_text_config()
    head, embeddings = network.get_output_embeddings(), network.get_input_embeddings()
    if not getattr(text, "tie_word_embeddings", False) or not getattr(network, "_tied_weights_keys", None) or head is None:
        return
    if head.weight.device.type != "meta" and head.weight.data_ptr() != embeddings.weight.data_ptr():
        raise _wrong(
            name,
            "its files hold a language model head that differs from the embeddings, and its configuration says that they are the same",
            "Where the head is meant, set tie_word_embeddings to false in config.json; else take the head out of the file.",
        )


def _check_causal(name: str, network: PreTrainedModel) -> None:
    """Refuse a decoder whose attention looks at later tokens: an encoder."""
    flags = [
        module.is_causal for block in blocks(network) for module in block.modules() if isinstance(getattr(module, "is_causal", None), bool)
    ]
    if flags and not any(flags):
        raise _wrong(
            name, f"as a {type(network).__name__} it looks at later tokens: it is an encoder", "Use a decoder-only language model."
        )


def _explained(network: PreTrainedModel, missing: list[str], extra: list[str]) -> tuple[str, str]:
    """Why tensors are missing or too many, as far as their names tell, and what to do."""
    kind = type(network).__name__
    prefix = _prefix(missing, extra)
    if prefix is not None:
        return (
            f"all its tensors stand under the prefix {prefix!r}",
            "Save the network itself again, not what it was wrapped in for training.",
        )
    if any("lora_" in key for key in extra):
        return (
            "tensors of an adapter are mixed with its own (lora_A, lora_B)",
            "Merge the adapter with peft (merge_and_unload) and save the result.",
        )
    if any(_PACKED.search(key) for key in extra):
        return (
            "its tensors are quantized, and its config.json has no quantization_config",
            "Put the quantization_config back, or use the original.",
        )
    head = _name_of_head(network)
    other = [key for key in extra if set(key.split(".")) & set(_HEADS)]
    if head in missing and other:
        return (
            f"it has {other[0]} in place of a language model head: a classifier or reward model",
            "Use the language model that it was made from.",
        )
    if missing == [head]:
        return (f"its language model head ({head}) is missing, and its configuration does not tie it to the embeddings", _AGAIN)
    for keys, said in ((missing, "lack"), (extra, "hold")):
        numbers = sorted({int(found[1]) for key in keys if (found := _BLOCK.search(key))})
        if numbers and all(_BLOCK.search(key) for key in keys) and not (missing if keys is extra else extra):
            which = f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]} to {numbers[-1]}"
            beyond = ", which its configuration does not have" if said == "hold" else ""
            return (f"its files {said} {which}{beyond} ({_some(keys)})", _AGAIN)
    parts = [f"{len(keys)} {word} ({_some(keys)})" for keys, word in ((missing, "missing"), (extra, "unknown")) if keys]
    return (f"they are not those of a {kind}: of its tensors {', '.join(parts)}", _AGAIN)


def _prefix(missing: list[str], extra: list[str]) -> str | None:
    """What stands in front of all tensors in the file and not in the network, if that is all that is wrong."""
    if not missing or not extra:
        return None
    parts, wanted = extra[0].split("."), set(missing)
    for length in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:length]) + "."
        if all(key.startswith(prefix) and key.removeprefix(prefix) in wanted for key in extra):
            return prefix
    return None


def _name_of_head(network: PreTrainedModel) -> str | None:
    head = network.get_output_embeddings()
    return next((f"{name}.weight" for name, module in network.named_modules() if module is head), None)


def _wrong(name: str, why: str, mend: str) -> DriftError:
    return DriftError(f"the weights of {name} cannot be used: {why}", mend=mend)


def _some(keys: Iterable[str]) -> str:
    found = list(keys)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _shape(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape))
