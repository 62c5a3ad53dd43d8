"""Slots: rows of a KV cache in which rollouts live, the same on every device; what differs between devices is in `kernels`.

A slot is a row. What it holds is a function of the conversation and of its turn boundaries alone: `encode` puts a chunk behind the first `start` tokens,
replacing what decoding wrote there. Layers with a window keep only what a query may still come back for: nothing before `start - window + 1 - SLACK`.
All rows go through a step together, in a batch whose number of rows never changes; a row whose reply has ended stands still.

The host queues work and looks at what came of it later (`replies`): a row that ended in step n may stand still in step n + 1 before the host knows.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.attention import Watched, watched
from drift_cli.engine.chunks import LARGEST, Arriving, Chunks, pieces
from drift_cli.engine.contract import Incident, is_out_of_memory
from drift_cli.engine.device import to_host
from drift_cli.engine.kernels import Kernels
from drift_cli.engine.kernels.torch.backend import TorchKernels
from drift_cli.engine.kernels.triton.backend import TritonKernels
from drift_cli.engine.kernels.triton.memory import page_count
from drift_cli.engine.plan import Draw
from drift_cli.engine.replies import Replies
from drift_cli.engine.steps import ACTIVE, Begin, Rows, Step
from drift_cli.models import LoadedModel
from drift_cli.pool import MEAN, Pool
from drift_cli.spec import Part, Sampling, Segment

_TRIES = 4


class Slots:
    """See the module's docstring. Calls are in order: what a later one reads, an earlier one has written. `make_slots` makes them."""

    def __init__(
        self,
        model: LoadedModel,
        layers: tuple[int, ...],
        filters: Sampling,
        max_new_tokens: int,
        rows: int,
        *,
        segmented: bool,
        pool: Pool,
        seen: Watched,
        kernels: Kernels,
    ) -> None:
        """Over these kernels, with all work captured that they capture. `seen` is of the model; the rest is as `make_slots` takes it."""
        self.model = model
        self.layers = layers
        self.rows = rows
        self.layout = seen.layout
        self.kernels = kernels
        self.replies = Replies(kernels.ahead)
        logits, ends = torch.zeros_like(seen.logits), torch.tensor(sorted(model.card.end_ids), device=model.device)
        self.state = Rows(rows, max_new_tokens, model.device, ends=ends)
        self.chunks = Chunks(model, kernels, layers, logits, segmented or not kernels.static, pool)
        self.begins = Begin(self.state, filters, logits)
        self.steps = Step(model, kernels, self.state, filters, logits.new_zeros((rows, logits.shape[1])))
        with ExitStack() as undone:
            undone.enter_context(kernels.attending())
            self.remark = self._capture()
            # A captured graph needs the network no more, which has its own attention again.
            self.held = undone.pop_all() if self.step_work.graph is None else ExitStack()
        self.state.log.zero_()
        kernels.settle()

    def _capture(self) -> str | None:
        """Capture compiled blocks where they compile, else as they are, with a sentence why."""
        said = None
        for dynamic, capture in ((True, self.chunks.capture), (False, self._capture_step)):
            try:
                with self.kernels.compiled(dynamic=dynamic):
                    capture()
            except torch._dynamo.exc.TorchDynamoException as error:
                said = f"its blocks do not compile ({str(error).strip().splitlines()[0]}): it runs as it is, somewhat slower"
            else:
                continue
            _forget()
            capture()
        self.begin_work = self.kernels.capture(self.begins.run)
        return said

    def _capture_step(self) -> None:
        self.step_work = self.kernels.capture(self.steps.run, warm=2)

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
        kinds, pages = chunks.told(len(ids), counted, segments), self.kernels.pages
        self.replies.forget(row)
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
        self.replies.begin(row, draw)

    def step(self) -> None:
        """One token for every row that has begun and not ended.

        Raises:
            NoRoom: a row cannot grow; none has moved.
        """
        for row, end in self.replies.reach():
            self.kernels.pages.reserve(row, end)
        self.kernels.flush()
        self.step_work.run()
        self.replies.queue(to_host(self.state.log))

    def say(self, row: int, token: int) -> None:
        """Put another token in the place of the newest one drawn in a row; the next `step` goes on with it."""
        self.state.ids[row] = token

    def newest(self, row: int) -> Tensor:
        """(vocabulary,) logits of a row's newest token: of its last step, or, before there is one, of the chunk encoded last."""
        return self.steps.newest[row] if self.replies.stepped(row) else self.chunks.logits[0]

    def ended(self) -> Iterable[int]:
        """Rows whose reply has ended, as far as is known; each is named until `begin` or `free`."""
        return self.replies.ended()

    def said(self, row: int) -> list[int]:
        """The ids of a row's reply so far, as far as is known."""
        return self.replies.ids(row)

    def free(self, row: int) -> None:
        """Forget a row."""
        self.replies.forget(row)
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
    pool: Pool = MEAN,
    backend: str | None = None,
    report: Callable[[Incident], None] = lambda incident: None,
) -> Slots:
    """`rows` slots for a model, which has their attention until they are closed, or until all work is captured.

    Args:
        layers: residual layers to pool.
        longest: the most tokens that a conversation may come to have, where that is known to be less than the context.
        segmented: whether replies may have segments.
        pool: which tokens of a part stand for it.
        backend: `torch` or `triton`; where None, Triton on a GPU if the network can be captured there, else torch, with a report that says why.

    Raises:
        ValueError: `triton` was asked for and is not for this network.
        RuntimeError: out of memory.
    """
    seen = watched(model)
    over = partial(Slots, model, layers, filters, max_new_tokens, rows, segmented=segmented, pool=pool, seen=seen)
    if backend == "triton" or (backend is None and model.device.type == "cuda"):
        longest = min(longest or model.card.context, model.card.context)
        made = _on_triton(over, model, seen, rows, longest, report)
        if isinstance(made, Slots):
            return made
        if backend is not None:
            raise ValueError(made)
        _forget()
        report(Incident("plain-slots", f"decoding without CUDA graphs, which is slower: {made}"))
    return over(kernels=TorchKernels(model, seen.layout, rows))


def _on_triton(
    over: Callable[..., Slots], model: LoadedModel, seen: Watched, rows: int, longest: int, report: Callable[[Incident], None]
) -> Slots | str:
    """Slots on Triton kernels that take what memory is free; a sentence where the network cannot be captured or its layers differ in shape."""
    started = time.monotonic()
    if not seen.layout.uniform:
        return "its layers keep keys and values of different shapes"
    for attempt in range(_TRIES):
        try:
            count = page_count(model, seen.layout, rows, longest, 0.9**attempt, LARGEST, seen.dtype.itemsize)
            kernels = TritonKernels(model, seen.layout, rows, longest, count, seen.dtype)
            made = over(kernels=kernels)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                return str(error).strip().splitlines()[0]
        else:
            took, held = time.monotonic() - started, kernels.pool.nbytes
            report(Incident("set-up", f"{rows} slots over {held / 1e9:.1f} GB of pages, ready in {took:.0f} s"))
            if made.remark is not None:
                report(Incident("not-compiled", made.remark))
            return made
        _forget()
    raise torch.OutOfMemoryError("out of memory while CUDA graphs were captured")


def _forget() -> None:
    """Give back what a failed attempt still holds: its traceback may keep tensors alive in a cycle."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
