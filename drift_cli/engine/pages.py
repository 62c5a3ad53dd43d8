"""Which page holds which of a row's tokens: one table for all kernels, kept on the host. No torch: the memory of pages is the kernels' own.

Layers that keep the same tokens (all, or those of a window) form groups. A page holds PAGE tokens of one row for one group. Groups take their pages from a
stock; a stock may serve one group or all. A windowed group gives back the pages that no query can come back for. Page 0 of every stock belongs to nobody:
the table points to it where there is nothing. The lowest free page is given out first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from drift_cli.engine.layout import PAGE, SLACK
from drift_cli.engine.plan import NoRoom


@dataclass
class Stock:
    """Pages that groups take and give back."""

    limit: int | None
    """Pages that there may be, page 0 included; None where torch says when memory is out."""
    count: int = 1
    """Pages that there are, page 0 included: those in use and `unused`."""
    unused: list[int] = field(default_factory=list)
    """A heap."""

    def has(self, wanted: int) -> bool:
        """Whether so many pages can be taken."""
        return self.limit is None or wanted <= len(self.unused) + self.limit - self.count

    def take(self) -> int:
        """The lowest free page."""
        if self.unused:
            return heappop(self.unused)
        self.count += 1
        return self.count - 1

    def give(self, page: int) -> None:
        """Take a page back."""
        heappush(self.unused, page)


class Pages:
    """The table for `rows` rows and groups of these windows (0 for none).

    With `limit`, all groups share one stock of so many pages, and a row has at most `longest` tokens. Without, every group has a stock of its own, and
    stocks and rows grow.
    """

    def __init__(self, windows: Sequence[int], rows: int, longest: int = PAGE, limit: int | None = None) -> None:
        self.windows = tuple(windows)
        one = Stock(limit)
        self.stocks = [one if limit is not None else Stock(None) for _ in windows]
        """Of each group."""
        self.limited = limit is not None
        self.held: NDArray[np.int32] = np.zeros((len(windows), rows, -(-longest // PAGE)), dtype=np.int32)
        """(groups, rows, pages of a row): the table."""
        self.changed: dict[tuple[int, int, int], int] = {}
        """Entries of the table that are new since somebody cleared this."""
        self.upto = [0] * rows
        """Of every row: pages from the beginning that have been given to it, kept or not."""
        self.kept: NDArray[np.int64] = np.zeros(self.held.shape[:2], dtype=np.int64)
        """(groups, rows): the first page that is still there."""

    def reserve(self, row: int, end: int) -> None:
        """Have pages for a row's tokens before position `end`.

        Raises:
            NoRoom: not enough are left; nothing has changed.
        """
        first, last = self.upto[row], -(-end // PAGE)
        if last <= first:
            return
        if self.limited and (last > self.held.shape[2] or not self.stocks[0].has(len(self.windows) * (last - first))):
            raise NoRoom
        if last > self.held.shape[2]:
            more = max(last, 2 * self.held.shape[2]) - self.held.shape[2]
            self.held = np.pad(self.held, ((0, 0), (0, 0), (0, more)))
        for page in range(first, last):
            for group, stock in enumerate(self.stocks):
                self._set(group, row, page, stock.take())
        self.upto[row] = last

    def trim(self, row: int, start: int) -> None:
        """Give back what windowed layers no longer need once chunks start at `start` or later, less the slack that `Layout.rewound` counts on."""
        for group, window in enumerate(self.windows):
            if window:
                self._let_go(group, row, max(0, start - window + 1 - SLACK) // PAGE)

    def release(self, row: int) -> None:
        """Give back all of a row's pages."""
        for group in range(len(self.windows)):
            self._let_go(group, row, self.upto[row])
            self.kept[group, row] = 0
        self.upto[row] = 0

    def close_up(self, group: int) -> tuple[list[int], list[int]]:
        """Let the last pages of a group's own stock move into the places of unused ones: (from, to), of which none is in both."""
        stock = self.stocks[group]
        used = stock.count - len(stock.unused)
        moved, into = [], sorted(page for page in stock.unused if page < used)
        for (row, page), hole in zip(np.argwhere(self.held[group] >= used).tolist(), into, strict=True):
            moved.append(int(self.held[group, row, page]))
            self._set(group, row, page, hole)
        stock.count, stock.unused = used, []
        return moved, into

    def of(self, group: int, row: int, start: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The page, and the place in it, of a row's tokens from position `start` to before `end`."""
        at = np.arange(start, end)
        return self.held[group, row, at // PAGE].astype(np.int64), at % PAGE

    def _let_go(self, group: int, row: int, first: int) -> None:
        begin, end = int(self.kept[group, row]), min(first, self.upto[row])
        for page in range(begin, end):
            self.stocks[group].give(int(self.held[group, row, page]))
            self._set(group, row, page, 0)
        self.kept[group, row] = max(begin, end)

    def _set(self, group: int, row: int, page: int, number: int) -> None:
        self.held[group, row, page] = number
        self.changed[group, row, page] = number
