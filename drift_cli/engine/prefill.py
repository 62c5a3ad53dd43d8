"""Residual means of the replies of a finished conversation, each token encoded once where the model allows it.

In: passages, which are token ids and the places of replies in them. Out: means. No files, no terminal, no text.

A token's residual depends on the tokens before it alone, so one forward pass gives the means of all replies that lie in one rendering of a conversation. A
long one runs in chunks on transformers' own KV cache, so that the hidden states of all layers never have to be held at once, and a passage that begins like
the one before it (the template rewrote the end of the history) goes on from where the two part. Models whose cache cannot be trusted with that, or whose
rotary embeddings depend on how long the conversation has become, are given whole forward passes: slower, and what `reference.measure` would compute.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from drift_cli.engine.contract import is_out_of_memory, no_memory
from drift_cli.engine.kernels import repeatable
from drift_cli.engine.passages import Passage
from drift_cli.models import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache

_BYTES = 1 << 30
"""Of the hidden states of one forward pass, all layers together."""
_LEAST, _MOST = 64, {"cuda": 8192}
"""Tokens of a chunk. On a GPU larger ones are hardly faster."""
_MOST_ELSEWHERE = 1024
"""On a CPU already these take seconds, and progress is shown between chunks."""
_TRIAL, _REWOUND = 192, 64
"""Tokens on which a cache is tried, and how many of them are taken back and encoded again."""
_AGREES = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""The mean difference from a plain forward allowed in that trial, as a share of a token's norm. Rounding is well below (0.014 for SmolLM2-135M in bfloat16),
a lost state above."""

_OTHERWISE = (TypeError, AttributeError, LookupError, ValueError, RuntimeError)
"""What a network that was not written for such a cache may raise: it is given whole forward passes then."""


@dataclass
class Prefill:
    """Encodes passages one after the other. `step` is told how many tokens have been encoded so far."""

    model: LoadedModel
    layers: Sequence[int]
    step: Callable[[int], object] = lambda done: None
    whole: bool = False
    """Give every passage a forward pass of its own, whatever its length: for conversations beyond `rotary.length_threshold`."""
    chunk: int | None = None
    """Tokens of a forward pass; None: as many as its hidden states have room for."""
    done: int = 0
    """Tokens encoded."""

    def __post_init__(self) -> None:
        card = self.model.card
        size = (card.layers + 1) * card.width * getattr(torch, self.model.dtype).itemsize
        most = _MOST.get(self.model.device.type, _MOST_ELSEWHERE)
        self.chunk = self.chunk or min(max(_BYTES // size, _LEAST), most)
        known = inspect.signature(self.model.network.forward).parameters
        self._few: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._named = "cache" if "cache" in known else "past_key_values"  # another name since transformers 5.24
        self._cached: bool | None = None
        self._sample: Sequence[int] = ()

    def means(self, found: Sequence[Passage]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Turn, and the mean residuals (layers, width) float32 of its reply, for every reply. Raises `DriftError` where not even a small chunk fits."""
        cache: DynamicCache | None = None
        held: tuple[int, ...] = ()
        self._sample = max((passage.ids for passage in found), key=len, default=())[:_TRIAL]
        for place, passage in enumerate(found):
            again = place + 1 < len(found) and found[place + 1].kept > 0
            kept = passage.kept if cache is not None else 0
            if cache is not None and kept:
                _rewind(cache, len(held), kept)
            else:
                cache = _new_cache() if (again or len(passage.ids) > self._size) and self._trusted() else None
            try:
                gathered = self._gather(passage, kept, cache)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                gathered, cache = self._smaller(passage)
            held = passage.ids
            yield from gathered

    @property
    def _size(self) -> int:
        assert self.chunk is not None
        return self.chunk

    def _gather(self, passage: Passage, kept: int, cache: DynamicCache | None) -> list[tuple[int, NDArray[np.float32]]]:
        """Encode a passage behind its first `kept` tokens, which the cache has, and average its replies."""
        ids = passage.ids
        pieces: dict[int, list[Tensor]] = {reply.turn: [] for reply in passage.replies}
        size = len(ids) if cache is None else self._size
        with repeatable():
            if self.whole:
                # Dynamic scaling keeps the frequencies of the longest conversation so far until a short one comes.
                self._forward(ids[:1], None)
            for start in range(kept, len(ids), size):
                chunk = ids[start : start + size]
                states = self._forward(chunk, cache)
                for reply in passage.replies:
                    first = len(reply.prompt) - start
                    for a, b in reply.parts:
                        piece = states[:, max(first + a, 0) : max(first + b, 0)]
                        if piece.shape[1]:
                            pieces[reply.turn].append(piece.float())
                self.done += len(chunk)
                self.step(self.done)
            return [(turn, torch.cat(found, 1).mean(1).cpu().numpy()) for turn, found in pieces.items()]

    def _forward(self, ids: Sequence[int], cache: DynamicCache | None) -> Tensor:
        """Hidden states (layers, tokens, width) of tokens behind those that the cache holds, which are put into it."""
        tokens = torch.tensor([list(ids)], device=self.model.device)
        how = {"use_cache": False} if cache is None else {"use_cache": True, self._named: cache}
        states = self.model.network(input_ids=tokens, output_hidden_states=True, **how, **self._few).hidden_states
        return torch.stack([states[layer][0] for layer in self.layers])

    def _smaller(self, passage: Passage) -> tuple[list[tuple[int, NDArray[np.float32]]], DynamicCache]:
        """The same passage from its beginning after running out of memory: in chunks, each time half as large."""
        while (smaller := min(self._size, len(passage.ids)) // 2) >= _LEAST and self._trusted():
            self.chunk = smaller
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            cache = _new_cache()
            try:
                return self._gather(passage, 0, cache), cache
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        raise no_memory(f"one conversation of {len(passage.ids)} tokens")

    def _trusted(self) -> bool:
        """Whether this model gives the same residuals through its cache, in chunks, as in a plain forward; tried once, on a conversation's beginning."""
        if self._cached is None:
            self._cached = not self.whole and _appends(self.model) and self._agrees(self._sample)
        return self._cached

    def _agrees(self, ids: Sequence[int]) -> bool:
        middle, back = len(ids) // 2, min(_REWOUND, len(ids) // 3)
        if back == 0:
            return False
        with repeatable():
            plain = self._forward(ids, None).float()
            try:
                cache = _new_cache()
                pieces = [self._forward(ids[:middle], cache), self._forward(ids[middle:], cache)]
                _rewind(cache, len(ids), len(ids) - back)
                pieces = [torch.cat(pieces, 1)[:, :-back], self._forward(ids[-back:], cache)]
            except _OTHERWISE as error:
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                return False
            difference = (torch.cat(pieces, 1).float() - plain).norm(dim=-1) / plain.norm(dim=-1).clamp_min(1e-12)
        return bool(difference.mean() <= _AGREES[self.model.dtype])


def _new_cache() -> DynamicCache:
    """A cache that keeps every token, so that it can be taken back: windows are the mask's work."""
    from transformers import DynamicCache

    return DynamicCache()


def _rewind(cache: DynamicCache, held: int, kept: int) -> None:
    """Take back all but the first `kept` of `held` tokens."""
    if kept < held:
        cache.crop(kept - held)


def _appends(model: LoadedModel) -> bool:
    """Whether what the network keeps of a conversation is keys and values of full or sliding attention, and nothing recurrent."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    text = model.card.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(text, "attention_chunk_size", None) or getattr(model.network, "_is_stateful", False):
        return False
    try:
        layers = DynamicCache(config=model.network.config).layers
    except _OTHERWISE:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
