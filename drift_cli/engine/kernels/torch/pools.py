"""Where the torch kernels keep keys and values: one layer's pages in one tensor, which grows with the number of pages."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from drift_cli.engine.layout import PAGE


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
