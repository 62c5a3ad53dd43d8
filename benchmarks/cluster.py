"""Many workers on one run, simulated: discrete events, one per rollout that ends and per look at a cell.

A worker starts (its process, reading the manifest, its weights), then fills 48 rows with rollouts as `workers.queue` would: cells in an order of its own,
from a sample of its own on; a look at a cell is a listing good for 5 s, one that looks free is claimed, which fails where another was faster; once
nothing is free, what others hold is looked at for a twentieth of the time. While a worker looks, its GPU waits. Every step adds a token to each row and takes
a + b · rows seconds; a rollout ends when its tokens are made, and the next is looked for. A worker that finds nothing leaves once its rows are done.

A request takes the file system's latency, and the server answers so many a second, first come, first served: a worker's step in the store ends when both have
passed. Signs of life take their share of the server's rate. A rollout's commits, which the writer thread makes beside the engine, are laid to its end.

Left out: workers that die, damaged files, whoever watches, and everything a network does under overload. That clients keep folders and attributes for some
seconds is supposed: opening a folder on the way and asking for attributes are no requests.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FRESH, PAUSE, HEARTBEAT, BUDGET, REST = 5.0, 15.0, 15.0, 0.25, 20.0
"""As in `workers.queue` and `workers.leases`."""


@dataclass(frozen=True)
class Step:
    """A step in the store."""

    seconds: float
    """On the disk where it was measured."""
    requests: float


@dataclass(frozen=True)
class Costs:
    steps: Mapping[str, Step]
    start: float
    """Seconds of a worker's start, its model small."""


@dataclass(frozen=True)
class FileSystem:
    """A network file system."""

    latency: float
    """Seconds a request."""
    rate: float
    """Requests a second that its server answers."""
    bandwidth: float
    """Bytes a second that it reads."""


@dataclass(frozen=True)
class Gpu:
    """One H200 with an Olmo-3-7B, from docs/speed.md."""

    fixed: float = 6.0e-3
    """Seconds of a step that do not depend on rows: the weights (docs/speed.md, 12 and 48 rows at 512 and at 5,600 tokens)."""
    each: float = 0.0
    """Seconds of a step per row, chunks encoded in between included."""
    rows: int = 48
    setup: float = 5.0
    """Seconds, compile cache warm."""
    weights: float = 14.6e9
    """Bytes."""
    local: float = 3.0e9
    """Bytes a second from a node's own disk into its GPUs, all of a node together."""
    per_node: int = 8

    @classmethod
    def fitted(cls, lengths: Sequence[int], seconds: float = 112.3) -> Gpu:
        """With `each` so that the 48 rollouts of these lengths take as long as they were seen to take."""
        tokens, before, alive = 0.0, 0, len(lengths)
        for length in sorted(lengths):
            tokens, before, alive = tokens + (length - before) * alive, length, alive - 1
        return cls(each=(seconds - cls.fixed * max(lengths)) / tokens)

    def step(self, rows: int) -> float:
        """Seconds of a step."""
        return self.fixed + self.each * rows


@dataclass(frozen=True)
class Outcome:
    """A run, simulated. Shares are of all workers' time together."""

    workers: int
    seconds: float
    starting: float
    """Share: until the first look for a rollout."""
    stalled: float
    """Share: the GPU waited for the store."""
    thin: float
    """Share: what a full GPU could have made in the time in which rows were empty, and after the worker's last rollout."""
    busy: float
    """Share of the server's requests that were used."""
    collisions: int
    """Claims that failed since another worker was faster."""


class _Server:
    """Answers requests in the order in which they come."""

    def __init__(self, costs: Costs, files: FileSystem | None, workers: int) -> None:
        self.costs, self.files = costs, files
        self.free, self.asked = 0.0, 0.0
        beats = workers / HEARTBEAT * costs.steps["beat"].requests
        self.rate = 0.0 if files is None else max(files.rate - beats, files.rate / 100)

    def done(self, now: float, **steps: float) -> float:
        """When these steps, so many of each, one after the other, are done."""
        requests = sum(self.costs.steps[name].requests * times for name, times in steps.items())
        self.asked += requests
        if self.files is None:
            return now + sum(self.costs.steps[name].seconds * times for name, times in steps.items())
        self.free = max(self.free, now) + requests / self.rate
        return max(now + requests * self.files.latency, self.free)


