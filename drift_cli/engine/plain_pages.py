"""Where plain slots keep keys and values: pages of PAGE tokens, in one tensor a layer, and for every width of window a table of whose tokens a page holds.

A page belongs to one row. The lowest free page is given out first, so that the pages in use lie together and can be worked on in one go. A windowed table
gives back the pages that no query can come back for. Page 0 is nobody's: what is written for rows that stand still goes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.slots import SLACK

PAGE = 64
"""Tokens of a page."""
_BLOCK = 16
"""Pages that are added up in one go."""


class Table:
    """Which pages hold a row's tokens, for all layers with one window (0 where a query sees everything)."""

    def __init__(self, window: int, rows: int) -> None:
        self.window = window
        self.pages: list[list[int]] = [[] for _ in range(rows)]
        """Of each row, in the order of its tokens, from page `first` of the conversation on."""
        self.first = [0] * rows
        self.unused: list[int] = []
        self.owner: NDArray[np.int64] = np.full(1, -1)
        """The row that each page belongs to, -1 for none."""
        self.base: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        """The position of each page's first token."""
        self.count = 1
        """Pages that there are."""
        self.version = 0
        """Changes whenever a page changes hands."""

    def reserve(self, row: int, end: int) -> None:
        """Have pages for a row's tokens before position `end`."""
        while (place := (self.first[row] + len(self.pages[row])) * PAGE) < end:
            page = heappop(self.unused) if self.unused else self._add()
            self.pages[row].append(page)
            self.owner[page], self.base[page] = row, place
            self.version += 1

    def _add(self) -> int:
        if self.count == len(self.owner):
            self.owner = np.concatenate([self.owner, np.full(self.count, -1)])
            self.base = np.concatenate([self.base, np.zeros(self.count, dtype=np.int64)])
        self.count += 1
        return self.count - 1

    def trim(self, row: int, start: int) -> None:
        """Give back what is no longer needed once chunks start at `start` or later, less the slack that `Layout.rewound` counts on."""
        if self.window:
            self._let_go(row, max(0, start - self.window + 1 - SLACK) // PAGE)

    def release(self, row: int) -> None:
        """Give back all of a row's pages."""
        self._let_go(row, self.first[row] + len(self.pages[row]))
        self.first[row] = 0

    def _let_go(self, row: int, first: int) -> None:
        for page in self.pages[row][: max(0, first - self.first[row])]:
            heappush(self.unused, page)
            self.owner[page] = -1
            self.version += 1
        gone = min(max(0, first - self.first[row]), len(self.pages[row]))
        self.first[row] += gone
        del self.pages[row][:gone]

    def places(self, row: int, start: int, end: int) -> tuple[list[int], list[int]]:
        """The page, and the place in it, of a row's tokens from position `start` to before `end`."""
        held, first = self.pages[row], self.first[row]
        return [held[at // PAGE - first] for at in range(start, end)], [at % PAGE for at in range(start, end)]

    def order(self) -> NDArray[np.int64]:
        """(rows, a multiple of _BLOCK): every row's pages in order, page 0 where it has no more."""
        most = max(1, *map(len, self.pages))
        made = np.zeros((len(self.pages), -(-most // _BLOCK) * _BLOCK), dtype=np.int64)
        for row, held in enumerate(self.pages):
            made[row, : len(held)] = held
        return made


class Pool:
    """One layer's keys and values: (pages, kv heads, PAGE, width) each."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.keys, self.values = (kind.new_zeros((1, kind.shape[1], PAGE, kind.shape[-1])) for kind in (key, value))

    def hold(self, count: int) -> None:
        """Have room for `count` pages."""
        if count > len(self.keys):
            self.keys, self.values = (_grown(held, count) for held in (self.keys, self.values))

    def write(self, pages: Tensor, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Put (tokens, kv heads, width) keys and values at (tokens,) pages and places in them."""
        self.keys[pages, :, places] = key
        self.values[pages, :, places] = value

    def read(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some pages one behind the other: (kv heads, tokens, width)."""
        keys, values = (kind.index_select(0, pages).transpose(0, 1) for kind in (self.keys, self.values))
        return keys.flatten(1, 2), values.flatten(1, 2)


def _grown(held: Tensor, count: int) -> Tensor:
    made = held.new_zeros((max(count, len(held) + len(held) // 4), *held.shape[1:]))
    made[: len(held)] = held
    return made


@dataclass(frozen=True)
class Reading:
    """What one row's new tokens, at positions `start` to before `end`, look at, and where they are written."""

    pages: Tensor
    """The pages read, in order."""
    span: slice
    """Of the tokens in them, those that any of the new ones may see."""
    mask: Tensor | None
    """(new tokens, tokens seen) bool; None where a single one sees all of them."""
    into: tuple[Tensor, Tensor]
    """(new tokens,) pages and places."""

    @classmethod
    def of(cls, table: Table, row: int, start: int, end: int, device: torch.device) -> Reading:
        """Pages for the new tokens are reserved."""
        table.reserve(row, end)
        window, base = table.window, table.first[row] * PAGE
        first = max(0, start + 1 - window) if window else 0
        skipped = (first - base) // PAGE
        pages = torch.tensor(table.pages[row][skipped : -(-(end - base) // PAGE)], device=device)
        mask = None
        if end - start > 1:
            at, seen = torch.arange(start, end, device=device)[:, None], torch.arange(first, end, device=device)[None]
            mask = (seen <= at) & (seen > at - window) if window else seen <= at
        begin = first - base - skipped * PAGE
        into = tuple(torch.tensor(kind, device=device) for kind in table.places(row, start, end))
        return cls(pages, slice(begin, begin + end - first), mask, (into[0], into[1]))


@dataclass(frozen=True)
class Together:
    """One new token of every row that moves: what each of them looks at, for all pages at once."""

    owner: Tensor
    """(pages,): the row whose query each page is asked by; row 0 for pages of nobody, which answer nothing."""
    bias: Tensor
    """(pages, 1, 1, PAGE) float32: 0 where a key may be seen, else minus infinity."""
    order: Tensor
    """(rows, a multiple of _BLOCK): see `Table.order`."""
    into: tuple[Tensor, Tensor]
    """(rows,) pages and places of the new tokens."""

    @classmethod
    def of(cls, table: Table, lengths: Sequence[int], moving: Sequence[bool], before: Together | None, order: bool) -> Together:
        """`lengths` are the positions of the new tokens, for which pages have been reserved. With `order` False, `before`'s is still true."""
        owner, base = table.owner[: table.count], table.base[: table.count]
        asked = np.where(owner >= 0, owner, 0)
        newest = np.where(moving, lengths, -1)[asked][:, None]
        places = base[:, None] + np.arange(PAGE)
        seen = (places <= newest) & (owner >= 0)[:, None]
        if table.window:
            seen &= places > newest - table.window
        bias = np.where(seen, np.float32(0.0), np.float32(-np.inf))
        pages = [
            table.pages[row][at // PAGE - table.first[row]] if moves else 0
            for row, (at, moves) in enumerate(zip(lengths, moving, strict=True))
        ]
        into = torch.tensor(pages), torch.tensor([at % PAGE for at in lengths])
        kept = before.order if before is not None and not order else torch.from_numpy(table.order())
        return cls(torch.from_numpy(asked), torch.from_numpy(bias)[:, None, None], kept, into)


def attend_together(query: Tensor, pool: Pool, plan: Together, scale: float) -> Tensor:
    """Attention of one query a row over its own pages, for all rows at once, on a CPU in float32.

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
    blocks = [parts[order[:, start : start + _BLOCK]].sum(1) for start in range(0, order.shape[1], _BLOCK)]
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total
