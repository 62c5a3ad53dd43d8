"""Slots in plain torch, on any device: keys and values in pages, one token a step.

A row's attention runs over its own pages alone, so its bits do not depend on its company; all rows go through the rest of the network together, in a batch
whose number of rows never changes. A chunk's attention is its row's own; that of a step is one for all rows on a CPU in float32 (`step`), and row by
row elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.attention import forward, installed, last_logits
from drift_cli.engine.contract import not_finite
from drift_cli.engine.plain.attention import ATTENTION, Keeper, layout_of, put
from drift_cli.engine.sampling import draw, split_key, uniforms
from drift_cli.engine.slots import Draw, Layout
from drift_cli.models import LoadedModel
from drift_cli.probe import Means, pool_parts
from drift_cli.spec import Part, Sampling, Segment


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
class _Now:
    """Residual means that are there already."""

    means: Means

    def ready(self) -> bool:
        """Always."""
        return True

    def value(self) -> Means:
        """See `slots.Residual.value`."""
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
    stepped: Tensor | None = None
    """(rows, vocabulary) logits of the last step."""
    _open: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.layout = layout_of(self.model)
        self.keeper = Keeper(self.rows)
        self.slots = [Slot() for _ in range(self.rows)]
        self._open.enter_context(installed(self.model, ATTENTION, self.keeper.attend))

    def close(self) -> None:
        """See `slots.Slots.close`."""
        self._open.close()
        self.slots = []

    def encode(
        self, row: int, ids: Sequence[int], start: int, counted: int, hold: int | None = None, segments: Sequence[Segment] = ()
    ) -> _Now | None:
        """See `slots.Slots.encode`. It never raises `NoRoom`: torch says when memory is out."""
        return self._encode(row, ids, start, counted, hold, self.layers, segments)

    def every_layer(self, row: int, ids: Sequence[int], start: int, counted: int) -> NDArray[np.float32]:
        """See `slots.Slots.every_layer`."""
        made = self._encode(row, ids, start, counted, start, range(self.model.card.layers + 1))
        assert made is not None
        return made.value()[Part.ANSWER]

    def _encode(
        self,
        row: int,
        ids: Sequence[int],
        start: int,
        counted: int,
        hold: int | None,
        layers: Sequence[int],
        segments: Sequence[Segment] = (),
    ) -> _Now | None:
        slot = self.slots[row]
        slot.draw, slot.length = None, start + len(ids)
        if start == 0:
            self.keeper.release(row)
        tokens = torch.tensor([list(ids)], device=self.model.device)
        last = last_logits(self.model, len(ids))
        how = {**last, "output_hidden_states": True} if counted else last
        out = put(self.model, self.keeper, row, start, tokens, **how)
        self.logits = out.logits[:, -1]
        self.keeper.trim(row, start if hold is None else min(start, hold))
        return _Now(pool_parts(self.model.residuals.of(out.hidden_states), 0, (0, counted), segments, layers)) if counted else None

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
        self.stepped = logits
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

    def say(self, row: int, token: int) -> None:
        """See `slots.Slots.say`."""
        slot = self.slots[row]
        if slot.logits is not None:
            slot.ids, slot.logits = [token], None
        else:
            slot.ids[-1] = token

    def newest(self, row: int) -> Tensor:
        """See `slots.Slots.newest`."""
        slot = self.slots[row]
        return self.logits[0] if self.stepped is None or slot.draw is None or slot.logits is not None else self.stepped[row]

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
