"""Slots on a GPU: Triton kernels over one pool of pages, blocks compiled once a kind, and a CUDA graph for every kind of work.

To a compiler the attention is a function of queries, keys and values. That it also stores keys and values in the pages it then reads is its own affair: every
layer's call depends on the layer before, so calls are never reordered, and no two have the same arguments.

On a CPU, where tests put other kernels in the place of Triton's, the same work is done at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, library

from drift_cli.engine.attention import installed, refuse_unknown
from drift_cli.engine.device import to_device
from drift_cli.engine.kernels import Batch, Uniforms, Work, repeatable
from drift_cli.engine.kernels.triton.graphs import captured, compiled
from drift_cli.engine.kernels.triton.memory import grouping, page_shape
from drift_cli.engine.layout import Layout
from drift_cli.engine.pages import Pages
from drift_cli.models import LoadedModel

ATTENTION = "drift_pages"


class TritonKernels:
    """See the module's docstring and `kernels.Kernels`. `count` pages for rows of up to `longest` tokens, of numbers of this `dtype`."""

    ahead = 1
    static = True
    grain = 64

    def __init__(self, model: LoadedModel, layout: Layout, rows: int, longest: int, count: int, dtype: torch.dtype) -> None:
        groups, device = grouping(layout), model.device
        self.model = model
        self.pages = Pages(groups.windows, rows, longest, count)
        self.pool = torch.empty((count, *page_shape(layout)), dtype=dtype, device=device)
        """(pages, layers of a group, 2, kv heads, PAGE, width)."""
        # What was in memory before may be infinite, and 0 times infinity is not 0: a masked key still multiplies its value.
        self.pool.zero_()
        self.table = torch.zeros(self.pages.held.shape, dtype=torch.int32, device=device)
        """The pages' table, on the device."""
        self.addresses = [torch.tensor(place, dtype=torch.int32, device=device) for place in groups.places]
        """(2,) int32 for every layer: its group, and its place there."""
        self.cuda = device.type == "cuda"
        self.memory = torch.cuda.graph_pool_handle() if self.cuda else None

    @contextmanager
    def attending(self) -> Iterator[None]:
        """See `kernels.Kernels.attending`."""
        text = self.model.network.get_decoder()  # the parts that see or hear may number layers too
        layers = [module for module in text.modules() if isinstance(getattr(module, "layer_idx", None), int)]
        for module in layers:
            module.drift_address = self.addresses[module.layer_idx]
        try:
            with installed(self.model, ATTENTION, attend):
                yield
        finally:
            for module in layers:
                del module.drift_address

    @contextmanager
    def batch(self, batch: Batch) -> Iterator[None]:
        """See `kernels.Kernels.batch`."""
        _now.append((self, batch))
        try:
            yield
        finally:
            _now.pop()

    def flush(self) -> None:
        """Tell the device what changed in the table, behind the work it already has."""
        changed, held = self.pages.changed, self.pages.held
        if not changed:
            return
        where = np.ravel_multi_index(tuple(np.array(list(changed)).T), held.shape)
        sent = to_device(np.stack([where, np.array(list(changed.values()))]), self.model.device)
        self.table.view(-1)[sent[0]] = sent[1].int()
        changed.clear()

    def compiled(self, *, dynamic: bool) -> AbstractContextManager[None]:
        """See `kernels.Kernels.compiled`."""
        return compiled(self.model, dynamic=dynamic) if self.cuda else nullcontext()

    def capture(self, work: Callable[[], None], warm: int = 1) -> Work:
        """A CUDA graph."""
        if self.cuda:
            return captured(work, self.model.device, self.memory, warm)

        def run() -> None:
            with repeatable():
                work()

        return Work(run)

    def fused(self, work: Uniforms) -> Uniforms:
        """See `kernels.Kernels.fused`."""
        return torch.compile(work, dynamic=False) if self.cuda else work

    def settle(self) -> None:
        """See `kernels.Kernels.settle`: tables are empty while graphs are captured, and what is written then goes to page 0."""
        self.pool[0].zero_()

    def close(self) -> None:
        """See `kernels.Kernels.close`."""
        del self.pool, self.table


_now: list[tuple[TritonKernels, Batch]] = []
"""The tokens of the forward pass that is being run or captured."""


def _kernels() -> Any:
    from drift_cli.engine.kernels.triton import attention_kernel

    return attention_kernel


@library.custom_op("drift::attend", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, address: Tensor, scale: float, window: int) -> Tensor:
    kernels, (at, batch) = _kernels(), _now[-1]
    # A step has one token for each of many rows, a chunk many tokens of one row: either way (tokens, heads, width).
    q, k, v = ((t[:, :, 0] if batch.bounds is None else t[0].transpose(0, 1)) for t in (query, key, value))
    kernels.write(k, v, at.pool, address, at.table, batch.rows, batch.places)
    if batch.bounds is None:
        out: Tensor = kernels.decode(q, at.pool, address, at.table, batch.places, scale, window)[:, None]
    else:
        out = kernels.chunk(q, at.pool, address, at.table, batch.rows, batch.bounds, scale, window)[None]
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
