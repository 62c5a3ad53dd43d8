"""Which network a configuration asks for, and where its parts are.

Today's chat models are often the text part of a checkpoint that also sees or hears. Where transformers has a class that continues text alone it is taken,
else the one that also takes images or sound, which is only ever given text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that is about the decoder of text: its own, where there are no parts."""
    return config.get_text_config(decoder=True)


def layer_configs(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The text part's configuration as each layer has it: some give sizes of their own to single layers."""
    text = text_config(config)
    if not getattr(text, "is_heterogeneous", False):
        return [text] * int(text.num_hidden_layers)
    return [text.per_layer_config[layer] for layer in range(int(text.num_hidden_layers))]


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class of transformers that makes a configuration's network.

    Raises:
        DriftError: it has none that continues a text.
    """
    import transformers

    for name in ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        kind = getattr(transformers, name, None)
        if kind is not None and type(config) in kind._model_mapping:
            return kind
    raise DriftError(
        f"transformers has no network of model type {config.model_type} that continues a text",
        mend="Give a chat model: a causal language model, or one that also takes images.",
    )


def parameters(config: PretrainedConfig) -> int:
    """How many parameters a configuration's network has: it is laid out without memory for its weights.

    Raises:
        DriftError: there is no such network, or it needs a package that is not installed.
    """
    import torch

    try:
        with torch.device("meta"):
            network = auto_class(config).from_config(config)
    except ImportError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DriftError(f"a network of model type {config.model_type} cannot be made here: {said}", mend="Install the package.") from error
    return sum(p.numel() for p in network.parameters())


def blocks(network: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder's blocks in order, of whatever classes: in the module tree of the text part, of the lists with as many modules as the configuration has
    layers, the one with the most parameters. None where there is no such list.
    """
    import torch

    layers = int(text_config(network.config).num_hidden_layers)
    lists = [found for found in _outermost(network.get_decoder(), torch.nn.ModuleList) if len(found) == layers]
    return list(max(lists, key=lambda found: sum(p.numel() for p in found.parameters()), default=()))


def _outermost(module: torch.nn.Module, kind: type[torch.nn.Module]) -> Iterator[Any]:
    """Modules of a kind that are in no other one of that kind."""
    for child in module.children():
        if isinstance(child, kind):
            yield child
        else:
            yield from _outermost(child, kind)
