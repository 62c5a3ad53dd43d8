"""Slots: rows of a KV cache in which rollouts live, the same on every device; what differs between devices is in `kernels`.

A slot is a row. What it holds is a function of the conversation and of its turn boundaries alone: `encode` puts a chunk behind the first `start` tokens,
replacing what decoding wrote there. Layers with a window keep only what a query may still come back for: nothing before `start - window + 1 - SLACK`.
All rows go through a step together, in a batch whose number of rows never changes; a row whose reply has ended stands still.

The host queues work and looks at what came of it later. Where kernels run ahead (`Kernels.ahead`), step n + 1 is queued before the log of step n is read, so
that the device never waits for the host; a row that ended in step n then stands still in step n + 1.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.attention import Watched, watched
from drift_cli.engine.chunks import LARGEST, Arriving, Chunks, pieces, told
from drift_cli.engine.contract import Incident, is_out_of_memory, not_finite
from drift_cli.engine.device import Copy, to_host
from drift_cli.engine.kernels import Kernels, Work
from drift_cli.engine.kernels.torch.backend import TorchKernels
from drift_cli.engine.kernels.triton.backend import TritonKernels
from drift_cli.engine.kernels.triton.memory import page_count
from drift_cli.engine.layout import Layout
from drift_cli.engine.plan import Draw
from drift_cli.engine.steps import ACTIVE, BAD, COUNT, IDS, Begin, Rows, Step
from drift_cli.models import LoadedModel
from drift_cli.spec import Part, Sampling, Segment

_TRIES = 4


@dataclass(frozen=True)
class _Look:
    """A log on its way to the host: what rows had said after step `number`."""

    number: int
    log: Copy


@dataclass
class _Begun:
    """What the host knows of a row that has begun."""

    draw: Draw
    since: int
    """Steps that were queued before it began: what earlier logs say is of another reply."""
    said: int = 1
    """Ids of its reply."""
    ids: list[int] = field(default_factory=list)
    """Those that somebody asked for."""


@dataclass
class Slots:
    """See the module's docstring. Calls are in order: what a later one reads, an earlier one has written. Made by `make_slots`."""

    model: LoadedModel
    layers: tuple[int, ...]
    """Residual layers that `encode` pools."""
    rows: int
    layout: Layout
    kernels: Kernels
    state: Rows
    begins: Begin
    steps: Step
    chunks: Chunks
    step_work: Work
    begin_work: Work
    held: ExitStack
    """What is undone at the end."""
    remark: str | None
    """What about these slots is not as one might hope."""
    begun: dict[int, _Begun] = field(default_factory=dict)
    queued: int = 0
    """Steps queued so far."""
    looks: deque[_Look] = field(default_factory=deque)
    seen: tuple[int, NDArray[np.int32]] = (-1, np.zeros((0, 0), dtype=np.int32))
    """The number of the newest step that was looked at, and its log."""

    def encode(
        self, row: int, ids: Sequence[int], start: int, counted: int, hold: int | None = None, segments: Sequence[Segment] = ()
    ) -> Arriving | None:
        """Put a chunk behind a row's first `start` tokens; the mean residuals of its first `counted` tokens, None for 0.

        `hold` is the earliest position at which a following chunk may start, where that is before this chunk's end. `segments` are parts of the counted
        tokens: with them there are means of the answer, of the reasoning and of all counted tokens, without them one mean.

        Raises:
            NoRoom: the row cannot grow.
        """
        return self._encode(self.chunks, row, ids, start, counted, hold, segments)

    def _encode(
        self, chunks: Chunks, row: int, ids: Sequence[int], start: int, counted: int, hold: int | None, segments: Sequence[Segment] = ()
    ) -> Arriving | None:
        kinds, pages = told(segments, len(ids)) if segments else None, self.kernels.pages
        self.begun.pop(row, None)
        if start == 0:
            pages.release(row)
        for index, piece in enumerate(pieces(ids, start, counted)):
            pages.trim(row, piece.start if hold is None else min(piece.start, hold))
            pages.reserve(row, piece.start + len(piece.ids))
            self.kernels.flush()
            chunks.run(row, piece, fresh=index == 0, told=kinds)
        return chunks.arriving(counted, segments) if counted else None

    def every_layer(self, row: int, ids: Sequence[int], start: int, counted: int) -> NDArray[np.float32]:
        """(layers + 1, width) float32: `encode`, and the mean residuals of the first `counted` tokens at every layer. Slower, for trials: the same kernels,
        neither compiled nor captured.
        """
        chunks = Chunks(self.model, self.kernels, tuple(range(self.model.card.layers + 1)), self.chunks.logits)
        # Once its work is captured, the network has its own attention again.
        with nullcontext() if self.step_work.graph is None else self.kernels.attending():
            made = self._encode(chunks, row, ids, start, counted, start)
            assert made is not None
            return made.value()[Part.ANSWER]

    def begin(self, row: int, draw: Draw) -> None:
        """Draw the first token of a reply from the logits of the chunk encoded last, which is the row's; `step` goes on with it."""
        self.begins.send(row, draw)
        self.begin_work.run()
        self.begun[row] = _Begun(draw, self.queued)

    def step(self) -> None:
        """One token for every row that has begun and not ended.

        Raises:
            NoRoom: a row cannot grow; none has moved.
        """
        for row, it in self.begun.items():
            # What is queued and not yet looked at may have moved a row on by as many tokens.
            behind = self.queued - max(self.seen[0], it.since) + 2 * self.kernels.ahead
            self.kernels.pages.reserve(row, it.draw.place + min(it.said + behind, it.draw.limit))
        self.kernels.flush()
        self.step_work.run()
        self.queued += 1
        self.looks.append(_Look(self.queued, to_host(self.state.log)))

    def say(self, row: int, token: int) -> None:
        """Put another token in the place of the newest one drawn in a row; the next `step` goes on with it."""
        self.state.ids[row] = token

    def newest(self, row: int) -> Tensor:
        """(vocabulary,) logits of a row's newest token: of its last step, or, before there is one, of the chunk encoded last."""
        begun = self.begun.get(row)
        return self.chunks.logits[0] if begun is None or begun.since == self.queued else self.steps.newest[row]

    def ended(self) -> Iterable[int]:
        """Rows whose reply has ended, as far as is known; each is named until `begin` or `free`."""
        self._look()
        return [row for row in self.begun if self._known(row) and not self.seen[1][row, ACTIVE]]

    def _look(self) -> None:
        """Read the logs of all steps but those that kernels run ahead; wait for them if need be."""
        while len(self.looks) > self.kernels.ahead:
            look = self.looks.popleft()
            self.seen = look.number, look.log.numpy()
        for row, it in self.begun.items():
            if self._known(row):
                it.said = int(self.seen[1][row, COUNT])
                if self.seen[1][row, BAD]:
                    raise not_finite(it.draw.rollout, it.draw.turn)

    def _known(self, row: int) -> bool:
        return self.seen[0] > self.begun[row].since

    def said(self, row: int) -> list[int]:
        """The ids of a row's reply so far, as far as is known."""
        it = self.begun[row]
        if self._known(row):
            it.ids.extend(self.seen[1][row, IDS + len(it.ids) : IDS + it.said].tolist())
        return it.ids

    def free(self, row: int) -> None:
        """Forget a row."""
        self.begun.pop(row, None)
        self.state.log[row, ACTIVE].fill_(0)
        self.kernels.pages.release(row)

    def close(self) -> None:
        """Give memory back, and the network its own attention."""
        self.held.close()
        self.kernels.close()
        del self.step_work, self.begin_work, self.chunks, self.begins, self.steps, self.state
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
            torch.cuda.empty_cache()


