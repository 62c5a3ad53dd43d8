"""How transformers' `generate` may be used with a network, so that its tokens are drawn from what a plain forward pass gives.

That is what a reply's tokens are defined by: the logits of one pass, alone, over the prompt and the reply so far. `generate` takes two shortcuts. It pads
rows of unequal lengths on the left, which some networks mistake for text; and it keeps keys, values and states in a cache, through which some networks give
other logits. Each shortcut is tried on a few tokens, and left where the logits are not the same. What shows only in long conversations is known by rule:
layers of other kinds than full and sliding attention, positions counted by the cache, and rotary embeddings that change with the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from drift_cli.engine.contract import is_out_of_memory
from drift_cli.engine.kernels import repeatable
from drift_cli.engine.rotary import settles, threshold
from drift_cli.engine.structure import ATTENTION_KINDS, asks_length
from drift_cli.errors import DriftError
from drift_cli.models import LoadedModel, layer_configs, text_config

_TOKENS, _MORE, _NEW = 24, 13, 6
"""Tokens of the shorter prompt on which the shortcuts are tried, how many more the longer one has, and how many are generated behind them."""
_WIDEST = 4096
"""The widest window that the prompts are made longer than."""
_TOLERANCE = {"float32": 2e-4, "bfloat16": 0.5, "float16": 0.5}
"""Root mean square difference of logits allowed, as a share of their standard deviation: rounding is below, and so is what hides in it."""
_RAISED = (TypeError, ValueError, AttributeError, LookupError, AssertionError, RuntimeError, NotImplementedError)
"""What a network may raise whose `generate` does not work this way."""


@dataclass(frozen=True)
class Decoding:
    """Which shortcuts are right for a network."""

    alone: str | None = None
    """Why rows are generated one at a time, in words; None where they may be padded."""
    uncached: str | None = None
    """Why every token is computed from the whole conversation, in words; None where the cache is used."""
    threshold: int | None = None
    """Tokens of the longest conversation that has the rotary embedding of short ones; what follows is generated with a new cache."""


_known: WeakKeyDictionary[PreTrainedModel, Decoding] = WeakKeyDictionary()


def decoding(model: LoadedModel) -> Decoding:
    """How to generate with a network: found out once.

    Raises:
        DriftError: its `generate` gives other logits than a plain forward pass in every way, or the pass depends on the passes before it.
    """
    if model.network not in _known:
        _known[model.network] = _found(model)
    return _known[model.network]


def _found(model: LoadedModel) -> Decoding:
    limit = threshold(model)
    if limit is not None and not settles(model):
        raise DriftError(
            f"{model.card.name} changes its rotary embedding with every token beyond {limit}, and keeps what longer conversations left of it",
            mend=f"Give a model whose context ends there, or set max_position_embeddings to {limit} in its config.json.",
        )
    prompts = _prompts(model)
    uncached = _cache_fault(model, prompts[0])
    alone = _padding_rule(model, limit)
    if alone is None and (fault := _fault(model, prompts, cached=uncached is None)) is not None:
        alone = f"with padding, `generate` {fault}"
    return Decoding(alone, uncached, limit)


def _padding_rule(model: LoadedModel, limit: int | None) -> str | None:
    """Why padding is not tried at all."""
    parts = (model.network, model.network.get_decoder())
    if any(getattr(part, "_is_stateful", False) for part in parts):
        # Padding on the left would run through a recurrent state as if it were text.
        return "this model keeps a recurrent state"
    kinds = set(getattr(text_config(model.card.config), "layer_types", None) or ()) - ATTENTION_KINDS
    if kinds:
        return f"this model has layers of kind {', '.join(sorted(kinds))}"
    if limit is not None:
        return f"this model's rotary embedding depends on the longest conversation of a batch beyond {limit} tokens"
    return "this model's layers count positions by what the cache holds" if asks_length(model) else None


def _cache_fault(model: LoadedModel, prompt: list[int]) -> str | None:
    """Why the cache is not used. Raises `DriftError` where tokens are not right without it either."""
    said = _fault(model, [prompt], cached=True)
    if said is None:
        return None
    without = _fault(model, [prompt], cached=False)
    if without is not None:
        raise DriftError(f"{model.card.name} cannot be generated with: `generate` {without}", mend="Give another model.")
    return f"with a cache, `generate` {said}"


def _fault(model: LoadedModel, prompts: Sequence[list[int]], *, cached: bool) -> str | None:
    """How `generate` with some prompts, padded to one length, differs from plain forward passes over each conversation; None where it does not."""
    try:
        replies, logits = _generated(model, prompts, cached=cached)
    except _RAISED as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return f"fails ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
    apart = max(
        _apart(made, _plain(model, [*prompt, *reply[:-1]])[len(prompt) - 1 :])
        for prompt, reply, made in zip(prompts, replies, logits, strict=True)
    )
    return (
        f"gives other logits than a plain forward pass, by {apart:.2g} of their standard deviation"
        if apart > _TOLERANCE[model.dtype]
        else None
    )


def _prompts(model: LoadedModel) -> list[list[int]]:
    """Two conversations of ordinary tokens, both longer than the network's window, as caches may keep no more than that."""
    windows = {int(getattr(layer, "sliding_window", None) or 0) for layer in layer_configs(model.card.config)}
    short = _TOKENS + max((window for window in windows if window <= min(_WIDEST, model.card.context // 2)), default=0)
    vocabulary = int(text_config(model.card.config).vocab_size)
    draw = torch.Generator().manual_seed(0)
    special = {*model.card.end_ids, *model.card.tokenizer.all_special_ids}
    usual = torch.tensor([token for token in range(min(vocabulary, len(model.card.tokenizer))) if token not in special] or [0])
    return [usual[torch.randint(0, len(usual), (length,), generator=draw)].tolist() for length in (short, short + _MORE)]


def _generated(model: LoadedModel, prompts: Sequence[list[int]], *, cached: bool) -> tuple[list[list[int]], Tensor]:
    """New tokens of each prompt, and the logits that they are the most likely of: (rows, new tokens, vocabulary)."""
    ids, mask = left_padded(model, prompts)
    how = GenerationConfig(do_sample=False, max_new_tokens=_NEW, pad_token_id=min(model.card.end_ids), use_cache=cached)
    how.update(output_logits=True, return_dict_in_generate=True)
    made = generate(model, ids, attention_mask=mask, generation_config=how)
    return made.sequences[:, ids.shape[1] :].tolist(), torch.stack(made.logits, 1)


def generate(model: LoadedModel, ids: Tensor, **how: Any) -> Any:
    """transformers' own `generate`, and not what some classes have in its place: theirs may leave out the processor that draws the tokens."""
    network = model.network
    run = network.generate if type(network).generate is GenerationMixin.generate else partial(GenerationMixin.generate, network)
    with repeatable():
        return run(ids, **how)


def left_padded(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(rows, longest prompt) ids and attention mask."""
    width = max(map(len, prompts))
    pad = min(model.card.end_ids)
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)


def _plain(model: LoadedModel, ids: Sequence[int]) -> Tensor:
    """(tokens, vocabulary) logits of one conversation."""
    with repeatable():
        logits: Tensor = model.network(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits
    return logits[0]


def _apart(logits: Tensor, plain: Tensor) -> float:
    """The largest root mean square difference of (tokens, vocabulary) logits, as a share of their standard deviation; 0 where they are not finite, which is
    reported with the turn in which it shows.
    """
    plain = plain.to(logits.device).float()
    apart = ((logits.float() - plain).pow(2).mean(-1).sqrt() / plain.std(-1)).max()
    return float(apart) if bool(torch.isfinite(apart)) else 0.0
