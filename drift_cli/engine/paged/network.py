"""A network that reads and writes pages: the attention of paged slots, as one operation that compiled code may call.

To a compiler the operation is a function of queries, keys and values. That it also stores keys and values in the pages it then reads is its own affair: every
layer's call depends on the layer before, so calls are never reordered, and no two have the same arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, library

from drift_cli.engine.attention import installed, refuse_unknown
from drift_cli.engine.paged.pages import Pages
from drift_cli.models import LoadedModel

ATTENTION = "drift_pages"


@dataclass(frozen=True)
class Items:
    """What one forward pass is about: a token of every row, or (with `bounds`) a chunk of one row."""

    pages: Pages
    rows: Tensor
    """(items,) int32: the row of each token."""
    places: Tensor
    """(items,) int32: the position of each token, -1 for one that does not count."""
    bounds: Tensor | None = None
    """(2,) int32: of a chunk, the position of its first token, and one past that of its last."""


_now: list[Items] = []
"""The items of the forward pass that is being run or captured."""


def _kernels() -> Any:
    from drift_cli.engine.paged import attention_kernel

    return attention_kernel


@library.custom_op("drift::attend", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, address: Tensor, scale: float, window: int) -> Tensor:
    kernels, items = _kernels(), _now[-1]
    pages = items.pages
    # A step has one token for each of many rows, a chunk many tokens of one row: either way (tokens, heads, width).
    q, k, v = ((t[:, :, 0] if items.bounds is None else t[0].transpose(0, 1)) for t in (query, key, value))
    kernels.write(k, v, pages.pool, address, pages.table, items.rows, items.places)
    if items.bounds is None:
        out: Tensor = kernels.decode(q, pages.pool, address, pages.table, items.places, scale, window)[:, None]
    else:
        out = kernels.chunk(q, pages.pool, address, pages.table, items.rows, items.bounds, scale, window)[None]
    return out


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, address: Tensor, scale: float, window: int) -> Tensor:
    rows, heads, tokens, width = query.shape
    return query.new_empty((rows, tokens, heads, width))


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of (rows, heads, tokens, head width) queries over their rows' pages → (rows, tokens, heads, head width)."""
    refuse_unknown(attention_mask, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = torch.ops.drift.attend(query, key, value, module.drift_address, float(scale), int(sliding_window or 0))
    return out, None


@contextmanager
def paged(model: LoadedModel, pages: Pages) -> Iterator[None]:
    """The network's attention goes to `pages` within."""
    text = model.network.get_decoder()  # the parts that see or hear may number layers too
    layers = [module for module in text.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    for module in layers:
        module.drift_address = pages.addresses[module.layer_idx]
    try:
        with installed(model, ATTENTION, attend):
            yield
    finally:
        for module in layers:
            del module.drift_address


@contextmanager
def on(items: Items) -> Iterator[None]:
    """Forward passes within are about these items."""
    _now.append(items)
    try:
        yield
    finally:
        _now.pop()
