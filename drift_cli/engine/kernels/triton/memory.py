"""The memory of pages on a GPU: one pool for all rows and layers, sized from what is free.

Layers that keep the same tokens form groups of one size, and a page holds PAGE tokens of one group's layers, so that any page can serve any group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import gcd

import torch

from drift_cli.engine.layout import PAGE, Layout
from drift_cli.models import LoadedModel, text_config

_SPARED = 768 << 20
"""Bytes left to everybody else on the device."""


@dataclass(frozen=True)
class Grouping:
    """Which group each layer belongs to, its place there, and each group's window."""

    size: int
    """Layers of every group."""
    windows: tuple[int, ...]
    """Of each group; 0 where it keeps all tokens."""
    places: tuple[tuple[int, int], ...]
    """(group, place within it) of every layer."""


def grouping(layout: Layout) -> Grouping:
    """Groups of one size, as large as they can be."""
    kinds: dict[int, list[int]] = {}
    for layer, window in enumerate(layout.windows):
        kinds.setdefault(window, []).append(layer)
    size = reduce(gcd, (len(layers) for layers in kinds.values()))
    windows: list[int] = []
    places: dict[int, tuple[int, int]] = {}
    for window, layers in kinds.items():
        for index, layer in enumerate(layers):
            if index % size == 0:
                windows.append(window)
            places[layer] = (len(windows) - 1, index % size)
    return Grouping(size, tuple(windows), tuple(places[layer] for layer in sorted(places)))


def page_shape(layout: Layout) -> tuple[int, int, int, int, int]:
    """(layers of a group, 2, kv heads, PAGE, width) of one page."""
    return grouping(layout).size, 2, layout.heads[0], PAGE, layout.widths[0][0]


def page_count(model: LoadedModel, layout: Layout, rows: int, longest: int, share: float, largest: int, itemsize: int) -> int:
    """As many pages, of numbers of so many bytes, as fit beside what a forward pass of `largest` tokens needs, and no more than all rows can fill."""
    groups = len(grouping(layout).windows)
    most = rows * groups * (-(-longest // PAGE)) + 1
    if model.device.type != "cuda":
        return most
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(model.device)
    card, vocabulary = model.card, int(text_config(model.card.config).vocab_size)
    # A chunk's hidden states of every layer, some 16 tensors of a block's inner width, and the draw's: logits in float32, sorted, with their order and sums.
    reserve = largest * card.width * (card.layers + 64) * itemsize + rows * vocabulary * 40 + _SPARED
    page = torch.Size(page_shape(layout)).numel() * itemsize
    count = min(int((free * share - reserve) // page), most)
    if count < 2 * groups:
        raise torch.OutOfMemoryError("not enough memory for a single page of every layer")
    return count
