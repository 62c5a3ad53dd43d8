"""A step's attention in plain torch: one new token of every row looks at what its row holds, for all rows at once, on a CPU in float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.kernels.torch.pools import Pool
from drift_cli.engine.layout import PAGE
from drift_cli.engine.pages import Pages

BLOCK = 8
"""Pages that are added up in one go."""


@dataclass(frozen=True)
class Owners:
    """Whose pages there are in one group: true until the table changes."""

    rows: NDArray[np.int64]
    """(pages,): the row that each page belongs to, -1 for none."""
    base: NDArray[np.int64]
    """(pages,): the position of each page's first token."""
    order: Tensor
    """(rows, a multiple of BLOCK): every row's pages in order, page 0 where it has no more. Columns are whole blocks of positions, so that which pages are
    added up in one go depends on positions alone.
    """

    @classmethod
    def of(cls, pages: Pages, group: int) -> Owners:
        """As the table says now."""
        held, count = pages.held[group], pages.stocks[group].count
        owner, base = np.full(count, -1), np.zeros(count, dtype=np.int64)
        row, page = np.nonzero(held)
        owner[held[row, page]], base[held[row, page]] = row, page * PAGE
        first = pages.kept[group] // BLOCK * BLOCK
        width = max(1, int((np.asarray(pages.upto) - first).max()))
        order = np.zeros((len(held), -(-width // BLOCK) * BLOCK), dtype=np.int64)
        order[row, page - first[row]] = held[row, page]
        return cls(owner, base, torch.from_numpy(order))


@dataclass(frozen=True)
class StepPlan:
    """One new token of every row that moves: what each of them looks at, for all pages at once."""

    owner: Tensor
    """(pages,): the row whose query each page is asked by; row 0 for pages of nobody, which answer nothing."""
    bias: Tensor
    """(pages, 1, 1, PAGE) float32: 0 where a key may be seen, else minus infinity."""
    order: Tensor
    """See `Owners.order`."""
    into: tuple[Tensor, Tensor]
    """(rows,) pages and places of the new tokens."""

    @classmethod
    def of(cls, pages: Pages, group: int, places: NDArray[np.int64], owners: Owners) -> StepPlan:
        """`places` are (rows,) positions of the new tokens, for which there are pages; -1 where a row stands still."""
        window, mine = pages.windows[group], owners.rows >= 0
        asked = np.where(mine, owners.rows, 0)
        newest = np.where(mine, places[asked], -1)[:, None]
        at = owners.base[:, None] + np.arange(PAGE)
        seen = at <= newest
        if window:
            seen &= at > newest - window
        bias = np.where(seen, np.float32(0.0), np.float32(-np.inf))
        page = np.where(places >= 0, pages.held[group, np.arange(len(places)), np.maximum(places, 0) // PAGE], 0)
        into = torch.from_numpy(page), torch.from_numpy(np.maximum(places, 0) % PAGE)
        return cls(torch.from_numpy(asked), torch.from_numpy(bias)[:, None, None], owners.order, into)


def attend_step(query: Tensor, pool: Pool, plan: StepPlan, scale: float) -> Tensor:
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
