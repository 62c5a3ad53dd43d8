"""What the Triton kernels compute, in plain torch: the yardstick they are tested against, and a stand-in for them where there is no GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from drift_cli.engine.layout import PAGE


def _held(pool: Tensor, address: Tensor, table: Tensor, row: int, end: int) -> tuple[Tensor, Tensor]:
    """Keys and values (tokens, kv heads, width) of a row's positions before `end`."""
    group, layer = int(address[0]), int(address[1])
    pages = table[group, row, : -(-end // PAGE)].long()
    planes = pool[pages, layer].permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :end]
    return planes[0], planes[1]


def write(key: Tensor, value: Tensor, pool: Tensor, address: Tensor, table: Tensor, rows: Tensor, places: Tensor) -> None:
    group, layer = int(address[0]), int(address[1])
    for item, place in enumerate(places.tolist()):
        if place >= 0:
            page = int(table[group, int(rows[item]), place // PAGE])
            pool[page, layer, 0, :, place % PAGE] = key[item]
            pool[page, layer, 1, :, place % PAGE] = value[item]


def _one(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int) -> Tensor:
    """(heads, width): one query over keys that end with its own."""
    first = max(0, keys.shape[0] - window) if window else 0
    group = query.shape[0] // keys.shape[1]
    k, v = (held[first:].repeat_interleave(group, 1).double() for held in (keys, values))
    weights = torch.softmax(torch.einsum("hd,nhd->hn", query.double(), k) * scale, -1)
    return torch.einsum("hn,nhd->hd", weights, v).to(query.dtype)


def decode(query: Tensor, pool: Tensor, address: Tensor, table: Tensor, places: Tensor, scale: float, window: int) -> Tensor:
    out = torch.zeros_like(query)
    for row, place in enumerate(places.tolist()):
        if place >= 0:
            out[row] = _one(query[row], *_held(pool, address, table, row, place + 1), scale, window)
    return out


def chunk(query: Tensor, pool: Tensor, address: Tensor, table: Tensor, rows: Tensor, bounds: Tensor, scale: float, window: int) -> Tensor:
    out = torch.zeros_like(query)
    start, end = bounds.tolist()
    keys, values = _held(pool, address, table, int(rows[0]), end)
    for token in range(min(end - start, query.shape[0])):
        out[token] = _one(query[token], keys[: start + token + 1], values[: start + token + 1], scale, window)
    return out
