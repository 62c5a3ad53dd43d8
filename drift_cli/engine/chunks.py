"""Chunks of one row: their keys and values, their residual means, and the logits of their last token.

A chunk is cut into pieces of `LARGEST` tokens and a rest, each padded to a multiple of the kernels' grain: shapes depend on the chunk alone, so bits do not
depend on other rows. A piece stores its keys and values, adds the hidden states of the tokens that count to running sums, and leaves the logits of its last
token. Where kernels capture work, there is a graph for every size of a piece.

Where replies may have segments, there are two more sums, of the answer's tokens and of the reasoning's, which each piece is told token by token. The sum of all
tokens that count is made as it is without them, so that a reply without segments has the same bits either way. Where a part is not stood for by all its tokens
(`Pool`), every part has such a sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.attention import forward, last_logits, logits_at
from drift_cli.engine.device import Copy, to_device, to_host
from drift_cli.engine.kernels import Batch, Kernels, Work, repeatable
from drift_cli.engine.pooling import Means
from drift_cli.models import LoadedModel
from drift_cli.pool import MEAN, Pool, part_ranges
from drift_cli.spec import Part, Segment

LARGEST = 512
"""Tokens of a piece."""
_ROW, _START, _TOKENS, _COUNTED, _FRESH, _HEAD = 0, 1, 2, 3, 4, 5
"""What a piece is told before its ids: row, position of its first token, tokens, how many of them are measured, whether sums begin anew."""
_PARTS = (Part.ANSWER, Part.REASONING, Part.ALL)
"""Parts that may have a sum of their own, the last only where all its tokens are not what stands for it. What a token counts for is told in bits: 1, 2, 4."""


@dataclass(frozen=True)
class Piece:
    """Part of a chunk: its ids, the position of the first, how many of them are measured."""

    ids: Sequence[int]
    start: int
    counted: int
    first: int = 0
    """Ids of the chunk before it."""


def pieces(ids: Sequence[int], start: int, counted: int) -> Iterator[Piece]:
    """A chunk's pieces, of which the first `counted` ids are measured."""
    for first in range(0, len(ids), LARGEST):
        part = ids[first : first + LARGEST]
        yield Piece(part, start + first, min(max(counted - first, 0), len(part)), first)


