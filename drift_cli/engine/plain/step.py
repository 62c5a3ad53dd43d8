"""A step's attention in plain slots: one new token of every row looks at what its row holds, for all rows at once, on a CPU in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drift_cli.engine.plain.pages import BLOCK, PAGE, Pool, Table


@dataclass(frozen=True)
class Together:
    """One new token of every row that moves: what each of them looks at, for all pages at once."""

    owner: Tensor
    """(pages,): the row whose query each page is asked by; row 0 for pages of nobody, which answer nothing."""
    bias: Tensor
    """(pages, 1, 1, PAGE) float32: 0 where a key may be seen, else minus infinity."""
    order: Tensor
    """(rows, a multiple of BLOCK): see `Table.order`."""
    into: tuple[Tensor, Tensor]
    """(rows,) pages and places of the new tokens."""

    @classmethod
    def of(
        cls, table: Table, window: int, lengths: Sequence[int], moving: Sequence[bool], before: Together | None, order: bool
    ) -> Together:
        """`lengths` are the positions of the new tokens, for which pages have been reserved. With `order` False, `before`'s is still true."""
        owner, base = table.owner[: table.count], table.base[: table.count]
        asked = np.where(owner >= 0, owner, 0)
        newest = np.where(moving, lengths, -1)[asked][:, None]
        places = base[:, None] + np.arange(PAGE)
        seen = (places <= newest) & (owner >= 0)[:, None]
        if window:
            seen &= places > newest - window
        bias = np.where(seen, np.float32(0.0), np.float32(-np.inf))
        pages = [
            table.pages[row][at // PAGE - table.first[row]] if moves else 0
            for row, (at, moves) in enumerate(zip(lengths, moving, strict=True))
        ]
        into = torch.tensor(pages), torch.tensor([at % PAGE for at in lengths])
        kept = before.order if before is not None and not order else torch.from_numpy(table.order())
        return cls(torch.from_numpy(asked), torch.from_numpy(bias)[:, None, None], kept, into)


def attend_together(query: Tensor, pool: Pool, plan: Together, scale: float) -> Tensor:
    """Attention of one query a row over its own pages, for all rows at once.

    Every page is asked by its row's query in a product of one fixed shape, and a row's pages are put together in their order, so that a row's bits do not
    depend on how many others there are. Softmax over pages: each page's exponentials are taken from the row's largest score.

    Args:
        query: (rows, heads, 1, width).
        pool: the layer's, with the newest keys and values written.

    Returns:
        (rows, 1, heads, value width). Rows that stand still hold nothing of meaning.
    """
    rows, heads, _, width = query.shape
    count, kv = len(plan.owner), pool.keys.shape[1]
    keys, values = (held[:count].view(count * kv, PAGE, -1) for held in (pool.keys, pool.values))
    asked = (query * scale).view(rows, kv, heads // kv, width).index_select(0, plan.owner)
    scores = torch.bmm(asked.view(count * kv, heads // kv, width), keys.transpose(1, 2)).view(count, kv, heads // kv, PAGE)
    scores += plan.bias
    top = scores.amax(-1)[plan.order].amax(1).clamp_min(torch.finfo(scores.dtype).min)
    scores.sub_(top.index_select(0, plan.owner)[..., None]).exp_()
    # The largest score's exponential is 1: less than that has only a row that stands still.
    total = added(scores.sum(-1), plan.order).clamp_min(1.0)
    parts = torch.bmm(scores.view(count * kv, heads // kv, PAGE), values).view(count, kv, heads // kv, -1)
    return (added(parts, plan.order) / total[..., None]).view(rows, 1, heads, -1)


def added(parts: Tensor, order: Tensor) -> Tensor:
    """(pages, ...) numbers added up row by row, in the order of each row's pages: block by block, since how a sum is taken depends on its length, and the
    length on the longest row; blocks that a row does not have add zeros.
    """
    blocks = [parts[order[:, start : start + BLOCK]].sum(1) for start in range(0, order.shape[1], BLOCK)]
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total
