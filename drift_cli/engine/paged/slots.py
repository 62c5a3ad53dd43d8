"""Slots on a GPU: pages of keys and values, a CUDA graph for a step of all rows and one for every size of chunk.

The host queues work and looks at what came of it one step later, so that the device never waits for it: step n + 1 is queued before the log of step n is read.
A row that ended in step n stands still in step n + 1.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.contract import Incident, is_out_of_memory, not_finite
from drift_cli.engine.paged.decode import ACTIVE, BAD, COUNT, IDS, Begin, Rows, compiled, step
from drift_cli.engine.paged.device import Copy, Graph, captured, to_host
from drift_cli.engine.paged.encode import LARGEST, Arriving, Encoder, pieces, told
from drift_cli.engine.paged.network import paged
from drift_cli.engine.paged.pages import Pages, grouping, page_numbers
from drift_cli.engine.plain.attention import layout_of
from drift_cli.engine.sampling import uniforms
from drift_cli.engine.slots import PAGE, Draw, Layout
from drift_cli.models import LoadedModel, text_config
from drift_cli.spec import Part, Sampling, Segment

_LAG = 2
"""Steps that may be queued and not yet looked at when a row's pages are reserved."""
_TRIES = 4


@dataclass(frozen=True)
class _Look:
    """A log on its way to the host: what rows had said after step `number`."""

    number: int
    log: Copy


@dataclass
class _Row:
    """What the host knows of a row that has begun."""

    draw: Draw
    since: int
    """Steps that were queued before it began: what earlier logs say is of another reply."""
    said: int = 1


@dataclass
class PagedSlots:
    """See the module's docstring and `slots.Slots`."""

    model: LoadedModel
    layers: tuple[int, ...]
    rows: int
    layout: Layout
    pages: Pages
    state: Rows
    begins: Begin
    stepped: Tensor
    """(rows, vocabulary) logits of the last step."""
    encoder: Encoder
    step_graph: Graph
    begin_graph: Graph
    held: ExitStack
    """What is undone at the end."""
    remark: str | None
    """What about these slots is not as one might hope."""
    begun: dict[int, _Row] = field(default_factory=dict)
    queued: int = 0
    """Steps queued so far."""
    looks: deque[_Look] = field(default_factory=deque)
    seen: tuple[int, NDArray[Any]] | None = None
    """The newest log that was looked at, and the number of its step."""

    def encode(
        self, row: int, ids: Sequence[int], start: int, counted: int, hold: int | None = None, segments: Sequence[Segment] = ()
    ) -> Arriving | None:
        """See `slots.Slots.encode`."""
        return self._encode(self.encoder, row, ids, start, counted, hold, segments)

    def _encode(
        self, encoder: Encoder, row: int, ids: Sequence[int], start: int, counted: int, hold: int | None, segments: Sequence[Segment] = ()
    ) -> Arriving | None:
        kinds = told(segments, len(ids)) if segments else None
        self.begun.pop(row, None)
        if start == 0:
            self.pages.release(row)
        for index, piece in enumerate(pieces(ids, start, counted)):
            self.pages.trim(row, piece.start if hold is None else min(piece.start, hold))
            self.pages.reserve(row, piece.start + len(piece.ids))
            self.pages.flush()
            encoder.run(row, piece, fresh=index == 0, told=kinds)
        return encoder.arriving(counted, segments) if counted else None

    def every_layer(self, row: int, ids: Sequence[int], start: int, counted: int) -> NDArray[np.float32]:
        """See `slots.Slots.every_layer`: the same kernels, neither compiled nor captured."""
        encoder = Encoder(self.model, self.pages, tuple(range(self.model.card.layers + 1)), None)
        # Once its graphs are captured, the network has its own attention again; without graphs it never lost ours.
        with paged(self.model, self.pages) if self.step_graph.graph is not None else nullcontext():
            made = self._encode(encoder, row, ids, start, counted, start)
            assert made is not None
            return made.value()[Part.ANSWER]

    def say(self, row: int, token: int) -> None:
        """See `slots.Slots.say`."""
        self.state.ids[row] = token

    def newest(self, row: int) -> Tensor:
        """See `slots.Slots.newest`."""
        begun = self.begun.get(row)
        return self.encoder.logits[0] if begun is None or begun.since == self.queued else self.stepped[row]

    def begin(self, row: int, draw: Draw) -> None:
        """See `slots.Slots.begin`."""
        self.begins.send(row, draw)
        self.begin_graph.replay()
        self.begun[row] = _Row(draw, self.queued)

    def step(self) -> None:
        """See `slots.Slots.step`. Queues a step; what came of it is known one step later."""
        newest = -1 if self.seen is None else self.seen[0]
        for row, it in self.begun.items():
            behind = self.queued - max(newest, it.since) + _LAG
            self.pages.reserve(row, it.draw.place + min(it.said + behind, it.draw.limit))
        self.pages.flush()
        self.step_graph.replay()
        self.queued += 1
        self.looks.append(_Look(self.queued, to_host(self.state.log)))

    def _look(self) -> None:
        """Read the log of the step before the newest; wait for it if need be."""
        while len(self.looks) > 1:
            look = self.looks.popleft()
            self.seen = (look.number, look.log.numpy())
        if self.seen is not None:
            number, log = self.seen
            for row, it in self.begun.items():
                if number > it.since:
                    it.said = int(log[row, COUNT])
                    if log[row, BAD]:
                        raise not_finite(it.draw.rollout, it.draw.turn)

    def ended(self) -> Iterable[int]:
        """See `slots.Slots.ended`."""
        self._look()
        return [row for row in self.begun if self._known(row) and not self.seen[1][row, ACTIVE]] if self.seen is not None else []

    def _known(self, row: int) -> bool:
        return self.seen is not None and self.seen[0] > self.begun[row].since

    def said(self, row: int) -> list[int]:
        """See `slots.Slots.said`."""
        if self.seen is None or not self._known(row):
            return []
        return [int(i) for i in self.seen[1][row, IDS : IDS + self.begun[row].said]]

    def free(self, row: int) -> None:
        """See `slots.Slots.free`."""
        self.begun.pop(row, None)
        self.state.log[row, ACTIVE].fill_(0)
        self.pages.release(row)

    def close(self) -> None:
        """See `slots.Slots.close`."""
        self.held.close()
        self.encoder.graphs.clear()
        del self.step_graph, self.begin_graph, self.pages, self.encoder, self.begins, self.state, self.stepped
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
            torch.cuda.empty_cache()


