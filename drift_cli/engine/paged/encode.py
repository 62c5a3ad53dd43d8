"""Chunks of one row as CUDA graphs, one for each size that a piece of a chunk is rounded up to.

A chunk is cut into pieces of `LARGEST` tokens and a rest, each rounded up to a multiple of `GRAIN`: shapes depend on the chunk alone, so bits do not depend on
company. A piece stores its keys and values, adds the hidden states of the tokens that count to running sums, and leaves the logits of its last token.

Where replies may have segments, the graphs have two more sums, of the answer's tokens and of the reasoning's, which each piece is told token by token. The sum
of all tokens that count is made as it is without them, so that a reply without segments has the same bits in either kind of graph.
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
from drift_cli.probe import Means
from drift_cli.spec import Part, Segment, spans

LARGEST, GRAIN = 512, 64
_ROW, _START, _TOKENS, _COUNTED, _FRESH, _HEAD = 0, 1, 2, 3, 4, 5
"""What a piece is told before its ids: row, position of its first token, tokens, how many of them are measured, whether sums begin anew."""
_PARTS = (Part.ANSWER, Part.REASONING)
"""Parts that have a sum of their own. A token of the first is told as 1, of the second as 2, any other as 0."""


@dataclass(frozen=True)
class Piece:
    """Part of a chunk: its ids, the position of the first, how many of them are measured."""

    ids: Sequence[int]
    start: int
    counted: int
    first: int = 0
    """Ids of the chunk before it."""

    @property
    def size(self) -> int:
        """What it is rounded up to."""
        return -(-len(self.ids) // GRAIN) * GRAIN


def pieces(ids: Sequence[int], start: int, counted: int) -> Iterator[Piece]:
    """A chunk's pieces, of which the first `counted` ids are measured."""
    for first in range(0, len(ids), LARGEST):
        part = ids[first : first + LARGEST]
        yield Piece(part, start + first, min(max(counted - first, 0), len(part)), first)


def told(segments: Sequence[Segment], size: int) -> NDArray[np.int64]:
    """(size,): of each token of a chunk whose measured tokens have these segments, which of `_PARTS` it belongs to, counted from 1; 0 for none."""
    numbers = np.zeros(size, dtype=np.int64)
    for number, part in enumerate(_PARTS, 1):
        for start, stop in spans(segments, part):
            numbers[start:stop] = number
    return numbers


@dataclass
class Encoder:
    """Runs pieces. `layers` are the residual layers whose sums are kept; `segmented` whether there are sums of the answer and of the reasoning too."""

    model: LoadedModel
    pages: Pages
    layers: tuple[int, ...]
    memory: Any
    segmented: bool = False
    logits: Tensor = field(init=False)
    """(1, vocabulary) of the last piece's last token."""
    sums: Tensor = field(init=False)
    """(layers, width) float32, over all tokens that count."""
    parts: Tensor = field(init=False)
    """(2, layers, width) float32, over those of each of `_PARTS`; (0, layers, width) where there are no segments."""
    given: dict[int, Tensor] = field(default_factory=dict)
    graphs: dict[int, Graph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device, card = self.model.device, self.model.card
        head = self.model.network.get_output_embeddings()
        vocabulary = int(text_config(card.config).vocab_size) if head is None else head.weight.shape[0]
        self.logits = torch.zeros((1, vocabulary), dtype=self.pages.dtype, device=device)
        self.sums = torch.zeros((len(self.layers), card.width), dtype=torch.float32, device=device)
        self.parts = torch.zeros((len(_PARTS) * self.segmented, *self.sums.shape), dtype=torch.float32, device=device)

    def capture(self) -> None:
        """Make the graphs. The network's attention must go to the pages meanwhile."""
        for size in range(LARGEST, 0, -GRAIN):
            self.given[size] = torch.zeros(_HEAD + size * (1 + self.segmented), dtype=torch.long, device=self.model.device)
            self.given[size][_TOKENS] = 1
            # Row 0's table is empty yet: what these trial runs write goes to page 0, which belongs to nobody.
            self.graphs[size] = captured(partial(self._piece, size), self.model.device, self.memory)

    def run(self, row: int, piece: Piece, *, fresh: bool, told: NDArray[np.int64] | None = None) -> None:
        """Queue a piece. `fresh` where it is the first of its chunk; `told` is that of the chunk, None where it has no segments."""
        numbers = np.zeros(_HEAD + piece.size * (1 + self.segmented), dtype=np.int64)
        numbers[:_HEAD] = row, piece.start, len(piece.ids), piece.counted, fresh
        numbers[_HEAD : _HEAD + len(piece.ids)] = piece.ids
        if piece.size not in self.given:  # never captured: the work is done at once
            self.given[piece.size] = torch.zeros(len(numbers), dtype=torch.long, device=self.model.device)
            self.graphs[piece.size] = Graph(partial(self._piece, piece.size), None)
        if told is not None:
            if not self.segmented:
                raise ValueError("a reply has segments, and these slots were made for replies without")
            numbers[_HEAD + piece.size :][: len(piece.ids)] = told[piece.first : piece.first + len(piece.ids)]
        self.given[piece.size].copy_(to_device(numbers, self.model.device))
        self.graphs[piece.size].replay()

    def _piece(self, size: int) -> None:
        given = self.given[size]
        row, start, tokens, counted, fresh = (given[i] for i in range(_HEAD))
        at = torch.arange(size, device=given.device)
        places = torch.where(at < tokens, start + at, -1).int()
        bounds = torch.stack([start, start + tokens]).int()
        with on(Items(self.pages, row.int().expand(size).contiguous(), places, bounds)):
            ids = given[None, _HEAD : _HEAD + size]
            out = forward(self.model, ids, (start + at)[None], output_hidden_states=True, logits_to_keep=(tokens - 1)[None])
        self.logits.copy_(out.logits[:, -1])
        states = self.model.residuals.of(out.hidden_states)
        self._add(self.sums, (at < counted)[:, None], states, fresh)
        for number, sums in enumerate(self.parts, 1):
            self._add(sums, (given[_HEAD + size :] == number)[:, None], states, fresh)

    def _add(self, sums: Tensor, measured: Tensor, hidden_states: Sequence[Tensor], fresh: Tensor) -> None:
        """Add the hidden states of the tokens that are measured, (tokens, 1) bool, to sums (layers, width), or begin them anew."""
        for index, layer in enumerate(self.layers):
            part = torch.where(measured, hidden_states[layer][0].float(), 0.0).sum(0)
            sums[index] = torch.where(fresh > 0, part, sums[index] + part)

    def arriving(self, counted: int, segments: Sequence[Segment]) -> Arriving:
        """Send the sums of the last chunk, `counted` of whose tokens were measured, to the host, behind the work that makes them."""
        sums = [(Part.ALL if segments else Part.ANSWER, counted, to_host(self.sums))]
        for number, part in enumerate(_PARTS if segments else ()):
            if count := sum(stop - start for start, stop in spans(segments, part)):
                sums.append((part, count, to_host(self.parts[number])))
        return Arriving(tuple(sums))


@dataclass(frozen=True)
class Arriving:
    """Residual means on their way to the host."""

    sums: tuple[tuple[Part, int, Copy], ...]
    """Of each part that has tokens: their number, and (layers, width) float32."""

    def ready(self) -> bool:
        """Whether they have arrived. The last one does so last."""
        return self.sums[-1][2].ready()

    def value(self) -> Means:
        """See `slots.Residual.value`; waits for them."""
        return {part: np.asarray(sums.numpy() / np.float32(count), dtype=np.float32) for part, count, sums in self.sums}
