"""Slots in plain torch, on any device: keys and values in pages, one token a step.

A row's attention runs over its own pages alone, so its bits do not depend on its company; all rows go through the rest of the network together, in a batch
whose number of rows never changes. A chunk's attention is its row's own; that of a step is one for all rows on a CPU in float32 (`plain_pages`), and row by
row elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from drift_cli.engine.attention import forward, installed, refuse_unknown
from drift_cli.engine.contract import not_finite
from drift_cli.engine.plain_pages import Pool, Reading, Table, Together, attend_together
from drift_cli.engine.sampling import draw, split_key, uniforms
from drift_cli.engine.slots import Draw, Layout
from drift_cli.models import LoadedModel
from drift_cli.probe import pool
from drift_cli.spec import Sampling

ATTENTION = "drift_slots"


@dataclass
class Slot:
    """One row: how many tokens count, and the reply it is in the middle of."""

    length: int = 0
    draw: Draw | None = None
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    logits: Tensor | None = None
    """(1, vocabulary): what the first token of the reply is to be drawn from, until it is."""

    @property
    def moving(self) -> bool:
        """Whether a step gives it another token."""
        return self.draw is not None and not self.ended


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


@dataclass(frozen=True)
class _Now:
    """Residual means that are there already."""

    means: NDArray[np.float32]

    def ready(self) -> bool:
        """Always."""
        return True

    def value(self) -> NDArray[np.float32]:
        """(layers, width) float32."""
        return self.means


@dataclass
class PlainSlots:
    """See the module's docstring and `slots.Slots`."""

    model: LoadedModel
    layers: tuple[int, ...]
    filters: Sampling
    rows: int
    keeper: Keeper = field(init=False)
    layout: Layout = field(init=False)
    slots: list[Slot] = field(init=False)
    logits: Tensor = field(init=False)
    _last: dict[str, Any] = field(init=False)
    """Asks the network for the logits of a chunk's last token alone, where it can be asked."""
    _open: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.layout = layout_of(self.model)
        self.keeper = Keeper(self.rows)
        self.slots = [Slot() for _ in range(self.rows)]
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in signature(self.model.network.forward).parameters else {}
        self._open.enter_context(installed(self.model, ATTENTION, self.keeper.attend))

    def close(self) -> None:
        """See `slots.Slots.close`."""
        self._open.close()
        self.slots = []

    def encode(self, row: int, ids: Sequence[int], start: int, counted: int, hold: int | None = None) -> _Now | None:
        """See `slots.Slots.encode`. It never raises `NoRoom`: torch says when memory is out."""
        slot = self.slots[row]
        slot.draw, slot.length = None, start + len(ids)
        if start == 0:
            self.keeper.release(row)
        tokens = torch.tensor([list(ids)], device=self.model.device)
        how = {**self._last, "output_hidden_states": True} if counted else self._last
        out = put(self.model, self.keeper, row, start, tokens, **how)
        self.logits = out.logits[:, -1]
        self.keeper.trim(row, start if hold is None else min(start, hold))
        return _Now(pool(out.hidden_states, 0, (0, counted), self.layers)) if counted else None

    def begin(self, row: int, draw: Draw) -> None:
        """See `slots.Slots.begin`."""
        slot = self.slots[row]
        slot.draw, slot.ids, slot.ended, slot.logits = draw, [], False, self.logits

    def step(self) -> None:
        """See `slots.Slots.step`. Rows that stand still are computed and thrown away, so that the shape never changes."""
        self._begun()
        rows = [slot if slot.moving else None for slot in self.slots]
        if not any(rows):
            return
        lengths = [0 if slot is None else slot.length for slot in rows]
        self.keeper.step(lengths, [slot is not None for slot in rows])
        device = self.model.device
        last = torch.tensor([[0 if slot is None else slot.ids[-1]] for slot in rows], device=device)
        logits = forward(self.model, last, torch.tensor(lengths, device=device)[:, None]).logits[:, -1]
        for slot in rows:
            if slot is not None:
                slot.length += 1
        self._drawn(rows, logits)

    def _begun(self) -> None:
        """Draw the first tokens of replies that have just begun, all at once."""
        begun = [(slot, slot.logits) for slot in self.slots if slot.logits is not None]
        if begun:
            self._drawn([slot for slot, _ in begun], torch.cat([logits for _, logits in begun]))
        for slot, _ in begun:
            slot.logits = None

    def _drawn(self, rows: Sequence[Slot | None], logits: Tensor) -> None:
        """Give each row its next token from (rows, vocabulary) logits."""
        draws = [None if slot is None else slot.draw for slot in rows]
        for drawing, fine in zip(draws, torch.isfinite(logits.amax(-1)).tolist(), strict=True):
            if drawing is not None and not fine:
                raise not_finite(drawing.rollout, drawing.turn)
        device = logits.device
        keys = torch.tensor([(0, 0) if d is None else split_key(d.key) for d in draws], device=device)
        counts = [(0, 1, 0) if s is None or d is None else (d.rollout.sample, d.turn, len(s.ids)) for s, d in zip(rows, draws, strict=True)]
        samples, turns, tokens = torch.tensor(counts, device=device).unbind(-1)
        temperature = torch.tensor([0.0 if d is None else d.rollout.cell.temperature for d in draws], device=device)
        drawn = draw(logits, temperature, uniforms(keys, samples, turns, tokens), self.filters).tolist()
        for slot, drawing, token in zip(rows, draws, drawn, strict=True):
            if slot is not None and drawing is not None:
                slot.ids.append(int(token))
                ends = token in self.model.card.end_ids and not drawing.forced
                slot.ended = ends or len(slot.ids) >= drawing.limit

    def ended(self) -> Iterable[int]:
        """See `slots.Slots.ended`."""
        return [row for row, slot in enumerate(self.slots) if slot.ended]

    def said(self, row: int) -> list[int]:
        """See `slots.Slots.said`."""
        return self.slots[row].ids

    def free(self, row: int) -> None:
        """See `slots.Slots.free`."""
        self.slots[row] = Slot()
        self.keeper.release(row)