@dataclass
class _Worker:
    order: list[int]
    firsts: list[int]
    place: int = 0
    """Of the cell in its order that it is at."""
    at: int = 0
    """Samples of that cell that were dealt with, counted from the worker's first."""
    held: int = 0
    """As it was listed: samples of the cell that are claimed, one bit each from the worker's first on; `ended` likewise."""
    ended: int = 0
    listed: float = -FRESH
    known: list[int] = field(default_factory=list)
    """Of each cell, samples that it knows to have ended, bits from sample 0 on; `holders`: those whose holder it has read."""
    holders: list[int] = field(default_factory=list)
    passed: set[int] = field(default_factory=set)
    """Cells with rollouts that others held."""
    again: float = 0.0
    first: bool = True
    """Whether it is in its first round."""
    began: float = 0.0
    until: float = 0.0
    """Of its latest look."""
    tokens: float = 0.0
    """Steps made: tokens of each row that was there all the time."""
    moment: float = 0.0
    rows: list[tuple[float, int, int]] = field(default_factory=list)
    """Tokens at which a rollout ends, its cell and sample."""
    thin: float = 0.0
    stalled: float = 0.0
    started: float = 0.0


@dataclass
class _World:
    workers: int
    cells: int
    samples: int
    lengths: Sequence[int]
    gpu: Gpu
    server: _Server
    reading: bool
    held: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    """Of each cell, samples that are claimed, and that have ended: bits."""
    collisions: int = 0

    def turned(self, bits: int, first: int) -> int:
        """Bits from sample 0 on as bits from sample `first` on."""
        return (bits >> first | bits << (self.samples - first)) & ((1 << self.samples) - 1)

    def look(self, worker: _Worker, now: float) -> tuple[float, tuple[int, int] | None, bool]:
        """One step of looking for a rollout: at most one cell. When it is done, what was claimed, and whether there are more cells to look at now."""
        if now < worker.again or (worker.place >= len(worker.order) and not worker.passed):
            return now, None, False
        if worker.place >= len(worker.order):
            worker.order, worker.passed, worker.place, worker.at, worker.first = sorted(worker.passed), set(), 0, 0, False
            worker.began = now
        elif now > worker.until:  # it did something else meanwhile
            worker.began = now
        worker.until, found, more = self.look_at_cell(worker, now)
        spent = worker.until - worker.began
        if not worker.first and found is None and more and spent > BUDGET:
            worker.again = max(worker.again, worker.until + REST * spent)
        return worker.until, found, more

    def look_at_cell(self, worker: _Worker, now: float) -> tuple[float, tuple[int, int] | None, bool]:
        """A look at the cell that a worker is at."""
        cell = worker.order[worker.place]
        first, lists = worker.firsts[cell], 0
        if now - worker.listed > FRESH or worker.at == 0:
            worker.held, worker.ended = self.turned(self.held[cell], first), self.turned(self.ended[cell], first)
            worker.listed, lists = now, 1
        rest = ((1 << self.samples) - 1) >> worker.at << worker.at
        free = rest & ~worker.held & ~worker.ended
        place = (free & -free).bit_length() - 1 if free else self.samples
        before = rest & ((1 << place) - 1)
        steps = {"list": lists, **self.passing(worker, cell, before)}
        worker.at = place + 1
        if not free:
            worker.place, worker.at = worker.place + 1, 0
            if worker.place >= len(worker.order):
                worker.again = now + (0.0 if worker.first else PAUSE)
            return self.server.done(now, **steps), None, True
        sample = (first + place) % self.samples
        if (self.held[cell] | self.ended[cell]) >> sample & 1:
            self.collisions += 1
            worker.passed.add(cell)
            return self.server.done(now, take=1, **steps), None, True
        self.held[cell] |= 1 << sample
        return self.server.done(now, take=1, open=1, **steps), (cell, sample), True

    def passing(self, worker: _Worker, cell: int, before: int) -> dict[str, int]:
        """What it takes to pass over these samples of a cell."""
        back = self.samples - worker.firsts[cell]
        held, ended = (self.turned(bits & before, back % self.samples) for bits in (worker.held, worker.ended))
        if held:
            worker.passed.add(cell)
        new = {"read": (ended & ~worker.known[cell]).bit_count(), "holder": (held & ~worker.holders[cell]).bit_count()}
        worker.known[cell] |= ended
        if self.reading or not worker.first:
            worker.holders[cell] |= held
        if self.reading:
            return new
        return {} if worker.first else {"holder": new["holder"]}


