"""Attention over keys and values that lie in pages: Triton kernels for a decode step of many rows and for a chunk of one.

A row's token at position p lies in page `table[row, p // PAGE]` at offset `p % PAGE`. Every result depends on the row's own keys, length and position and on
nothing else: a decode step cuts a row's keys into splits of a fixed length at fixed positions and joins them in order, so that neither others, nor pages, nor
the number of rows changes a bit. (The online softmax over splits: Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context inference", 2023.)

Places say where a token goes: its position, or -1 for one that is neither stored nor attended from.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from drift_cli.engine.layout import PAGE

SPLIT = 1024
"""Keys of one split of a decode step."""
QUERIES = 64
"""Queries of one tile of a chunk."""
DECODE = {"num_warps": 4, "num_stages": 3}
CHUNK = {"num_warps": 4, "num_stages": 2}
"""How kernels are compiled; chosen by measurement, never tried out while running, so that the same kernels run every time."""


@triton.jit
def _write(
    key, value, pool, address, table, rows, places,
    key_item, key_head, value_item, value_head, page_stride, plane_stride, layer_stride, head_stride, group_stride, width,
    DIM: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0), tl.program_id(1)
    place = tl.load(places + item)
    if place >= 0:
        row = tl.load(rows + item)
        group, layer = tl.load(address), tl.load(address + 1)
        page = tl.load(table + group * group_stride + row * width + place // PAGE).to(tl.int64)
        at = tl.arange(0, BLOCK)
        base = pool + page * page_stride + layer * layer_stride + head * head_stride + (place % PAGE) * DIM
        tl.store(base + at, tl.load(key + item * key_item + head * key_head + at, mask=at < DIM), mask=at < DIM)
        tl.store(base + plane_stride + at, tl.load(value + item * value_item + head * value_head + at, mask=at < DIM), mask=at < DIM)


@triton.jit
def _decode_split(
    query, pool, address, table, places, part, top, total,
    query_row, query_head, page_stride, plane_stride, layer_stride, head_stride, group_stride, width, scale, splits,
    WINDOW: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
    PAGE: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    place = tl.load(places + row)
    first = tl.maximum(place - WINDOW + 1, 0) if WINDOW > 0 else 0
    low = tl.maximum((first // SPLIT + split) * SPLIT, first // KEYS * KEYS)
    high = tl.minimum((first // SPLIT + split + 1) * SPLIT, place + 1)
    if low < high:
        group, layer = tl.load(address), tl.load(address + 1)
        entries = table + group * group_stride + row * width
        base = pool + layer * layer_stride + head * head_stride
        mine, at, keys = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, KEYS)
        lanes = (mine[:, None] < GROUP) & (at[None, :] < DIM)
        q = tl.load(query + row * query_row + (head * GROUP + mine[:, None]) * query_head + at[None, :], mask=lanes, other=0.0)
        best = tl.full([QUERIES], float("-inf"), tl.float32)
        weight = tl.zeros([QUERIES], tl.float32)
        mixed = tl.zeros([QUERIES, BLOCK], tl.float32)
        for start in range(low, high, KEYS):
            page = tl.load(entries + start // PAGE).to(tl.int64)
            tile = base + page * page_stride + (start % PAGE + keys[:, None]) * DIM + at[None, :]
            seen = start + keys < high
            if WINDOW > 0:
                seen = seen & (start + keys >= first)
            k = tl.load(tile, mask=seen[:, None] & (at[None, :] < DIM), other=0.0)
            v = tl.load(tile + plane_stride, mask=seen[:, None] & (at[None, :] < DIM), other=0.0)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            score = tl.where(seen[None, :], score, float("-inf"))
            higher = tl.maximum(best, tl.max(score, 1))
            kept = tl.exp2(best - higher)
            p = tl.exp2(score - higher[:, None])
            weight = weight * kept + tl.sum(p, 1)
            mixed = mixed * kept[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
            best = higher
        spot = ((row * heads + head) * splits + split) * GROUP + mine
        tl.store(part + spot[:, None] * DIM + at[None, :], mixed, mask=lanes)
        tl.store(top + spot, best, mask=mine < GROUP)
        tl.store(total + spot, weight, mask=mine < GROUP)


@triton.jit
def _decode_join(
    part, top, total, places, out, splits,
    WINDOW: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    place = tl.load(places + row)
    at = tl.arange(0, BLOCK)
    first = tl.maximum(place - WINDOW + 1, 0) if WINDOW > 0 else 0
    used = tl.where(place < 0, 0, place // SPLIT - first // SPLIT + 1)
    best = float("-inf")
    weight = 0.0
    mixed = tl.zeros([BLOCK], tl.float32)
    for split in range(0, used):
        spot = ((row * (heads // GROUP) + head // GROUP) * splits + split) * GROUP + head % GROUP
        theirs = tl.load(top + spot)
        higher = tl.maximum(best, theirs)
        kept, added = tl.exp2(best - higher), tl.exp2(theirs - higher)
        weight = weight * kept + tl.load(total + spot) * added
        mixed = mixed * kept + tl.load(part + spot * DIM + at, mask=at < DIM, other=0.0) * added
        best = higher
    mixed = tl.where(used > 0, mixed / tl.where(used > 0, weight, 1.0), 0.0)
    tl.store(out + (row * heads + head) * DIM + at, mixed.to(out.dtype.element_ty), mask=at < DIM)


@triton.jit
def _chunk(
    query, pool, address, table, rows, bounds, out,
    query_token, query_head, page_stride, plane_stride, layer_stride, head_stride, group_stride, width, scale, tokens,
    WINDOW: tl.constexpr, GROUP: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
    PAGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    row, start, end = tl.load(rows), tl.load(bounds), tl.load(bounds + 1)
    group, layer = tl.load(address), tl.load(address + 1)
    entries = table + group * group_stride + row * width
    base = pool + layer * layer_stride + (head // GROUP) * head_stride
    mine, at, keys = tile * QUERIES + tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, KEYS)
    lanes = (mine[:, None] < tokens) & (at[None, :] < DIM)
    q = tl.load(query + mine[:, None] * query_token + head * query_head + at[None, :], mask=lanes, other=0.0)
    place = start + mine
    first = tl.maximum(start + tile * QUERIES - WINDOW + 1, 0) // KEYS * KEYS if WINDOW > 0 else 0
    last = tl.minimum(start + (tile + 1) * QUERIES, end)
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, BLOCK], tl.float32)
    for low in range(first, last, KEYS):
        page = tl.load(entries + low // PAGE).to(tl.int64)
        at_keys = base + page * page_stride + (low % PAGE + keys[:, None]) * DIM + at[None, :]
        there = (low + keys < last)[:, None] & (at[None, :] < DIM)
        k = tl.load(at_keys, mask=there, other=0.0)
        v = tl.load(at_keys + plane_stride, mask=there, other=0.0)
        seen = (low + keys[None, :] <= place[:, None]) & (low + keys[None, :] < last)
        if WINDOW > 0:
            seen = seen & (low + keys[None, :] > place[:, None] - WINDOW)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        kept = tl.exp2(best - safe)
        p = tl.exp2(score - safe[:, None])
        weight = weight * kept + tl.sum(p, 1)
        mixed = mixed * kept[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        best = higher
    mixed = mixed / tl.where(weight > 0, weight, 1.0)[:, None]
    tl.store(out + (mine[:, None] * heads + head) * DIM + at[None, :], mixed.to(out.dtype.element_ty), mask=lanes)


_LOG2E = 1.4426950408889634


def _how(pool: Tensor) -> dict[str, Any]:
    """What every kernel needs to know of a pool (pages, layers, 2, kv heads, PAGE, width): strides in elements, and the block that holds a head."""
    heads, page, dim = pool.shape[3:]
    return {
        "page_stride": pool.stride(0),
        "plane_stride": heads * page * dim,
        "layer_stride": 2 * heads * page * dim,
        "head_stride": page * dim,
        "DIM": dim,
        "BLOCK": max(16, triton.next_power_of_2(dim)),
        "PAGE": PAGE,
    }


def _keys(pool: Tensor) -> int:
    """Keys of one tile: two tiles of keys and values and their successors fit a multiprocessor's shared memory."""
    return 64 if pool.shape[-1] * pool.element_size() <= 256 else 32


