"""The attention of plain slots: stores what a forward pass brings in pages, and reads each row's own.

A forward pass is a chunk (new tokens of one row) or a step (one new token of every row that moves); whoever calls the network says which beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from drift_cli.engine.attention import forward, installed, refuse_unknown
from drift_cli.engine.plain_pages import Pool, Reading, Table, Together, attend_together
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
    """The attention of plain slots: stores what a forward pass brings, and reads each row's own."""

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows
        self.tables: dict[int, Table] = {}
        """By window."""
        self.pools: dict[int, Pool] = {}
        """By layer."""
        self.seen: dict[int, tuple[int, int, tuple[int, int]]] = {}
        """Of every layer met: its window (0 for none), its kv heads and their widths."""
        self._now: _Chunk | _Step = _Chunk(0, 0, 0)
        self._readings: dict[tuple[int, int], Reading] = {}
        self._together: dict[int, tuple[int, Together]] = {}
        self._fresh: set[int] = set()

    def chunk(self, row: int, start: int, end: int) -> None:
        """The next forward pass has one row's tokens at positions `start` to before `end`."""
        self._now = _Chunk(row, start, end)
        self._readings.clear()

    def step(self, lengths: list[int], moving: list[bool]) -> None:
        """The next forward pass has a token of every row, at the positions `lengths`."""
        self._now = _Step(lengths, moving)
        self._readings.clear()
        self._fresh.clear()

    def release(self, row: int) -> None:
        """Forget what a row holds."""
        for table in self.tables.values():
            table.release(row)

    def trim(self, row: int, start: int) -> None:
        """Let go of what no chunk that starts at `start` or later can come back for."""
        for table in self.tables.values():
            table.trim(row, start)

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
        if window not in self.tables:
            self.tables[window] = Table(window, self.rows)
        if layer not in self.pools:
            self.pools[layer] = Pool(key, value)
        table, pool = self.tables[window], self.pools[layer]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        now = self._now
        if isinstance(now, _Chunk):
            return self._row(query, key, value, table, pool, scale, now), None
        if query.device.type == "cpu" and query.dtype == torch.float32:
            plan = self._plan(table, now)
            pool.hold(table.count)
            pool.write(*plan.into, key[:, :, 0], value[:, :, 0])
            return attend_together(query, pool, plan, scale), None
        # Elsewhere products in one go may round differently with the number of rows.
        out = query.new_zeros((len(query), 1, query.shape[1], value.shape[-1]))
        for row, (at, moves) in enumerate(zip(now.lengths, now.moving, strict=True)):
            if moves:
                part = slice(row, row + 1)
                out[part] = self._row(query[part], key[part], value[part], table, pool, scale, _Chunk(row, at, at + 1))
        return out, None

    def _row(self, query: Tensor, key: Tensor, value: Tensor, table: Table, pool: Pool, scale: float, chunk: _Chunk) -> Tensor:
        """One row's (1, heads, new, width) queries → (1, new, heads, width)."""
        where = table.window, chunk.row
        if where not in self._readings:
            self._readings[where] = Reading.of(table, chunk.row, chunk.start, chunk.end, query.device)
        reading = self._readings[where]
        pool.hold(table.count)
        pool.write(*reading.into, key[0].transpose(0, 1), value[0].transpose(0, 1))
        keys, values = (kind[None, :, reading.span] for kind in pool.read(reading.pages))
        return _attend_row(query, keys, values, reading.mask, scale).transpose(1, 2)

    def _plan(self, table: Table, step: _Step) -> Together:
        """What all rows look at in layers of one window: made once a step."""
        version, before = self._together.get(table.window, (-1, None))
        if table.window not in self._fresh:
            for row, (at, moves) in enumerate(zip(step.lengths, step.moving, strict=True)):
                if moves:
                    table.reserve(row, at + 1)
            before = Together.of(table, step.lengths, step.moving, before, order=version != table.version)
            self._together[table.window] = table.version, before
            self._fresh.add(table.window)
        assert before is not None
        return before


def _attend_row(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Queries (1, heads, new, head width) of a row's newest tokens over all that they may see."""
    grouped = query.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped)


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
