"""The memory of paged slots: one pool of pages for all rows and layers, and a table that says which page holds which of a row's tokens.

Layers that keep the same tokens (all, or those of a window) form groups of one size, and a page holds PAGE tokens of one group's layers, so that any page can
serve any group. A windowed group gives back the pages that no query can come back for. Page 0 belongs to nobody: tables point to it where there is nothing.

The table is kept twice, on the host and on the device. `flush` sends what changed, in the order of the device's work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.paged.device import to_device
from drift_cli.engine.slots import PAGE, SLACK, Layout, NoRoom


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


def page_numbers(layout: Layout) -> int:
    """Numbers that one page holds."""
    return grouping(layout).size * layout.heads[0] * sum(layout.widths[0]) * PAGE


@dataclass
class Pages:
    """See the module's docstring. `count` pages for `rows` rows of up to `longest` tokens each."""

    layout: Layout
    rows: int
    longest: int
    count: int
    device: torch.device
    dtype: torch.dtype
    groups: Grouping = field(init=False)
    pool: Tensor = field(init=False)
    """(pages, layers of a group, 2, kv heads, PAGE, width)."""
    table: Tensor = field(init=False)
    """(groups, rows, pages of a row) int32, on the device."""
    addresses: list[Tensor] = field(init=False)
    """(2,) int32 for every layer: its group, and its place there."""
    held: NDArray[np.int32] = field(init=False)
    """The table as the host knows it."""
    unused: list[int] = field(init=False)
    changed: dict[tuple[int, int, int], int] = field(default_factory=dict)
    upto: list[int] = field(init=False)
    """Of every row: pages from the beginning that have been given to it, kept or not."""
    kept: NDArray[np.int64] = field(init=False)
    """(groups, rows): the first page that is still there."""

    def __post_init__(self) -> None:
        self.groups = grouping(self.layout)
        shape = (self.count, self.groups.size, 2, self.layout.heads[0], PAGE, self.layout.widths[0][0])
        self.pool = torch.empty(shape, dtype=self.dtype, device=self.device)
        # What was in memory before may be infinite, and 0 times infinity is not 0: a masked key still multiplies its value.
        self.pool.zero_()
        width = -(-self.longest // PAGE)
        self.held = np.zeros((len(self.groups.windows), self.rows, width), dtype=np.int32)
        self.table = torch.zeros(self.held.shape, dtype=torch.int32, device=self.device)
        self.addresses = [torch.tensor(place, dtype=torch.int32, device=self.device) for place in self.groups.places]
        self.unused = list(range(self.count - 1, 0, -1))
        self.upto = [0] * self.rows
        self.kept = np.zeros(self.held.shape[:2], dtype=np.int64)

    def reserve(self, row: int, end: int) -> None:
        """Have pages for a row's tokens before position `end`.

        Raises:
            NoRoom: not enough are left; nothing has changed.
        """
        first, last = self.upto[row], -(-end // PAGE)
        groups = range(len(self.groups.windows))
        if last > self.held.shape[2] or len(groups) * (last - first) > len(self.unused):
            raise NoRoom
        for page in range(first, last):
            for group in groups:
                self._set(group, row, page, self.unused.pop())
        self.upto[row] = max(first, last)

    def trim(self, row: int, start: int) -> None:
        """Give back what windowed layers no longer need once chunks start at `start` or later, less the slack that `Layout.rewound` counts on."""
        for group, window in enumerate(self.groups.windows):
            if window:
                self._let_go(group, row, max(0, start - window + 1 - SLACK) // PAGE)

    def release(self, row: int) -> None:
        """Give back all of a row's pages."""
        for group in range(len(self.groups.windows)):
            self._let_go(group, row, self.upto[row])
            self.kept[group, row] = 0
        self.upto[row] = 0

    def _let_go(self, group: int, row: int, first: int) -> None:
        for page in range(int(self.kept[group, row]), min(first, self.upto[row])):
            self.unused.append(int(self.held[group, row, page]))
            self._set(group, row, page, 0)
        self.kept[group, row] = max(int(self.kept[group, row]), min(first, self.upto[row]))

    def _set(self, group: int, row: int, page: int, number: int) -> None:
        self.held[group, row, page] = number
        self.changed[group, row, page] = number

    def flush(self) -> None:
        """Tell the device what changed, behind the work it already has."""
        if not self.changed:
            return
        where = np.ravel_multi_index(tuple(np.array(list(self.changed)).T), self.held.shape)
        sent = to_device(np.stack([where, np.array(list(self.changed.values()))]), self.device)
        self.table.view(-1)[sent[0]] = sent[1].int()
        self.changed.clear()
