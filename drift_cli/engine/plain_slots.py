"""Slots in plain torch, on any device: a growing KV buffer per row and layer, attention row by row, one token a step.

A row's attention runs over its own keys alone, at its own length, so its bits do not depend on its company; all rows go through the rest of the network
together, in a batch whose number of rows never changes. Keys and values are (kv heads, tokens, head width) per layer and row, in blocks that are added as a
conversation grows. A windowed layer lets go of what no query can come back for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from drift_cli.engine.attention import forward, installed, refuse_unknown
from drift_cli.engine.contract import not_finite
from drift_cli.engine.sampling import draw, split_key, uniforms
from drift_cli.engine.slots import SLACK, Draw, Layout
from drift_cli.models import LoadedModel
from drift_cli.probe import pool
from drift_cli.spec import Sampling

ATTENTION = "drift_slots"
_BLOCK = 256
"""Tokens by which a row's buffers grow."""


@dataclass
class Buffer:
    """One layer's keys and values of one row: (kv heads, capacity, head width), of which those from position `first` on are there."""

    keys: Tensor
    values: Tensor
    first: int = 0

    def write(self, start: int, key: Tensor, value: Tensor) -> None:
        """Put (kv heads, new, head width) at position `start` on."""
        end = start + key.shape[1] - self.first
        if end > self.keys.shape[1]:
            self.keys, self.values = (_grown(held, start - self.first, end) for held in (self.keys, self.values))
        self.keys[:, start - self.first : end] = key
        self.values[:, start - self.first : end] = value

    def trim(self, first: int) -> None:
        """Let go of positions before `first`, where that frees a block or more."""
        gone = first - self.first
        if gone >= _BLOCK:
            self.keys, self.values = (held[:, gone:].clone() for held in (self.keys, self.values))
            self.first = first


def _grown(held: Tensor, length: int, end: int) -> Tensor:
    capacity = max(-(-end // _BLOCK) * _BLOCK, length + length // 4)
    made = held.new_zeros((held.shape[0], capacity, held.shape[2]))
    made[:, :length] = held[:, :length]
    return made


@dataclass
class Slot:
    """One row: its buffers by layer, how many tokens count, and the reply it is in the middle of."""

    length: int = 0
    buffers: dict[int, Buffer] = field(default_factory=dict)
    draw: Draw | None = None
    ids: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def moving(self) -> bool:
        """Whether a step gives it another token."""
        return self.draw is not None and not self.ended


class Keeper:
    """The attention of plain slots: stores what a forward pass brings, and reads each row's own."""

    def __init__(self) -> None:
        self.rows: Sequence[Slot | None] = ()
        """The slot of each row of the batch; None for a row that stands empty."""
        self.seen: dict[int, tuple[int, int, tuple[int, int]]] = {}
        """Of every layer met: its window (0 for none), its kv heads and their widths."""

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
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self.seen[layer] = (sliding_window or 0, key.shape[1], (key.shape[-1], value.shape[-1]))
        out = query.new_zeros((*query.shape[:-1], value.shape[-1]))
        for row, slot in enumerate(self.rows):
            if slot is not None:
                held = slot.buffers.get(layer)
                if held is None:
                    held = slot.buffers[layer] = Buffer(
                        key.new_zeros((key.shape[1], 0, key.shape[-1])), value.new_zeros((value.shape[1], 0, value.shape[-1]))
                    )
                held.write(slot.length, key[row], value[row])
                out[row] = _attend_row(query[row : row + 1], held, slot.length, scaling, sliding_window)[0]
        return out.transpose(1, 2), None


def _attend_row(query: Tensor, held: Buffer, length: int, scaling: float | None, window: int | None) -> Tensor:
    """Queries (1, heads, new, head width) of a row's tokens from position `length` on, over all that they may see."""
    new = query.shape[2]
    end = length + new
    first = 0 if window is None else max(0, length + 1 - window)
    keys, values = (kept[None, :, first - held.first : end - held.first] for kept in (held.keys, held.values))
    mask = None
    if new > 1:
        at = torch.arange(length, end, device=query.device)[:, None]
        seen = torch.arange(first, end, device=query.device)[None, :]
        mask = seen <= at if window is None else (seen <= at) & (seen > at - window)
    grouped = query.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=grouped)


def put(model: LoadedModel, keeper: Keeper, slot: Slot, ids: Tensor, **how: Any) -> Any:
    """Put (1, tokens) ids behind what a slot holds; the network's output over them."""
    keeper.rows = (slot,)
    positions = torch.arange(slot.length, slot.length + ids.shape[1], device=ids.device)[None]
    out = forward(model, ids, positions, **how)
    slot.length += ids.shape[1]
    return out


def layout_of(model: LoadedModel) -> Layout:
    """What the network keeps of a token, learnt by watching its attention on a single one."""
    keeper = Keeper()
    with installed(model, ATTENTION, keeper.attend):
        put(model, keeper, Slot(), torch.zeros((1, 1), dtype=torch.long, device=model.device))
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
    keeper: Keeper = field(default_factory=Keeper)
    layout: Layout = field(init=False)
    slots: list[Slot] = field(init=False)
    logits: Tensor = field(init=False)

    _open: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.layout = layout_of(self.model)
        self.slots = [Slot() for _ in range(self.rows)]
        self._open.enter_context(installed(self.model, ATTENTION, self.keeper.attend))

    def close(self) -> None:
        """See `slots.Slots.close`."""
        self._open.close()
        self.slots = []

    def encode(self, row: int, ids: Sequence[int], start: int, counted: int, hold: int | None = None) -> _Now | None:
        """See `slots.Slots.encode`. It never raises `NoRoom`: torch says when memory is out."""
        slot = self.slots[row]
        slot.draw, slot.length = None, start
        if start == 0:
            slot.buffers.clear()
        tokens = torch.tensor([list(ids)], device=self.model.device)
        how: dict[str, Any] = {"output_hidden_states": True} if counted else {}
        out = put(self.model, self.keeper, slot, tokens, **how)
        self.logits = out.logits[:, -1]
        self._trim(slot, start if hold is None else min(start, hold))
        return _Now(pool(out.hidden_states, 0, (0, counted), self.layers)) if counted else None

    def _trim(self, slot: Slot, start: int) -> None:
        for layer, window in enumerate(self.layout.windows):
            if window:
                slot.buffers[layer].trim(start - window + 1 - SLACK)

    def begin(self, row: int, draw: Draw) -> None:
        """See `slots.Slots.begin`."""
        slot = self.slots[row]
        slot.draw, slot.ids, slot.ended = draw, [], False
        self._drawn([slot], self.logits)

    def step(self) -> None:
        """See `slots.Slots.step`. Rows that stand still are computed and thrown away, so that the shape never changes."""
        rows = [slot if slot.moving else None for slot in self.slots]
        self.keeper.rows = rows
        device = self.model.device
        last = torch.tensor([[0 if slot is None else slot.ids[-1]] for slot in rows], device=device)
        places = torch.tensor([[0 if slot is None else slot.length] for slot in rows], device=device)
        logits = forward(self.model, last, places).logits[:, -1]
        for slot in rows:
            if slot is not None:
                slot.length += 1
        self._drawn(rows, logits)

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
