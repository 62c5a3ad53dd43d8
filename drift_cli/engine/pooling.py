"""Pools residuals over a reply's tokens.

Layer l is transformers' `hidden_states[l]`: 0 is the embeddings, l is the output of block l - 1 (the last one after the final norm, as transformers
returns it). The mean runs over the reply's tokens without the end-of-turn token, which some replies (those cut at the token limit) do not have, or over those
of them that a `Pool` keeps. A reply with reasoning has a mean for each of its parts: the answer, the reasoning, and all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift_cli.pool import MEAN, Pool, part_ranges
from drift_cli.spec import Part, Segment

if TYPE_CHECKING:
    from torch import Tensor

Means = dict[Part, NDArray[np.float32]]
"""Residual means of one reply, each (layers, width) float32: of a reply without segments that of `ANSWER` alone, of another those parts that have tokens."""


def pool_parts(
    hidden_states: Sequence[Tensor], row: int, span: tuple[int, int], segments: Sequence[Segment], layers: Sequence[int], pool: Pool = MEAN
) -> Means:
    """Mean residuals of the parts of one reply.

    Args:
        hidden_states: one (batch, tokens, width) tensor per layer, 0 first, as transformers returns them.
        row: the row of the batch.
        span: first and past-the-last token position of the reply without its end-of-turn token.
        segments: of the reply, counted from its first token; () where it is all answer.
        layers: the layers wanted, in the order wanted.
        pool: which tokens of a part stand for it.

    Returns:
        For each part that has tokens, (len(layers), width) float32, averaged in float32.
    """
    first, last = span
    found = part_ranges(last - first, segments, pool)
    return {part: mean_over(hidden_states, row, [(first + a, first + b) for a, b in ranges], layers) for part, ranges in found.items()}


def mean_over(hidden_states: Sequence[Tensor], row: int, ranges: Sequence[tuple[int, int]], layers: Sequence[int]) -> NDArray[np.float32]:
    """(len(layers), width) float32: the mean over ranges of token positions, at least one token in all, taken together. Other arguments as `pool_parts`."""
    import torch

    means = [torch.cat([hidden_states[layer][row, start:stop].float() for start, stop in ranges]).mean(0) for layer in layers]
    return np.asarray(torch.stack(means).cpu().numpy(), dtype=np.float32)