@dataclass
class Chunks:
    """Runs pieces. `layers` are the residual layers whose sums are kept; `segmented` whether there are sums of the answer and of the reasoning too."""

    model: LoadedModel
    kernels: Kernels
    layers: tuple[int, ...]
    logits: Tensor
    """(1, vocabulary) of the last piece's last token."""
    segmented: bool = False
    pool: Pool = MEAN
    sums: Tensor = field(init=False)
    """(layers, width) float32, over all tokens that count."""
    parts: Tensor = field(init=False)
    """(parts, layers, width) float32, over those of each of the first `_PARTS`: none, two, or all three."""
    given: dict[int, Tensor] = field(default_factory=dict)
    """By size: what a captured piece is told."""
    captured: dict[int, Work] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.layers), self.model.card.width)
        self.sums = torch.zeros(shape, dtype=torch.float32, device=self.model.device)
        self.parts = torch.zeros((self.count, *shape), dtype=torch.float32, device=self.model.device)

    @property
    def count(self) -> int:
        """The number of sums of parts."""
        return 3 if self.pool != MEAN else 2 * self.segmented

    def told(self, size: int, counted: int, segments: Sequence[Segment]) -> NDArray[np.int64] | None:
        """(size,): what each token of a chunk counts for, whose first `counted` are measured and have these segments; None where that need not be told."""
        if not counted or (self.pool == MEAN and not segments):
            return None
        bits, found = np.zeros(size, dtype=np.int64), part_ranges(counted, segments, self.pool)
        for number, part in enumerate(_PARTS[: self.count]):
            for start, stop in found.get(part, ()):
                bits[start:stop] |= 1 << number
        return bits

    def capture(self) -> None:
        """Make every size ready. The network's attention must go to the pages meanwhile."""
        for size in range(LARGEST, 0, -self.kernels.grain):
            given = torch.zeros(_HEAD + size * (1 + (self.count > 0)), dtype=torch.long, device=self.model.device)
            given[_TOKENS] = 1
            # Row 0's table is empty yet: what these trial runs write goes to page 0, which belongs to nobody.
            work = self.kernels.capture(partial(self._piece, given, size, measured=True, parted=self.count > 0))
            if work.graph is None:
                return
            self.given[size], self.captured[size] = given, work

    def run(self, row: int, piece: Piece, *, fresh: bool, told: NDArray[np.int64] | None = None) -> None:
        """Queue a piece. `fresh` where it is the first of its chunk; `told` is that of the chunk."""
        size = -(-len(piece.ids) // self.kernels.grain) * self.kernels.grain
        numbers = np.zeros(_HEAD + size * (1 + (self.count > 0)), dtype=np.int64)
        numbers[:_HEAD] = row, piece.start, len(piece.ids), piece.counted, fresh
        numbers[_HEAD : _HEAD + len(piece.ids)] = piece.ids
        if told is not None:
            if not self.count:
                raise ValueError("a reply has segments, and these slots were made for replies without")
            numbers[_HEAD + size :][: len(piece.ids)] = told[piece.first : piece.first + len(piece.ids)]
        sent = to_device(numbers, self.model.device)
        if size in self.captured:
            self.given[size].copy_(sent)
            self.captured[size].run()
        else:
            with repeatable():
                self._piece(sent, size, measured=piece.counted > 0, parted=told is not None)

    def _piece(self, given: Tensor, size: int, *, measured: bool, parted: bool) -> None:
        row, start, tokens, counted, fresh = (given[i] for i in range(_HEAD))
        at = torch.arange(size, device=given.device)
        places = torch.where(at < tokens, start + at, -1).int()
        bounds = torch.stack([start, start + tokens]).int()
        last = logits_at(self.model, tokens - 1) if self.kernels.static else last_logits(self.model, size)
        how = {**last, "output_hidden_states": True} if measured else last
        with self.kernels.batch(Batch(row.int().expand(size).contiguous(), places, bounds)):
            out = forward(self.model, given[None, _HEAD : _HEAD + size], (start + at)[None], **how)
        self.logits.copy_(out.logits[:, -1] if last else out.logits.index_select(1, (tokens - 1)[None])[:, 0])
        if measured:
            states = self.model.residuals.of(out.hidden_states)
            self._add(self.sums, at < counted, states, fresh)
            for number, sums in enumerate(self.parts if parted else ()):
                self._add(sums, (given[_HEAD + size :] & (1 << number)) > 0, states, fresh)

    def _add(self, sums: Tensor, measured: Tensor, hidden_states: Sequence[Tensor], fresh: Tensor) -> None:
        """Add the hidden states of the tokens that are measured, (tokens,) bool, to sums (layers, width), or begin them anew."""
        for index, layer in enumerate(self.layers):
            states = hidden_states[layer][0].float()
            part = (torch.where(measured[:, None], states, 0.0) if self.kernels.static else states[measured]).sum(0)
            sums[index] = torch.where(fresh > 0, part, sums[index] + part)

    def arriving(self, counted: int, segments: Sequence[Segment]) -> Arriving:
        """Send the sums of the last chunk, `counted` of whose tokens were measured, to the host, behind the work that makes them."""
        sums = [(Part.ALL if segments else Part.ANSWER, counted, to_host(self.sums))] if self.pool == MEAN else []
        found = part_ranges(counted, segments, self.pool) if segments or self.pool != MEAN else {}
        for number, part in enumerate(_PARTS[: self.count]):
            if count := sum(stop - start for start, stop in found.get(part, ())):
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
        """See `rows.Residual.value`; waits for them."""
        return {part: np.asarray(sums.numpy() / np.float32(count), dtype=np.float32) for part, count, sums in self.sums}