def paged_slots(
    model: LoadedModel,
    layers: tuple[int, ...],
    filters: Sampling,
    max_new_tokens: int,
    rows: int,
    longest: int | None,
    report: Callable[[Incident], None],
    *,
    segmented: bool = False,
) -> PagedSlots | None:
    """Paged slots that take what memory is free; None, with a sentence, where the network cannot be captured or its layers differ in shape. `segmented`
    where replies may have segments.
    """
    started = time.monotonic()
    layout = layout_of(model)
    why = None if layout.uniform else "its layers keep keys and values of different shapes"
    if why is None:
        most = min(longest or model.card.context, model.card.context)
        made, why = _made(model, layers, filters, max_new_tokens, rows, most, layout, segmented)
        if made is not None:
            took, held = time.monotonic() - started, made.pages.count * made.pages.pool[0].nbytes
            report(Incident("set-up", f"{rows} slots over {held / 1e9:.1f} GB of pages, ready in {took:.0f} s"))
            if made.remark is not None:
                report(Incident("not-compiled", made.remark))
            return made
    _forget()
    report(Incident("plain-slots", f"decoding without CUDA graphs, which is slower: {why}"))
    return None


def _forget() -> None:
    """Give back what a failed attempt still holds: its traceback may keep tensors alive in a cycle."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _made(
    model: LoadedModel, layers: tuple[int, ...], filters: Sampling, tokens: int, rows: int, longest: int, layout: Layout, segmented: bool
) -> tuple[PagedSlots | None, str | None]:
    share = 1.0
    for _ in range(_TRIES):
        try:
            return _capture(model, layers, filters, tokens, rows, longest, layout, segmented, share), None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                return None, str(error).strip().splitlines()[0]
        _forget()
        share *= 0.9
    raise torch.OutOfMemoryError("out of memory while CUDA graphs were captured")


def _capture(
    model: LoadedModel,
    layers: tuple[int, ...],
    filters: Sampling,
    tokens: int,
    rows: int,
    longest: int,
    layout: Layout,
    segmented: bool,
    share: float,
) -> PagedSlots:
    device, dtype = model.device, next(model.network.parameters()).dtype
    pages = Pages(layout, rows, longest, _page_count(model, layout, rows, longest, share), device, dtype)
    state = Rows(rows, tokens, device, ends=torch.tensor(sorted(model.card.end_ids), device=device))
    memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    encoder = Encoder(model, pages, layers, memory, segmented)
    begins = Begin(state, filters, encoder.logits)
    stepped = encoder.logits.new_zeros((rows, encoder.logits.shape[1]))
    every = torch.arange(rows, dtype=torch.int32, device=device)
    held = ExitStack()
    held.enter_context(paged(model, pages))
    try:
        said = _capturing(model, encoder.capture, dynamic=True)
        graphs: list[Graph] = []
        fused = torch.compile(uniforms, dynamic=False) if device.type == "cuda" else None
        work = partial(step, model, pages, state, filters, every, stepped, fused)
        said = _capturing(model, lambda: graphs.append(captured(work, device, memory, warm=2)), dynamic=False) or said
        begin_graph = captured(begins.run, device, memory)
    except RuntimeError:
        held.close()
        raise
    if device.type == "cuda":
        held.close()  # a captured graph needs the network no more
    state.log.zero_()
    pages.pool[0].zero_()
    return PagedSlots(model, layers, rows, layout, pages, state, begins, stepped, encoder, graphs[0], begin_graph, held, said)


def _capturing(model: LoadedModel, capture: Callable[[], None], *, dynamic: bool) -> str | None:
    """Capture compiled blocks where they compile, else as they are, with a sentence why."""
    try:
        with compiled(model, dynamic=dynamic):
            capture()
        return None
    except torch._dynamo.exc.TorchDynamoException as error:
        why = str(error).strip().splitlines()[0]
    _forget()
    capture()
    return f"its blocks do not compile ({why}): it runs as it is, somewhat slower"


def _page_count(model: LoadedModel, layout: Layout, rows: int, longest: int, share: float) -> int:
    """As many pages as fit beside what a forward pass needs, and no more than all rows can fill."""
    groups = len(grouping(layout).windows)
    most = rows * groups * (-(-longest // PAGE)) + 1
    if model.device.type != "cuda":
        return most
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(model.device)
    card, itemsize = model.card, next(model.network.parameters()).itemsize
    vocabulary = int(text_config(card.config).vocab_size)
    # A chunk's hidden states of every layer, some 16 tensors of a block's inner width, and the draw's: logits in float32, sorted, with their order and sums.
    reserve = LARGEST * card.width * (card.layers + 64) * itemsize + rows * vocabulary * 40 + (768 << 20)
    count = min(int((free * share - reserve) // (page_numbers(layout) * itemsize)), most)
    if count < 2 * groups:
        raise torch.OutOfMemoryError("not enough memory for a single page of every layer")
    return count
