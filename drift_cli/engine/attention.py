"""How slots get into a network, through transformers' public interfaces alone: a `Cache` that keeps nothing and an attention function of ours.

Any architecture whose attention goes through `AttentionInterface` works unchanged: it hands its queries, and the newest keys and values, to our function,
which stores them and reads back what the row has. Masks are never made: every query sees what its position and its layer's window allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from drift_cli.engine.kernels import repeatable
from drift_cli.engine.layout import Layout
from drift_cli.errors import DriftError
from drift_cli.models import LoadedModel, text_config

_HARMLESS = frozenset(
    {
        "dropout",
        "is_causal",
        "position_ids",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "logits_to_keep",
    }
)
"""Arguments of an attention call that change nothing here (dropout is 0 in evaluation)."""


class NotApplied(DriftError):
    """A network asks its attention for something that slots do not apply."""


class PassingCache(Cache):  # type: ignore[misc]
    """Hands keys and values on to the attention function, which stores them."""

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(rows, kv heads, tokens, width) keys and values, as they came."""
        return key_states, value_states

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """0: positions are always given."""
        return 0


def unknown_arguments(given: dict[str, Any]) -> list[str]:
    """Names of an attention call's arguments that ask for something which slots do not apply."""
    unknown = []
    # A plain loop, since this is compiled too, with releases of torch that do not take a comprehension over a dict.
    for name, value in given.items():
        if name not in _HARMLESS and value is not None:
            unknown.append(name)
    return unknown


def refuse_unknown(attention_mask: object, given: dict[str, Any]) -> None:
    """Refuse what slots do not apply: a mask, or an argument whose meaning is not known here."""
    unknown = [] if attention_mask is None else ["a mask"]
    unknown.extend(unknown_arguments(given))
    if unknown:
        raise NotApplied(f"its attention asks for {', '.join(unknown)}, which slots do not apply", mend="Use --engine reference.")


@contextmanager
def installed(model: LoadedModel, name: str, attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """The network uses `attend` within, and has its own attention again afterwards."""
    before = model.network.config._attn_implementation
    AttentionInterface.register(name, attend)
    model.network.set_attn_implementation(name)
    try:
        yield
    finally:
        model.network.set_attn_implementation(before)


def forward(model: LoadedModel, ids: Tensor, positions: Tensor, **how: Any) -> Any:
    """The network's output over (rows, tokens) ids at their positions."""
    kinds = getattr(text_config(model.card.config), "layer_types", None)
    # Networks with several kinds of layers take a mask for each; ours are all None.
    mask = dict.fromkeys(kinds) if kinds else None
    how[cache_argument(model.network.__class__)] = PassingCache()
    with repeatable():
        return model.network(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=True, **how)


def last_logits(model: LoadedModel, tokens: int) -> dict[str, Any]:
    """Asks a network for the logits of the last of `tokens` tokens alone; nothing where it cannot be asked.

    Where layers share keys, a network that is given a number leaves out the other tokens in those layers; given their places, it does not.
    """
    if not _takes(model.network.__class__, "logits_to_keep"):
        return {}
    shared = getattr(text_config(model.card.config), "num_kv_shared_layers", 0)
    return {"logits_to_keep": torch.tensor([tokens - 1], device=model.device) if shared else 1}


def logits_at(model: LoadedModel, place: Tensor) -> dict[str, Any]:
    """The same for the token at a place, a () tensor that stays on the device."""
    return {"logits_to_keep": place[None]} if _takes(model.network.__class__, "logits_to_keep") else {}


def cache_argument(kind: Any) -> str:
    """What a network's class calls its cache: `cache` since transformers 5.24."""
    return "cache" if _takes(kind, "cache") else "past_key_values"


@cache
def _takes(kind: Any, name: str) -> bool:
    """Whether a network's class takes an argument."""
    return name in signature(kind.forward).parameters


@dataclass(frozen=True)
class Watched:
    """What is learnt of a network by watching it on a single token."""

    layout: Layout
    dtype: torch.dtype
    """Of keys and values."""
    logits: Tensor
    """(1, vocabulary)."""


def watched(model: LoadedModel) -> Watched:
    """Run one token, with an attention that notes what it is given: a single token sees itself, so that its value is what it is answered."""
    seen: dict[int, tuple[int, int, tuple[int, int]]] = {}
    dtypes: set[torch.dtype] = set()

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        refuse_unknown(attention_mask, kwargs)
        seen[int(module.layer_idx)] = sliding_window or 0, key.shape[1], (key.shape[-1], value.shape[-1])  # type: ignore[arg-type]
        dtypes.add(key.dtype)
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2), None

    with installed(model, "drift_watched", attend):
        one = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        # Hidden states are asked for so that transformers puts its hooks in place now rather than while blocks are being compiled.
        logits = forward(model, one, one, output_hidden_states=True).logits[:, -1]
    windows, heads, widths = zip(*(seen[layer] for layer in sorted(seen)), strict=True)
    return Watched(Layout(windows, heads, widths), dtypes.pop(), logits)


def layout_of(model: LoadedModel) -> Layout:
    """What the network keeps of a token."""
    return watched(model).layout
