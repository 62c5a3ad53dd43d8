"""Pools residuals over a reply's tokens, and projects them on an axis.

Layer l is transformers' `hidden_states[l]`: 0 is the embeddings, l is the output of block l - 1 (the last one after the final norm, as transformers
returns it). The mean runs over the reply's tokens without the end-of-turn token, which some replies (those cut at the token limit) do not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


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


def project(residual: NDArray[Any], axis: NDArray[Any]) -> float:
    """Dot product of a residual mean (width,) with a unit axis (width,), accumulated in float64."""
    return float(np.dot(residual.astype(np.float64), axis.astype(np.float64)))
