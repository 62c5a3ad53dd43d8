"""Chunks of one row as CUDA graphs, one for each size that a piece of a chunk is rounded up to.

A chunk is cut into pieces of `LARGEST` tokens and a rest, each rounded up to a multiple of `GRAIN`: shapes depend on the chunk alone, so bits do not depend on
company. A piece stores its keys and values, adds the hidden states of the tokens that count to running sums, and leaves the logits of its last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.attention import forward
from drift_cli.engine.paged.device import Copy, Graph, captured, to_device, to_host
from drift_cli.engine.paged.network import Items, on
from drift_cli.engine.paged.pages import Pages
from drift_cli.models import LoadedModel, text_config

LARGEST, GRAIN = 512, 64
_ROW, _START, _TOKENS, _COUNTED, _FRESH, _HEAD = 0, 1, 2, 3, 4, 5
"""What a piece is told before its ids: row, position of its first token, tokens, how many of them are measured, whether sums begin anew."""


@dataclass(frozen=True)
class Piece:
    """Part of a chunk: its ids, the position of the first, how many of them are measured."""

    ids: Sequence[int]
    start: int
    counted: int

    @property
    def size(self) -> int:
        """What it is rounded up to."""
        return -(-len(self.ids) // GRAIN) * GRAIN


def pieces(ids: Sequence[int], start: int, counted: int) -> Iterator[Piece]:
    """A chunk's pieces, of which the first `counted` ids are measured."""
    for first in range(0, len(ids), LARGEST):
        part = ids[first : first + LARGEST]
        yield Piece(part, start + first, min(max(counted - first, 0), len(part)))


@dataclass
class Encoder:
    """Runs pieces. `layers` are the residual layers whose sums are kept."""

    model: LoadedModel
    pages: Pages
    layers: tuple[int, ...]
    memory: Any
    logits: Tensor = field(init=False)
    """(1, vocabulary) of the last piece's last token."""
    sums: Tensor = field(init=False)
    """(layers, width) float32."""
    given: dict[int, Tensor] = field(default_factory=dict)
    graphs: dict[int, Graph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device, card = self.model.device, self.model.card
        head = self.model.network.get_output_embeddings()
        vocabulary = int(text_config(card.config).vocab_size) if head is None else head.weight.shape[0]
        self.logits = torch.zeros((1, vocabulary), dtype=self.pages.dtype, device=device)
        self.sums = torch.zeros((len(self.layers), card.width), dtype=torch.float32, device=device)

    def capture(self) -> None:
        """Make the graphs. The network's attention must go to the pages meanwhile."""
        for size in range(LARGEST, 0, -GRAIN):
            self.given[size] = torch.zeros(size + _HEAD, dtype=torch.long, device=self.model.device)
            self.given[size][_TOKENS] = 1
            # Row 0's table is empty yet: what these trial runs write goes to page 0, which belongs to nobody.
            self.graphs[size] = captured(partial(self._piece, size), self.model.device, self.memory)

    def run(self, row: int, piece: Piece, *, fresh: bool) -> None:
        """Queue a piece. `fresh` where it is the first of its chunk."""
        numbers = np.zeros(piece.size + _HEAD, dtype=np.int64)
        numbers[:_HEAD] = row, piece.start, len(piece.ids), piece.counted, fresh
        numbers[_HEAD : _HEAD + len(piece.ids)] = piece.ids
        self.given[piece.size].copy_(to_device(numbers, self.model.device))
        self.graphs[piece.size].replay()

    def _piece(self, size: int) -> None:
        given = self.given[size]
        row, start, tokens, counted, fresh = (given[i] for i in range(_HEAD))
        at = torch.arange(size, device=given.device)
        places = torch.where(at < tokens, start + at, -1).int()
        bounds = torch.stack([start, start + tokens]).int()
        with on(Items(self.pages, row.int().expand(size).contiguous(), places, bounds)):
            out = forward(self.model, given[None, _HEAD:], (start + at)[None], output_hidden_states=True, logits_to_keep=(tokens - 1)[None])
        self.logits.copy_(out.logits[:, -1])
        states = self.model.residuals.of(out.hidden_states)
        measured = (at < counted)[:, None]
        for index, layer in enumerate(self.layers):
            part = torch.where(measured, states[layer][0].float(), 0.0).sum(0)
            self.sums[index] = torch.where(fresh > 0, part, self.sums[index] + part)


@dataclass(frozen=True)
class Arriving:
    """Residual means on their way to the host."""

    sums: Copy
    """(layers, width) float32."""
    counted: int

    def ready(self) -> bool:
        """Whether they have arrived."""
        return self.sums.ready()

    def value(self) -> NDArray[np.float32]:
        """(layers, width) float32; waits for them."""
        return np.asarray(self.sums.numpy() / np.float32(self.counted), dtype=np.float32)


def arriving(sums: Tensor, counted: int) -> Arriving:
    """Send sums to the host, behind the work that makes them."""
    return Arriving(to_host(sums), counted)
