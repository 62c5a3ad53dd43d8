"""A chunk's attention in plain torch: the new tokens of one row look at what the row holds. Its bits are the row's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from drift_cli.engine.layout import PAGE
from drift_cli.engine.pages import Pages

_BAND = 192
"""New tokens that attend in one go, over what any of them may see: a long chunk does not compute what its mask would throw away."""


@dataclass(frozen=True)
class Band:
    """Some of a chunk's new tokens."""

    queries: slice
    """Of the new tokens."""
    keys: slice
    """Of the tokens in the pages read, those that any of these may see."""
    bias: Tensor | None
    """(queries, keys), as attention is computed: 0 where a key may be seen, else minus infinity; None where a single query sees all of them."""


@dataclass(frozen=True)
class Reading:
    """What one row's new tokens look at, and where they are written."""

    pages: Tensor
    """The pages read, in order."""
    bands: tuple[Band, ...]
    into: tuple[Tensor, Tensor]
    """(new tokens,) pages and places."""

    @classmethod
    def of(cls, pages: Pages, group: int, row: int, start: int, end: int, like: Tensor) -> Reading:
        """New tokens at positions `start` to before `end`, for which there are pages. `like` has the device and the type of keys."""
        window, device = pages.windows[group], like.device
        skipped = max(0, start + 1 - window) // PAGE if window else 0
        read = torch.from_numpy(pages.held[group, row, skipped : -(-end // PAGE)].astype("int64")).to(device)
        firsts = range(start, end, _BAND)
        bands = tuple(_band(window, start, first, min(first + _BAND, end), skipped * PAGE, like) for first in firsts)
        page, place = (torch.from_numpy(kind).to(device) for kind in pages.of(group, row, start, end))
        return cls(read, bands, (page, place))


def _band(window: int, start: int, first: int, end: int, origin: int, like: Tensor) -> Band:
    """New tokens at positions `first` to before `end` of a chunk that starts at `start`; what is read starts at `origin`."""
    oldest = max(0, first + 1 - window) if window else 0
    bias = None
    if end - first > 1:
        at, seen = torch.arange(first, end, device=like.device)[:, None], torch.arange(oldest, end, device=like.device)[None]
        hidden = (seen > at) | (seen <= at - window) if window else seen > at
        bias = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return Band(slice(first - start, end - start), slice(oldest - origin, end - origin), bias)


def attend_row(query: Tensor, keys: Tensor, values: Tensor, bands: Sequence[Band], scale: float) -> Tensor:
    """Queries (1, heads, new, head width) of a row's newest tokens over what they may see of (1, kv heads, tokens, width)."""
    grouped = query.shape[1] != keys.shape[1]
    parts = [
        scaled_dot_product_attention(
            query[:, :, band.queries], keys[:, :, band.keys], values[:, :, band.keys], attn_mask=band.bias, scale=scale, enable_gqa=grouped
        )
        for band in bands
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
