"""One uniform per token, and the draw it makes.

The k-th token of turn t of sample s is drawn by inverse CDF from `u = philox(key(seed, transcript), counter(s, t, k))`. The generator is counter-based
(Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), so u never depends on the batch, the order, the
device or what was drawn before. The condition is not in the key unless asked for: sample s of two conditions then shares its noise.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from drift_cli.spec import Cell, Sampling

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def noise_key(seed: int, cell: Cell, *, independent: bool) -> int:
    """Return the 64-bit generator key of a cell: from the seed and the transcript's name, and with `independent` from the whole cell."""
    parts = [str(seed), cell.transcript]
    if independent:
        parts += [cell.condition, repr(cell.temperature)]
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "little")


def _halves(product: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two 32-bit numbers; int64 wraps around, which leaves all 64 bits in place."""
    return (product >> 32) & _MASK, product & _MASK


def philox(key: Tensor, counter: Tensor) -> Tensor:
    """Philox4x32-10.

    Args:
        key: (n, 2) int64, each holding 32 bits.
        counter: (n, 4) int64, each holding 32 bits.

    Returns:
        (n, 4) int64, each holding 32 random bits.
    """
    k0, k1 = key.unbind(-1)
    c0, c1, c2, c3 = counter.unbind(-1)
    for _ in range(_ROUNDS):
        high0, low0 = _halves(c0 * _MULTIPLIERS[0])
        high1, low1 = _halves(c2 * _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), -1)


def uniforms(keys: Tensor, samples: Tensor, turns: Tensor, tokens: Tensor) -> Tensor:
    """The uniform of each row's next token.

    Args:
        keys: (n, 2) int64, the two 32-bit halves of each row's `noise_key`, low half first.
        samples, turns, tokens: (n,) int64: sample index, turn index (1 first), token index within the reply (0 first).

    Returns:
        (n,) float64 in [0, 1), with all 53 bits of the mantissa random.
    """
    words = philox(keys, torch.stack((samples, turns, tokens, torch.zeros_like(tokens)), -1))
    return ((words[:, 0] >> 5) * 67108864 + (words[:, 1] >> 6)).double() * 2.0**-53


def split_key(key: int) -> tuple[int, int]:
    """Return the low and the high 32 bits of a 64-bit key."""
    return key & _MASK, key >> 32


def filtered(logits: Tensor, temperature: Tensor, filters: Sampling) -> Tensor:
    """Unnormalized probabilities after temperature, top-k, top-p and min-p, in this order (the order of transformers' `generate`). Of tokens that are
    equally likely, top-p keeps all or none, where transformers lets the order of a sort decide.

    Args:
        logits: (n, vocabulary), any float dtype.
        temperature: (n,) float, above 0.

    Returns:
        (n, vocabulary) float32; 0 for what a filter removed. At least one token of each row is kept.
    """
    scaled = logits.float() / temperature[:, None].float()
    if 0 < filters.top_k < scaled.shape[-1]:
        threshold = scaled.topk(filters.top_k, -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < threshold, -torch.inf)
    probabilities = torch.softmax(scaled, -1)
    if filters.top_p < 1.0:
        ordered = _descending(probabilities)
        # Tokens as likely as the last one that is kept are kept too: which of them come first must not matter. None is kept of what is not a number.
        kept = (ordered.cumsum(-1) - ordered < filters.top_p).sum(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < ordered.gather(-1, (kept - 1).clamp_min(0)), 0.0)
    if filters.min_p > 0.0:
        limit = probabilities.amax(-1, keepdim=True) * filters.min_p
        probabilities = probabilities.masked_fill(probabilities < limit, 0.0)
    return probabilities


def _descending(values: Tensor) -> Tensor:
    """Each row's values, the largest first. On a CPU numpy sorts, which takes a sixth of the time: no order of indices is asked for."""
    if values.device.type != "cpu":
        return values.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)


def draw(logits: Tensor, temperature: Tensor, uniform: Tensor, filters: Sampling) -> Tensor:
    """One token a row by inverse CDF over the vocabulary in its own order; the most likely token where the temperature is 0.

    Vocabulary order, not order of probability: two nearly equal probabilities that change places through rounding then do not change the draw.

    Args:
        logits: (n, vocabulary). temperature: (n,). uniform: (n,) float64 in [0, 1).

    Returns:
        (n,) int64 token ids.
    """
    if logits.device.type == "cuda" and logits.stride(-1) == 1:
        from drift_cli.engine.kernels.triton import draw_kernel

        return draw_kernel.draw(logits, temperature, uniform, filters)
    greedy = temperature <= 0.0
    probabilities = filtered(logits, torch.where(greedy, 1.0, temperature), filters)
    cumulative = probabilities.double().cumsum(-1)
    # u < 1, but u * total may round up to total: the last token with any probability is the limit, never one that was filtered away.
    target = uniform[:, None].double() * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()).squeeze(-1)
    # Of logits that are not numbers no token is drawn, but what is given must be one: the next step looks its embedding up before the host knows.
    drawn = torch.minimum(drawn, last).clamp_max(logits.shape[-1] - 1)
    return torch.where(greedy, logits.argmax(-1), drawn)
