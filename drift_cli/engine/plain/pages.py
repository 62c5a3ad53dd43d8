"""Where plain slots keep keys and values: pages of PAGE tokens, in one tensor a layer, and a table of whose tokens a page holds for layers alike.

A page belongs to one row. The pages in use are always the first ones, so that they can be worked on in one go: the lowest free page is given out first, and
where pages come free the last ones move into their places. Page 0 is nobody's: what is written for rows that stand still goes there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.slots import SLACK

PAGE = 64
"""Tokens of a page."""
BLOCK = 16
"""Pages that are added up in one go."""


class Table:
    """Which pages hold a row's tokens. Positions count from the conversation's first token."""

    def __init__(self, rows: int) -> None:
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

    def end(self, row: int) -> int:
        """The position behind the last page of a row."""
        return (self.first[row] + len(self.pages[row])) * PAGE

    def reserve(self, row: int, end: int) -> None:
        """Have pages for a row's tokens before position `end`."""
        while (place := self.end(row)) < end:
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

    def let_go(self, row: int, start: int) -> None:
        """Give back the pages of a row that hold only tokens before position `start`."""
        gone = min(max(0, start // PAGE - self.first[row]), len(self.pages[row]))
        for page in self.pages[row][:gone]:
            heappush(self.unused, page)
            self.owner[page] = -1
            self.version += 1
        self.first[row] += gone
        del self.pages[row][:gone]

    def release(self, row: int) -> None:
        """Give back all of a row's pages."""
        self.let_go(row, self.end(row))
        self.first[row] = 0

    def closed_up(self) -> tuple[list[int], list[int]]:
        """Let the last pages move into the places of unused ones: (from, to), of which none is in both."""
        used = self.count - len(self.unused)
        holes = [page for page in self.unused if page < used]
        last = [page for page in range(used, self.count) if self.owner[page] >= 0]
        for page, into in zip(last, holes, strict=True):
            row = int(self.owner[page])
            self.pages[row][int(self.base[page]) // PAGE - self.first[row]] = into
            self.owner[into], self.base[into] = row, self.base[page]
        self.owner[used:] = -1
        self.unused, self.count = [], used
        self.version += 1
        return last, holes

    def places(self, row: int, start: int, end: int) -> tuple[list[int], list[int]]:
        """The page, and the place in it, of a row's tokens from position `start` to before `end`."""
        held, first = self.pages[row], self.first[row]
        return [held[at // PAGE - first] for at in range(start, end)], [at % PAGE for at in range(start, end)]

    def order(self) -> NDArray[np.int64]:
        """(rows, a multiple of BLOCK): every row's pages in order, page 0 where it has no more."""
        most = max(1, *map(len, self.pages))
        made = np.zeros((len(self.pages), -(-most // BLOCK) * BLOCK), dtype=np.int64)
        for row, held in enumerate(self.pages):
            made[row, : len(held)] = held
        return made


class Pool:
    """One layer's keys and values: (pages, kv heads, PAGE, width) each."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        with torch.inference_mode():
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

    def move(self, pages: Tensor, into: Tensor) -> None:
        """Copy whole pages to the places of others."""
        with torch.inference_mode():
            self.keys[into], self.values[into] = self.keys[pages], self.values[pages]


def _grown(held: Tensor, count: int) -> Tensor:
    """Pages twice as many, or `count`. On a CPU memory that is nothing but zeros yet is not taken from the machine before something is written there."""
    shape = (max(count, 2 * len(held)), *held.shape[1:])
    with torch.inference_mode():
        if held.device.type == "cpu":
            empty = np.zeros(math.prod(shape) * held.itemsize, dtype=np.uint8)
            made = torch.from_numpy(empty).view(held.dtype).view(shape)
        else:
            made = held.new_zeros(shape)
        made[: len(held)] = held
    return made


@dataclass
class Shelf:
    """The pages of all layers that look equally far back. Its methods are called between forward passes, when all layers hold the same tokens."""

    rows: int
    window: int
    """Keys that a query sees, itself included; 0 where it sees all."""
    table: Table = field(init=False)
    pools: dict[int, Pool] = field(default_factory=dict)
    """By layer."""

    def __post_init__(self) -> None:
        self.table = Table(self.rows)

    def pool(self, layer: int, key: Tensor, value: Tensor) -> Pool:
        """A layer's, with room for all pages that there are."""
        if layer not in self.pools:
            self.pools[layer] = Pool(key, value)
        self.pools[layer].hold(self.table.count)
        return self.pools[layer]

    def trim(self, row: int, start: int) -> None:
        """Give back what no query at position `start` or later sees, less the slack that `Layout.rewound` counts on."""
        if self.window:
            self.table.let_go(row, max(0, start - self.window + 1 - SLACK))
            self._close_up()

    def release(self, row: int) -> None:
        """Give back all of a row's pages."""
        self.table.release(row)
        self._close_up()

    def _close_up(self) -> None:
        """Where pages are free, at most a few of them are left: they would be worked on in every step."""
        if len(self.table.unused) > max(4, self.table.count // 32):
            pages, into = (torch.tensor(kind, dtype=torch.long) for kind in self.table.closed_up())
            for pool in self.pools.values():
                at = pool.keys.device
                pool.hold(self.table.count)
                pool.move(pages.to(at), into.to(at))
