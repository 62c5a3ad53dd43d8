"""Where the parts of a network are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drift_cli.errors import DriftError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def blocks(network: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder's blocks in order, found in the module tree: the longest list of modules that are all of one class."""
    import torch

    lists = [m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) and len({type(x) for x in m}) == 1]
    if not lists:
        raise DriftError("no list of decoder blocks was found in this model", mend="It may not be a causal language model.")
    return max((list(modules) for modules in lists), key=len)
