"""Pools residuals over a reply's tokens.

Layer l is transformers' `hidden_states[l]`: 0 is the embeddings, l is the output of block l - 1 (the last one after the final norm, as transformers
returns it). The mean runs over the reply's tokens without the end-of-turn token, which some replies (those cut at the token limit) do not have. A reply
with reasoning has a mean for each of its parts: the answer, the reasoning, and all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift_cli.spec import Part, Segment, spans

if TYPE_CHECKING:
    from torch import Tensor

Means = dict[Part, NDArray[np.float32]]
"""Residual means of one reply, each (layers, width) float32: of a reply without segments that of `ANSWER` alone, of another those parts that have tokens."""


def pool(hidden_states: Sequence[Tensor], row: int, span: tuple[int, int], layers: Sequence[int]) -> NDArray[np.float32]:
    """Mean residuals of one reply.

    Args:
        hidden_states: one (batch, tokens, width) tensor per layer, 0 first, as transformers returns them.
        row: the row of the batch.
        span: first and past-the-last token position of the reply; at least one token.
        layers: the layers wanted, in the order wanted.

    Returns:
        (len(layers), width) float32, averaged in float32.
    """
    import torch

    first, last = span
    means = torch.stack([hidden_states[layer][row, first:last].float().mean(0) for layer in layers])
    return np.asarray(means.cpu().numpy(), dtype=np.float32)


def pool_parts(
    hidden_states: Sequence[Tensor], row: int, span: tuple[int, int], segments: Sequence[Segment], layers: Sequence[int]
) -> Means:
    """Mean residuals of the parts of one reply.

    Args:
        hidden_states: as `pool` takes them.
        row: the row of the batch.
        span: first and past-the-last token position of the reply without its end-of-turn token.
        segments: of the reply, counted from its first token; () where it is all answer.
        layers: as `pool` takes them.

    Returns:
        A mean for each part that has tokens.
    """
    first, last = span
    if not segments:
        return {Part.ANSWER: pool(hidden_states, row, span, layers)} if last > first else {}
    made = {Part.ALL: pool(hidden_states, row, span, layers)}
    for part in (Part.ANSWER, Part.REASONING):
        if found := spans(segments, part):
            made[part] = _pool_spans(hidden_states, row, [(first + start, first + stop) for start, stop in found], layers)
    return made


def _pool_spans(hidden_states: Sequence[Tensor], row: int, found: Sequence[tuple[int, int]], layers: Sequence[int]) -> NDArray[np.float32]:
    """`pool` over several spans taken together."""
    import torch

    means = [torch.cat([hidden_states[layer][row, start:stop].float() for start, stop in found]).mean(0) for layer in layers]
    return np.asarray(torch.stack(means).cpu().numpy(), dtype=np.float32)
