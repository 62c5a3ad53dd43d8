"""A decode step of all rows, and how a reply begins: network, draw, and the end of replies, all on the device.

Everything a step needs is on the device: each row's next token and its position, its generator key and counts, its temperature and limit. A step writes the
tokens it draws into a log; a row whose reply has ended stands still. `Begin` sets a row going from the logits of its last chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from drift_cli.engine.attention import forward
from drift_cli.engine.device import to_device
from drift_cli.engine.kernels import Batch, Kernels, Uniforms
from drift_cli.engine.plan import Draw
from drift_cli.engine.sampling import draw, split_key, uniforms
from drift_cli.models import LoadedModel
from drift_cli.spec import Sampling

ACTIVE, COUNT, BAD, IDS = 0, 1, 2, 3
"""Columns of the log: whether the row goes on, how many ids it has said, whether its logits were not finite, and the ids."""


@dataclass
class Rows:
    """The state of all rows, on the device."""

    size: int
    tokens: int
    """The most ids of a reply."""
    device: torch.device
    ids: Tensor = field(init=False)
    """(rows, 1) the token each row is to be given next."""
    places: Tensor = field(init=False)
    """(rows,) its position."""
    numbers: Tensor = field(init=False)
    """(rows, 6): key low, key high, sample, turn, limit, forced."""
    temperature: Tensor = field(init=False)
    log: Tensor = field(init=False)
    """(rows, 3 + tokens) int32."""
    ends: Tensor | None = None
    """The model's end tokens."""

    def __post_init__(self) -> None:
        self.ids = torch.zeros((self.size, 1), dtype=torch.long, device=self.device)
        self.places = torch.zeros(self.size, dtype=torch.long, device=self.device)
        self.numbers = torch.zeros((self.size, 6), dtype=torch.long, device=self.device)
        self.temperature = torch.zeros(self.size, dtype=torch.float32, device=self.device)
        self.log = torch.zeros((self.size, IDS + self.tokens), dtype=torch.int32, device=self.device)

    def ended(self, tokens: Tensor, counts: Tensor, numbers: Tensor) -> Tensor:
        """(n,) bool: whether replies end with their newest token."""
        assert self.ends is not None
        stops = (tokens[:, None] == self.ends).any(-1) & (numbers[:, 5] == 0)
        return stops | (counts >= numbers[:, 4])


@dataclass
class Step:
    """One token for every row that goes on."""

    model: LoadedModel
    kernels: Kernels
    rows: Rows
    filters: Sampling
    newest: Tensor
    """(rows, vocabulary), where the logits are left."""
    every: Tensor = field(init=False)
    """(rows,) int32, counting."""
    uniforms: Uniforms = field(init=False)

    def __post_init__(self) -> None:
        self.every = torch.arange(self.rows.size, dtype=torch.int32, device=self.rows.device)
        self.uniforms = self.kernels.fused(uniforms)

    def run(self) -> None:
        """Run the network on every row's newest token, draw the next, and see which replies end."""
        rows = self.rows
        active = rows.log[:, ACTIVE] > 0
        places = torch.where(active, rows.places, -1).int()
        with self.kernels.batch(Batch(self.every, places)):
            logits = forward(self.model, rows.ids, rows.places[:, None]).logits[:, -1]
        self.newest.copy_(logits)
        counts = rows.log[:, COUNT].long()
        u = self.uniforms(rows.numbers[:, :2], rows.numbers[:, 2], rows.numbers[:, 3], counts)
        tokens = draw(logits, rows.temperature, u, self.filters)
        tokens = torch.where(active, tokens, rows.ids[:, 0])
        column = torch.where(active, counts + IDS, IDS + rows.tokens - 1).clamp(max=IDS + rows.tokens - 1)[:, None]
        kept = rows.log.gather(1, column)
        rows.log.scatter_(1, column, torch.where(active[:, None], tokens[:, None].int(), kept))
        rows.log[:, COUNT] += active.int()
        rows.log[:, BAD] |= (active & ~torch.isfinite(logits.amax(-1))).int()
        rows.log[:, ACTIVE] = (active & ~rows.ended(tokens, counts + 1, rows.numbers) & (rows.log[:, BAD] == 0)).int()
        rows.ids.copy_(tokens[:, None])
        rows.places += active.long()


@dataclass
class Begin:
    """Sets a row going: draws the first token of its reply. `logits` is (1, vocabulary), where chunks leave theirs."""

    rows: Rows
    filters: Sampling
    logits: Tensor
    given: Tensor = field(init=False)
    """(8,): row, place, then `Rows.numbers`."""
    heat: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.given = torch.zeros(8, dtype=torch.long, device=self.rows.device)
        self.heat = torch.zeros(1, dtype=torch.float32, device=self.rows.device)

    def send(self, row: int, how: Draw) -> None:
        """Put what the next run needs where it finds it."""
        low, high = split_key(how.key)
        numbers = [row, how.place, low, high, how.rollout.sample, how.turn, how.limit, int(how.forced)]
        self.given.copy_(to_device(np.array(numbers, dtype=np.int64), self.rows.device))
        self.heat.copy_(to_device(np.array([how.rollout.cell.temperature], dtype=np.float32), self.rows.device))

    def run(self) -> None:
        """Draw, and write the row's state."""
        rows, row, numbers = self.rows, self.given[:1], self.given[None, 2:]
        u = uniforms(numbers[:, :2], numbers[:, 2], numbers[:, 3], torch.zeros_like(row))
        token = draw(self.logits, self.heat, u, self.filters)
        bad = ~torch.isfinite(self.logits.amax(-1))
        goes_on = ~rows.ended(token, torch.ones_like(row), numbers) & ~bad
        head = torch.stack([goes_on.int(), torch.ones_like(row).int(), bad.int(), token.int()], -1)
        rows.log[:, : IDS + 1].index_copy_(0, row, head)
        rows.ids.index_copy_(0, row, token[:, None])
        rows.places.index_copy_(0, row, self.given[1:2])
        rows.numbers.index_copy_(0, row, numbers)
        rows.temperature.index_copy_(0, row, self.heat)
