"""Slots: one growing KV cache per rollout, and the attention that reads it, through transformers' public interfaces.

A `Cache` subclass takes the keys and values of each layer; an attention function registered by name reads them back. Any architecture whose attention goes
through `AttentionInterface` works unchanged. A row's attention runs over its own keys alone, at its own length, so its bits do not depend on its company.

Keys and values are kept as (kv heads, tokens, head width) per layer and slot, in blocks that are added as a conversation grows. A sliding-window layer
reads only its window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from drift_cli.engine.kernels import repeatable
from drift_cli.errors import DriftError
from drift_cli.models import LoadedModel

ATTENTION = "drift_slots"
_BLOCK = 256
"""Tokens by which a slot's buffers grow."""

_HARMLESS = {
    "dropout",
    "is_causal",
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "logits_to_keep",
}
"""Arguments of an attention call that change nothing here (dropout is 0 in evaluation)."""


@dataclass
class Slot:
    """One rollout's keys and values: `keys[layer]` and `values[layer]` are (kv heads, capacity, head width), of which `length` tokens count."""

    length: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put (kv heads, new, head width) behind the `length` tokens that are there; `length` itself is moved by the caller."""
        end = self.length + key.shape[1]
        for store, new in ((self.keys, key), (self.values, value)):
            held = store.get(layer)
            if held is None or held.shape[1] < end:
                store[layer] = held = _grown(held, new, self.length, end)
            held[:, self.length : end] = new


def _grown(held: Tensor | None, new: Tensor, length: int, end: int) -> Tensor:
    capacity = max(-(-end // _BLOCK) * _BLOCK, length + length // 4)
    made = new.new_zeros((new.shape[0], capacity, new.shape[2]))
    if held is not None:
        made[:, :length] = held[:, :length]
    return made


class SlotCache(Cache):  # type: ignore[misc]
    """The cache that a forward pass writes to: one slot for a chunk of tokens, or one token for each of several slots."""

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self.rows: Sequence[Slot | None] = ()
        """The slot of each row of the batch; None for a row that stands empty."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (rows, kv heads, tokens, head width) for each row that has a slot."""
        for row, slot in enumerate(self.rows):
            if slot is not None:
                slot.write(layer_idx, key_states[row], value_states[row])
        return key_states, value_states

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """0: positions are always given."""
        return 0

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of (rows, heads, tokens, head width) queries over their own slots → (rows, tokens, heads, head width)."""
        unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _HARMLESS)
        if attention_mask is not None or unknown:
            raise DriftError(
                f"attention asks for {', '.join(unknown) or 'a mask'}, which slots do not apply", mend="Use --engine reference."
            )
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        out = torch.zeros_like(query)
        for row, slot in enumerate(self.rows):
            if slot is not None:
                out[row] = _attend_row(query[row : row + 1], slot, layer, scaling, sliding_window)[0]
        return out.transpose(1, 2), None


def _attend_row(query: Tensor, slot: Slot, layer: int, scaling: float | None, window: int | None) -> Tensor:
    """Queries (1, heads, new, head width) of the slot's newest tokens over all that they may see."""
    new = query.shape[2]
    end = slot.length + new
    first = 0 if window is None else max(0, slot.length + 1 - window)
    keys, values = slot.keys[layer][None, :, first:end], slot.values[layer][None, :, first:end]
    mask = None
    if new > 1:
        at = torch.arange(slot.length, end, device=query.device)[:, None]
        seen = torch.arange(first, end, device=query.device)[None, :]
        mask = seen <= at if window is None else (seen <= at) & (seen > at - window)
    grouped = query.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=grouped)


def forward(model: LoadedModel, cache: SlotCache, ids: Tensor, positions: Tensor, **how: Any) -> Any:
    """The network over (rows, tokens) ids at their positions, reading and writing the cache's rows."""
    kinds = getattr(model.card.config.get_text_config(), "layer_types", None)
    # Networks with several kinds of layers take a mask for each; ours are all None, since `attend` masks by position.
    mask = dict.fromkeys(kinds) if kinds else None
    with repeatable():
        return model.network(input_ids=ids, position_ids=positions, past_key_values=cache, attention_mask=mask, use_cache=True, **how)


def step(model: LoadedModel, cache: SlotCache, slot: Slot, ids: Tensor, **how: Any) -> Any:
    """Put (1, tokens) ids behind what a slot holds; the network's output over them."""
    cache.rows = (slot,)
    positions = torch.arange(slot.length, slot.length + ids.shape[1], device=ids.device)[None]
    out = forward(model, cache, ids, positions, **how)
    slot.length += ids.shape[1]
    return out


def refusal(model: LoadedModel) -> str | None:
    """Why slots cannot run a model exactly, in words; None where they can."""
    network, config = model.network, model.card.config.get_text_config()
    if getattr(network, "_is_stateful", False):
        return "it keeps a recurrent state"
    if not getattr(network, "_supports_attention_backend", False):
        return "its attention is not open to other implementations"
    if getattr(config, "attn_logit_softcapping", None):
        return "it soft-caps its attention"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of kind {', '.join(sorted(kinds))}"
    if any(name.endswith("sinks") for name, _ in network.named_parameters()):
        return "it has attention sinks"
    return None


def install(model: LoadedModel) -> SlotCache:
    """A cache whose attention the network uses from now on. `release` undoes it."""
    cache = SlotCache()
    AttentionInterface.register(ATTENTION, cache.attend)
    model.network.set_attn_implementation(ATTENTION)
    return cache


def release(model: LoadedModel, before: str) -> None:
    """Give the network back the attention it had."""
    model.network.set_attn_implementation(before)
