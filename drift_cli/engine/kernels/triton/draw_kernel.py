"""`sampling.draw` as one Triton kernel: a program a row, no sort, no word from the host.

Top-k and top-p keep all tokens whose logit is at least a cut-off. The cut-offs are found by bisection over the bits of a logit, in an order in which a larger
number is a larger logit: as many passes over the row as a logit has bits, which the level-2 cache serves. Sums over a row are made block by block in the
vocabulary's order, in float64, so a draw depends on its own row alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drift_cli.spec import Sampling

_BLOCK = 8192


@triton.jit
def _ordered(x, BITS: tl.constexpr):
    """A logit as a whole number that orders as the logit does (-0 just below +0)."""
    if BITS == 16:
        short = x.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        code = tl.where(short >= 0x8000, 0xFFFF - short, short + 0x8000).to(tl.int64)
    else:
        long = x.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        code = tl.where(long >= 0x80000000, 0xFFFFFFFF - long, long + 0x80000000)
    return code


@triton.jit
def _weight(x, best, heat):
    """Probability of a token, up to a factor: e to the difference from the row's largest logit, over the temperature."""
    return tl.exp((x.to(tl.float32) - best) / heat)


@triton.jit
def _draw(
    logits, heats, uniforms, out, stride, size, top_k, top_p, min_p,
    BITS: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, MIN_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    mine = logits + row * stride
    asked = tl.load(heats + row)
    heat = tl.where(asked > 0.0, asked, 1.0)
    best = float("-inf")
    where = size
    for start in range(0, size, BLOCK):
        x = tl.load(mine + start + at, mask=start + at < size, other=float("-inf")).to(tl.float32)
        top = tl.max(x, 0)
        first = tl.min(tl.where(x == top, start + at, size), 0)
        where = tl.where(top > best, first, where)
        best = tl.maximum(best, top)
    cut = tl.full([], 0, tl.int64)
    if TOP_K:
        # The largest cut-off at or above which at least k tokens lie.
        for bit in range(0, BITS):
            tried = cut | (tl.full([], 1, tl.int64) << (BITS - 1 - bit))
            count = tl.full([], 0, tl.int32)
            for start in range(0, size, BLOCK):
                x = tl.load(mine + start + at, mask=start + at < size, other=float("-inf"))
                count += tl.sum(((_ordered(x, BITS) >= tried) & (start + at < size)).to(tl.int32), 0)
            cut = tl.where(count >= top_k, tried, cut)
    if TOP_P:
        floor = cut
        total = tl.full([], 0.0, tl.float64)
        for start in range(0, size, BLOCK):
            x = tl.load(mine + start + at, mask=start + at < size, other=float("-inf"))
            total += tl.sum(tl.where(_ordered(x, BITS) >= floor, _weight(x, best, heat), 0.0), 0).to(tl.float64)
        # The smallest cut-off above which less than top_p of the mass lies: one bit after the other of the largest that still has that much above it.
        low = tl.full([], 0, tl.int64)
        for bit in range(0, BITS):
            tried = low | (tl.full([], 1, tl.int64) << (BITS - 1 - bit))
            mass = tl.full([], 0.0, tl.float64)
            for start in range(0, size, BLOCK):
                x = tl.load(mine + start + at, mask=start + at < size, other=float("-inf"))
                code = _ordered(x, BITS)
                mass += tl.sum(tl.where((code >= tried) & (code >= floor), _weight(x, best, heat), 0.0), 0).to(tl.float64)
            low = tl.where(mass >= top_p * total, tried, low)
        cut = tl.maximum(floor, low)
    if MIN_P:
        limit = best + heat * tl.log(min_p)
    else:
        limit = float("-inf")
    whole = tl.full([], 0.0, tl.float64)
    for start in range(0, size, BLOCK):
        x = tl.load(mine + start + at, mask=start + at < size, other=float("-inf"))
        kept = (_ordered(x, BITS) >= cut) & (x.to(tl.float32) >= limit) & (start + at < size)
        whole += tl.sum(tl.where(kept, _weight(x, best, heat), 0.0).to(tl.float64), 0)
    target = tl.load(uniforms + row) * whole
    before = tl.full([], 0.0, tl.float64)
    found = size
    last = tl.full([], 0, tl.int32)
    for start in range(0, size, BLOCK):
        x = tl.load(mine + start + at, mask=start + at < size, other=float("-inf"))
        kept = (_ordered(x, BITS) >= cut) & (x.to(tl.float32) >= limit) & (start + at < size)
        weight = tl.where(kept, _weight(x, best, heat), 0.0).to(tl.float64)
        reached = before + tl.cumsum(weight, 0)
        found = tl.minimum(found, tl.min(tl.where((reached > target) & (weight > 0.0), start + at, size), 0))
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, start + at, 0), 0))
        before += tl.sum(weight, 0)
    # u < 1, but u * whole may round up to it: the last token with any probability is the limit.
    drawn = tl.where(found < size, found, last)
    # Of logits that are not numbers no token is drawn, but what is given must be one: the next step looks its embedding up before the host knows.
    tl.store(out + row, tl.where(asked > 0.0, drawn, tl.minimum(where, size - 1)).to(tl.int64))


def draw(logits: Tensor, temperature: Tensor, uniform: Tensor, filters: Sampling) -> Tensor:
    """See `sampling.draw`: (n, vocabulary), (n,), (n,) float64 → (n,) int64."""
    rows, size = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _draw[(rows,)](
        logits, temperature, uniform, out, logits.stride(0), size, filters.top_k, filters.top_p, filters.min_p,
        BITS=8 * logits.element_size(), TOP_K=0 < filters.top_k < size, TOP_P=filters.top_p < 1.0, MIN_P=filters.min_p > 0.0,
        BLOCK=_BLOCK, num_warps=16,
    )  # fmt: skip
    return out