def _precision(pool: Tensor) -> str:
    return "ieee" if pool.dtype == torch.float32 else "tf32"


def write(key: Tensor, value: Tensor, pool: Tensor, address: Tensor, table: Tensor, rows: Tensor, places: Tensor) -> None:
    """Put keys and values into their pages.

    Args:
        key, value: (items, kv heads, width), the last dimension dense.
        pool: (pages, layers, 2, kv heads, PAGE, width).
        address: (2,) int32: the layer's group, and its place within the group.
        table: (groups, rows, pages per row) int32. rows, places: (items,) int32.
    """
    how = _how(pool)
    assert key.stride(-1) == value.stride(-1) == 1
    _write[(key.shape[0], key.shape[1])](
        key, value, pool, address, table, rows, places, key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        group_stride=table.stride(0), width=table.shape[2], num_warps=1, **how,
    )  # fmt: skip


def decode(query: Tensor, pool: Tensor, address: Tensor, table: Tensor, places: Tensor, scale: float, window: int) -> Tensor:
    """One query a row over all that the row's token at `places` may see, itself included.

    Args:
        query: (rows, heads, width). window: keys that a query sees, itself included; 0 for all.

    Returns:
        (rows, heads, width); 0 where the place is -1.
    """
    rows, heads, dim = query.shape
    kv = pool.shape[3]
    group, how, reach = heads // kv, _how(pool), table.shape[2] * PAGE
    splits = triton.cdiv(reach, SPLIT) if window <= 0 else min(triton.cdiv(reach, SPLIT), (window - 2) // SPLIT + 2)
    part = torch.empty((rows, kv, splits, group, dim), dtype=torch.float32, device=query.device)
    top, total = (torch.empty((rows, kv, splits, group), dtype=torch.float32, device=query.device) for _ in range(2))
    _decode_split[(rows, kv, splits)](
        query, pool, address, table, places, part, top, total, query.stride(0), query.stride(1),
        group_stride=table.stride(0), width=table.shape[2], scale=scale * _LOG2E, splits=splits, WINDOW=window, GROUP=group,
        QUERIES=max(16, triton.next_power_of_2(group)), KEYS=_keys(pool), SPLIT=SPLIT, PRECISION=_precision(pool),
        **DECODE, **how,
    )  # fmt: skip
    out = torch.empty((rows, heads, dim), dtype=query.dtype, device=query.device)
    _decode_join[(rows, heads)](
        part, top, total, places, out, splits, WINDOW=window, GROUP=group, DIM=dim, BLOCK=how["BLOCK"], SPLIT=SPLIT, num_warps=1
    )
    return out


def chunk(query: Tensor, pool: Tensor, address: Tensor, table: Tensor, rows: Tensor, bounds: Tensor, scale: float, window: int) -> Tensor:
    """A chunk of one row's newest tokens over all that each of them may see.

    Args:
        query: (tokens, heads, width). bounds: (2,) int32: the position of the first token, and one past that of the last that counts.

    Returns:
        (tokens, heads, width); what stands behind the last token that counts means nothing, and is finite.
    """
    tokens, heads, dim = query.shape
    out = torch.empty((tokens, heads, dim), dtype=query.dtype, device=query.device)
    queries = QUERIES if pool.dtype != torch.float32 else 32
    _chunk[(triton.cdiv(tokens, queries), heads)](
        query, pool, address, table, rows, bounds, out, query.stride(0), query.stride(1),
        group_stride=table.stride(0), width=table.shape[2], scale=scale * _LOG2E, tokens=tokens, WINDOW=window, GROUP=heads // pool.shape[3],
        QUERIES=queries, KEYS=_keys(pool), PRECISION=_precision(pool), **CHUNK, **_how(pool),
    )  # fmt: skip
    return out