def make_slots(
    model: LoadedModel,
    layers: tuple[int, ...],
    filters: Sampling,
    max_new_tokens: int,
    rows: int,
    *,
    longest: int | None = None,
    segmented: bool = False,
    backend: str | None = None,
    report: Callable[[Incident], None] = lambda incident: None,
) -> Slots:
    """`rows` slots for a model, which has their attention until they are closed, or until all work is captured.

    Args:
        layers: residual layers to pool.
        longest: the most tokens that a conversation may come to have, where that is known to be less than the context.
        segmented: whether replies may have segments.
        backend: `torch` or `triton`; where None, Triton on a GPU if the network can be captured there, else torch, with a report that says why.

    Raises:
        ValueError: `triton` was asked for and is not for this network.
        RuntimeError: out of memory.
    """
    given = _Given(model, layers, filters, max_new_tokens, rows, segmented, watched(model))
    if backend == "triton" or (backend is None and model.device.type == "cuda"):
        made, why = _on_triton(given, min(longest or model.card.context, model.card.context), report)
        if made is not None:
            return made
        if backend is not None:
            raise ValueError(why)
        _forget()
        report(Incident("plain-slots", f"decoding without CUDA graphs, which is slower: {why}"))
    return given.made(TorchKernels(model, given.seen.layout, rows))


