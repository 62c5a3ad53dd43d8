"""Plain computations of a trial's conversations: what is true, and what a plain computation in the model's own dtype is off by."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drift_cli.engine.attention import cache_argument
from drift_cli.engine.contract import is_out_of_memory
from drift_cli.engine.kernels import repeatable
from drift_cli.engine.slot_passes import through_torch_slots
from drift_cli.engine.trial_text import REPLY, Conversation, Measured
from drift_cli.errors import DriftError
from drift_cli.models import LoadedModel, free_memory


@dataclass(frozen=True)
class Yardstick:
    """What slots are held against."""

    said: str
    truth: tuple[Measured, ...]
    plain: tuple[Measured, ...]
    exact: tuple[Measured, ...] | None


def yardstick(model: LoadedModel, given: Sequence[Conversation]) -> Yardstick:
    """Run plain computations. `DriftError` where the logits are not finite."""
    plain = tuple(_forward(model, it) for it in given)
    if any(not np.isfinite(it.logits).all() for it in plain):
        raise DriftError(
            f"the logits of {model.card.name} in {model.dtype} are not finite", mend="Use --dtype float32, or check the model's weights."
        )
    if model.dtype != "float32" and (held := _in_float32(model)) is not None:
        try:
            truth = tuple(_forward(held, it) for it in given)
            exact = tuple(through_torch_slots(held, given))
            return Yardstick(f"a plain forward pass in {model.dtype}", truth, plain, exact)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        finally:
            del held
            _forget(model)
    return Yardstick("a plain pass in chunks", plain, tuple(_chunked(model, it) for it in given), None)


def _in_float32(model: LoadedModel) -> LoadedModel | None:
    """The model with its weights in float32, None where there is no room for them, or where they are quantized."""
    sizes = {parameter.dtype for parameter in model.network.parameters()}
    if getattr(model.network, "is_quantized", False) or not sizes <= {torch.bfloat16, torch.float16, torch.float32}:
        return None
    if 4.8 * model.parameters > _free(model.device):
        return None
    try:
        return replace(model, network=copy.deepcopy(model.network).float(), dtype="float32")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _forget(model)
        return None


def _free(device: torch.device) -> float:
    """Bytes that may be taken."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(free_memory())


def _forget(model: LoadedModel) -> None:
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _forward(model: LoadedModel, it: Conversation) -> Measured:
    """One plain forward pass over a whole conversation."""
    ids = torch.tensor([it.ids], device=model.device)
    few = _positions(model, it.positions)
    with repeatable():
        out = model.network(input_ids=ids, output_hidden_states=True, use_cache=False, **few)
        logits = out.logits[0] if few else out.logits[0, it.positions]
        return _measured(logits, [_means(model.residuals.of(out.hidden_states), reply.start, reply.stop) for reply in it.replies[:1]])


def _positions(model: LoadedModel, positions: Sequence[int]) -> dict[str, Any]:
    """Ask for the logits of these positions alone, of networks that know how."""
    known = "logits_to_keep" in signature(model.network.forward).parameters
    return {"logits_to_keep": torch.tensor(positions, device=model.device)} if known else {}


def _means(states: Sequence[Tensor], start: int, stop: int) -> Tensor:
    return torch.stack([state[0, start:stop].float().mean(0).cpu() for state in states])


def _measured(logits: Tensor, means: Sequence[Tensor]) -> Measured:
    return Measured(logits.float().cpu().numpy(), tuple(mean.numpy() for mean in means))


def _chunked(model: LoadedModel, it: Conversation) -> Measured:
    """The pieces that slots are given, through the network's own cache; of single tokens, chunks instead."""
    name, cache = cache_argument(model.network.__class__), None
    kept, means = [], []
    for first, last in ((0, it.prompt), (it.prompt, it.following), (it.following, len(it.ids))):
        ids = torch.tensor([it.ids[first:last]], device=model.device)
        with repeatable():
            out = model.network(input_ids=ids, output_hidden_states=True, use_cache=True, **({} if cache is None else {name: cache}))
        cache = getattr(out, name, None)
        kept.append(out.logits[0, [place - first for place in it.positions if first <= place < last]])
        if first == it.prompt:
            means.append(_means(model.residuals.of(out.hidden_states), 0, REPLY))
    return _measured(torch.cat(kept), means)