def simulate(
    workers: int,
    cells: int,
    samples: int,
    lengths: Sequence[int],
    gpu: Gpu,
    costs: Costs,
    files: FileSystem | None,
    *,
    shared_weights: bool,
    reading: bool = False,
) -> Outcome:
    """A run of cells × samples rollouts, their lengths drawn from `lengths`.

    With `reading`, whoever passes over a rollout reads, once, how far it is or who holds it. Without, listings say what has ended, and who holds what is read
    when nothing is free any more, for a small part of the time.
    """
    chance = random.Random(workers)
    world = _World(workers, cells, samples, lengths, gpu, _Server(costs, files, workers), reading)
    world.held, world.ended = [0] * cells, [0] * cells
    bandwidth = files.bandwidth if shared_weights and files is not None else gpu.local
    nodes = -(-workers // gpu.per_node)
    # A node's workers read one copy; nodes share the server, or each has a disk of its own.
    loading = gpu.weights * (nodes if shared_weights else 1) / bandwidth
    crew, events = [], []
    for number in range(workers):
        worker = _Worker(chance.sample(range(cells), cells), [chance.randrange(samples) for _ in range(cells)])
        worker.known, worker.holders = [0] * cells, [0] * cells
        worker.started = world.server.done(costs.start + loading + gpu.setup, plan=1)
        crew.append(worker)
        heapq.heappush(events, (worker.started, number, True))
        worker.moment = worker.started
    now = 0.0
    while events:
        now, number, looking = heapq.heappop(events)
        _advance(world, crew[number], now, looking, chance, events, number)
    whole = workers * now
    thin = sum(worker.thin + (now - worker.moment) for worker in crew)
    return Outcome(
        workers,
        now,
        sum(worker.started for worker in crew) / whole,
        sum(worker.stalled for worker in crew) / whole,
        thin / whole,
        0.0 if files is None else world.server.asked / (now * files.rate) + workers / HEARTBEAT * costs.steps["beat"].requests / files.rate,
        world.collisions,
    )


def _advance(
    world: _World, worker: _Worker, now: float, looking: bool, chance: random.Random, events: list[tuple[float, int, bool]], number: int
) -> None:
    """One event of a worker: a look for a rollout is due, or its next rollout ends."""
    gpu = world.gpu
    if not looking:
        passed = now - worker.moment
        rows = len(worker.rows)
        # Tokens a second that this many rows make, against those of a full GPU.
        worker.thin += passed * (1 - rows / gpu.step(rows) * gpu.step(gpu.rows) / gpu.rows)
        worker.tokens, cell, sample = heapq.heappop(worker.rows)
        world.held[cell] &= ~(1 << sample)
        world.ended[cell] |= 1 << sample
        worker.known[cell] |= 1 << sample
        world.server.done(now, commit=18, end=1)
    else:
        worker.stalled += now - worker.moment if now > worker.started else 0.0
    worker.moment = now
    if len(worker.rows) < gpu.rows:
        until, found, more = world.look(worker, now)
        if found is not None:
            heapq.heappush(worker.rows, (worker.tokens + chance.choice(world.lengths), *found))
        if more:
            heapq.heappush(events, (until, number, True))
            return
    if worker.rows:
        end = now + (worker.rows[0][0] - worker.tokens) * gpu.step(len(worker.rows))
        heapq.heappush(events, (end, number, False))