@dataclass(frozen=True)
class _Given:
    """What slots are made of, whatever the kernels."""

    model: LoadedModel
    layers: tuple[int, ...]
    filters: Sampling
    max_new_tokens: int
    rows: int
    segmented: bool
    seen: Watched

    def made(self, kernels: Kernels) -> Slots:
        """Slots over these kernels, with all work captured that they capture."""
        model, device, logits = self.model, self.model.device, torch.zeros_like(self.seen.logits)
        state = Rows(self.rows, self.max_new_tokens, device, ends=torch.tensor(sorted(model.card.end_ids), device=device))
        chunks = Chunks(model, kernels, self.layers, logits, self.segmented or not kernels.static)
        begins = Begin(state, self.filters, logits)
        steps = Step(model, kernels, state, self.filters, logits.new_zeros((self.rows, logits.shape[1])))
        held, works = ExitStack(), list[Work]()
        held.enter_context(kernels.attending())
        try:
            said = _capturing(kernels, chunks.capture, dynamic=True)
            said = _capturing(kernels, lambda: works.append(kernels.capture(steps.run, warm=2)), dynamic=False) or said
            begin = kernels.capture(begins.run)
        except RuntimeError:
            held.close()
            raise
        if works[-1].graph is not None:
            held.close()  # a captured graph needs the network no more
        state.log.zero_()
        kernels.settle()
        return Slots(model, self.layers, self.rows, self.seen.layout, kernels, state, begins, steps, chunks, works[-1], begin, held, said)


def _capturing(kernels: Kernels, capture: Callable[[], None], *, dynamic: bool) -> str | None:
    """Capture compiled blocks where they compile, else as they are, with a sentence why."""
    try:
        with kernels.compiled(dynamic=dynamic):
            capture()
        return None
    except torch._dynamo.exc.TorchDynamoException as error:
        why = str(error).strip().splitlines()[0]
    _forget()
    capture()
    return f"its blocks do not compile ({why}): it runs as it is, somewhat slower"


def _on_triton(given: _Given, longest: int, report: Callable[[Incident], None]) -> tuple[Slots | None, str | None]:
    """Slots on Triton kernels that take what memory is free; None, with a sentence, where the network cannot be captured or its layers differ in shape."""
    started, layout, dtype = time.monotonic(), given.seen.layout, given.seen.dtype
    if not layout.uniform:
        return None, "its layers keep keys and values of different shapes"
    for attempt in range(_TRIES):
        try:
            count = page_count(given.model, layout, given.rows, longest, 0.9**attempt, LARGEST, dtype.itemsize)
            kernels = TritonKernels(given.model, layout, given.rows, longest, count, dtype)
            made = given.made(kernels)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                return None, str(error).strip().splitlines()[0]
        else:
            took, held = time.monotonic() - started, kernels.pool.nbytes
            report(Incident("set-up", f"{given.rows} slots over {held / 1e9:.1f} GB of pages, ready in {took:.0f} s"))
            if made.remark is not None:
                report(Incident("not-compiled", made.remark))
            return made, None
        _forget()
    raise torch.OutOfMemoryError("out of memory while CUDA graphs were captured")


def _forget() -> None:
    """Give back what a failed attempt still holds: its traceback may keep tensors alive in a cycle."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
