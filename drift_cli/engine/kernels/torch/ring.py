"""A step's attention where a window is narrow: of every row the last tokens, one place for each that a query may see.

What a row holds in pages is several times as much as a narrow window shows. So a reply's steps look at a copy of what they may see, in which each new token
takes the place of the one that leaves the window. Every row has its own places, and all rows attend in products of one fixed shape: a row's bits do not
depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.kernels.torch.pools import Pool
from drift_cli.engine.pages import Pages

NARROW = 1024
"""The widest window that is kept twice."""


@dataclass(frozen=True)
class RingStep:
    """One new token of every row."""

    bias: Tensor
    """(rows, 1, 1, window) float32: 0 where a place may be seen, else minus infinity."""
    into: Tensor
    """(rows,) places of the new tokens."""


@dataclass
class Ring:
    """Layers of one window. The token at position p has place p modulo the window."""

    rows: int
    window: int
    keys: dict[int, Tensor] = field(default_factory=dict)
    """(rows, kv heads, window, width) of each layer."""
    values: dict[int, Tensor] = field(default_factory=dict)

    def follow(self, row: int, pages: Pages, group: int, pools: Mapping[int, Pool], length: int) -> None:
        """Hold of a row's first `length` tokens, which are in pages, those that the query behind them sees."""
        start = max(0, length - self.window + 1)
        page, place = (torch.from_numpy(kind) for kind in pages.of(group, row, start, length))
        into = torch.arange(start, length) % self.window
        with torch.inference_mode():
            for layer, pool in pools.items():
                keys, values = self._of(layer, pool.keys, pool.values)
                keys[row, :, into] = pool.keys[page, :, place].transpose(0, 1)
                values[row, :, into] = pool.values[page, :, place].transpose(0, 1)

    def _of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's, made like (n, kv heads, n, width) keys and values."""
        if layer not in self.keys:
            for kept, kind in ((self.keys, key), (self.values, value)):
                kept[layer] = kind.new_zeros((self.rows, kind.shape[1], self.window, kind.shape[-1]))
        return self.keys[layer], self.values[layer]

    def step(self, places: NDArray[np.int64]) -> RingStep:
        """`places` are (rows,) positions of the new tokens, -1 where a row stands still."""
        at = np.maximum(places, 0)
        seen = np.arange(self.window) <= at[:, None]
        bias = np.where(seen, np.float32(0.0), np.float32(-np.inf))
        return RingStep(torch.from_numpy(bias)[:, None, None], torch.from_numpy(at % self.window))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, step: RingStep, scale: float) -> Tensor:
        """Attention of (rows, heads, 1, width) queries, whose own (rows, kv heads, 1, width) keys and values are stored first → (rows, 1, heads, width).
        Rows that stand still hold nothing of meaning.
        """
        keys, values = self._of(layer, key, value)
        every = torch.arange(self.rows)
        keys[every, :, step.into], values[every, :, step.into] = key[:, :, 0], value[:, :, 0]
        rows, heads, _, width = query.shape
        kv = keys.shape[1]
        asked = (query * scale).view(rows * kv, heads // kv, width)
        scores = torch.bmm(asked, keys.flatten(0, 1).transpose(1, 2)).view(rows, kv, heads // kv, self.window)
        shares = torch.softmax(scores.add_(step.bias), -1)
        return torch.bmm(shares.view(rows * kv, heads // kv, self.window), values.flatten(0, 1)).view(rows, 1, heads, -1)
