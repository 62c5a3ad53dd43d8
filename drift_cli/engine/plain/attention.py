"""The attention of plain slots: stores what a forward pass brings in pages, and reads each row's own.

A forward pass is a chunk (new tokens of one row) or a step (one new token of every row that moves); whoever calls the network says which beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drift_cli.engine.attention import forward, installed, refuse_unknown
from drift_cli.engine.plain.chunk import Reading, attend_row
from drift_cli.engine.plain.pages import Shelf
from drift_cli.engine.plain.ring import NARROW, Ring, Turn
from drift_cli.engine.plain.step import Together, attend_together
from drift_cli.engine.slots import Layout
from drift_cli.models import LoadedModel

ATTENTION = "drift_slots"


@dataclass(frozen=True)
class _Chunk:
    """New tokens of one row, at positions `start` to before `end`."""

    row: int
    start: int
    end: int


@dataclass(frozen=True)
class _Step:
    """A new token for every row that moves, at the position that its length says."""

    lengths: list[int]
    moving: list[bool]


class Keeper:
    """The attention of plain slots: stores what a forward pass brings, and reads each row's own.

    On a CPU in float32 all rows of a step attend in one go: over their pages, or over rings where the window is narrow. Elsewhere each attends by itself, since
    products in one go may round differently with the number of rows.
    """

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows
        self.shelves: dict[int, Shelf] = {}
        """By window: what chunks look at, and steps too where there is no ring."""
        self.rings: dict[int, Ring] = {}
        """By window: what steps look at."""
        self.ends = [-1] * rows
        """Tokens of a row that rings have gone along with; -1 where a chunk came since, or nothing."""
        self.seen: dict[int, tuple[int, int, tuple[int, int]]] = {}
        """Of every layer met: its window (0 for none), its kv heads and their widths."""
        self._now: _Chunk | _Step = _Chunk(0, 0, 0)
        self._readings: dict[tuple[int, int], Reading] = {}
        self._plans: dict[int, tuple[int, Together]] = {}
        self._fresh: set[int] = set()
        self._turns: dict[int, Turn] = {}

    def chunk(self, row: int, start: int, end: int) -> None:
        """The next forward pass has one row's tokens at positions `start` to before `end`."""
        self._now = _Chunk(row, start, end)
        self._readings.clear()
        self.ends[row] = -1

    def step(self, lengths: list[int], moving: list[bool]) -> None:
        """The next forward pass has a token of every row, at the positions `lengths`."""
        self._now = _Step(lengths, moving)
        self._readings.clear()
        self._fresh.clear()
        self._turns.clear()
        for row, (length, moves) in enumerate(zip(lengths, moving, strict=True)):
            if moves and self.ends[row] != length:
                for window, ring in self.rings.items():
                    ring.follow(row, self.shelves[window], length)
            self.ends[row] = length + 1 if moves else -1

    def release(self, row: int) -> None:
        """Forget what a row holds."""
        self.ends[row] = -1
        for shelf in self.shelves.values():
            shelf.release(row)

    def trim(self, row: int, start: int) -> None:
        """Let go of what no chunk that starts at `start` or later can come back for."""
        for shelf in self.shelves.values():
            shelf.trim(row, start)

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of (rows, heads, tokens, head width) queries over their own slots → (rows, tokens, heads, head width)."""
        refuse_unknown(attention_mask, kwargs)
        layer, window = int(module.layer_idx), sliding_window or 0  # type: ignore[arg-type]
        self.seen[layer] = (window, key.shape[1], (key.shape[-1], value.shape[-1]))
        self._make(window, query)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        now = self._now
        if isinstance(now, _Chunk):
            return self._row(layer, query, key, value, window, scale, now), None
        if _together(query):
            return self._all(layer, query, key, value, window, scale, now), None
        out = query.new_zeros((len(query), 1, query.shape[1], value.shape[-1]))
        for row, (at, moves) in enumerate(zip(now.lengths, now.moving, strict=True)):
            if moves:
                part = slice(row, row + 1)
                out[part] = self._row(layer, query[part], key[part], value[part], window, scale, _Chunk(row, at, at + 1))
        return out, None

    def _make(self, window: int, query: Tensor) -> None:
        """Have what layers of one window need."""
        if window not in self.shelves:
            self.shelves[window] = Shelf(self.rows, window)
            if 0 < window <= NARROW and _together(query):
                self.rings[window] = Ring(self.rows, window)

    def _all(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int, scale: float, step: _Step) -> Tensor:
        """All rows' (rows, heads, 1, width) queries → (rows, 1, heads, width)."""
        if window in self.rings:
            if window not in self._turns:
                self._turns[window] = self.rings[window].turn(step.lengths)
            return self.rings[window].attend(layer, query, key, value, self._turns[window], scale)
        shelf = self.shelves[window]
        plan = self._plan(shelf, step)
        pool = shelf.pool(layer, key, value)
        pool.write(*plan.into, key[:, :, 0], value[:, :, 0])
        return attend_together(query, pool, plan, scale)

    def _row(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int, scale: float, chunk: _Chunk) -> Tensor:
        """One row's (1, heads, new, width) queries → (1, new, heads, width)."""
        shelf, where = self.shelves[window], (window, chunk.row)
        if where not in self._readings:
            self._readings[where] = Reading.of(shelf.table, window, chunk.row, chunk.start, chunk.end, key)
        reading, pool = self._readings[where], shelf.pool(layer, key, value)
        pool.write(*reading.into, key[0].transpose(0, 1), value[0].transpose(0, 1))
        keys, values = (kind[None] for kind in pool.read(reading.pages))
        return attend_row(query, keys, values, reading.bands, scale).transpose(1, 2)

    def _plan(self, shelf: Shelf, step: _Step) -> Together:
        """What all rows look at in layers of one window: made once a step."""
        version, before = self._plans.get(shelf.window, (-1, None))
        if before is None or shelf.window not in self._fresh:
            for row, (at, moves) in enumerate(zip(step.lengths, step.moving, strict=True)):
                if moves:
                    shelf.table.reserve(row, at + 1)
            before = Together.of(shelf.table, shelf.window, step.lengths, step.moving, before, order=version != shelf.table.version)
            self._plans[shelf.window] = shelf.table.version, before
            self._fresh.add(shelf.window)
        return before


def _together(query: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.float32


def put(model: LoadedModel, keeper: Keeper, row: int, start: int, ids: Tensor, **how: Any) -> Any:
    """Put (1, tokens) ids behind the first `start` tokens that a row holds; the network's output over them."""
    end = start + ids.shape[1]
    keeper.chunk(row, start, end)
    return forward(model, ids, torch.arange(start, end, device=ids.device)[None], **how)


def layout_of(model: LoadedModel) -> Layout:
    """What the network keeps of a token, learnt by watching its attention on a single one."""
    keeper = Keeper()
    with installed(model, ATTENTION, keeper.attend):
        # Hidden states are asked for so that transformers puts its hooks in place now rather than while blocks are being compiled.
        put(model, keeper, 0, 0, torch.zeros((1, 1), dtype=torch.long, device=model.device), output_hidden_states=True)
    seen = [keeper.seen[layer] for layer in sorted(keeper.seen)]
    return Layout(tuple(s[0] for s in seen), tuple(s[1] for s in seen), tuple(s[2] for s in seen))
