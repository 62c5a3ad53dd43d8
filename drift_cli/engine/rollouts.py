"""The slots engine: every rollout advances by itself, and one encode per turn does three jobs.

A rollout lives in a slot. Its reply is decoded a token at a time in one batch of a fixed number of rows together with the other slots' replies; when it
ends, its ids and the next user turn are encoded as one chunk on top of the slot's cache. That chunk replaces the keys and values that decoding wrote, yields
the residual means that are measured, and gives the logits of the next reply's first token. A resumed rollout encodes the same chunks again, so what follows
does not depend on whether it was interrupted, nor on the order, the company or the number of its neighbours beyond the fixed number of rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.chat import common_prefix
from drift_cli.engine.contract import Incident, Job, Reply, Stopped, finish_of, is_out_of_memory, no_memory, not_finite, too_long
from drift_cli.engine.sampling import draw, split_key, uniforms
from drift_cli.engine.slots import Slot, SlotCache, forward, install, release, step
from drift_cli.models import LoadedModel
from drift_cli.probe import pool
from drift_cli.spec import Finish, Sampling


@dataclass
class _Live:
    """A job in a slot, in the middle of a reply."""

    job: Job
    slot: Slot
    ids: list[int] = field(default_factory=list)


@dataclass
class SlotEngine:
    """See the module's docstring. `layers` are the residual layers to pool; `batch` is the number of slots, and of rows of every decode step."""

    model: LoadedModel
    layers: tuple[int, ...]
    filters: Sampling
    max_new_tokens: int
    batch: int = 8
    name: str = field(default="slots", init=False)
    needs_company: bool = field(default=False, init=False)

    def run(self, jobs: Iterable[Job], stop: Callable[[], bool], report: Callable[[Incident], None]) -> Iterator[Reply]:
        """See `contract.Engine.run`."""
        before = self.model.network.config._attn_implementation
        cache = install(self.model)
        try:
            yield from _Schedule(self, cache, iter(jobs), stop, report).replies()
        finally:
            release(self.model, before)


@dataclass
class _Schedule:
    """One call of `run`: the slots in use, and what waits."""

    engine: SlotEngine
    cache: SlotCache
    jobs: Iterator[Job]
    stop: Callable[[], bool]
    report: Callable[[Incident], None]
    live: list[_Live | None] = field(init=False)
    waiting: deque[Job] = field(default_factory=deque)
    """Jobs that lost their slot to a lack of memory; they come before new ones."""

    def __post_init__(self) -> None:
        self.live = [None] * self.engine.batch

    def replies(self) -> Iterator[Reply]:
        """Fill free slots, decode a token, finish what ended, until nothing is left."""
        while True:
            yield from self._admit()
            if not any(self.live):
                return
            self._remembering(self._decode)
            for place, live in enumerate(list(self.live)):
                if live is not None and self._holds(place, live) and self._ended(live):
                    yield from self._finish(place, live)

    def _admit(self) -> Iterator[Reply]:
        for place in range(len(self.live)):
            while place < len(self.live) and self.live[place] is None:
                job = self.waiting.popleft() if self.waiting else next(self.jobs, None)
                if job is None:
                    return
                if job.ended:
                    continue
                if too_long(job, self.engine.max_new_tokens, self.engine.model.card.context):
                    yield self._context(job)
                    continue
                live = self._remembering(partial(self._start, job), job)
                if live is not None:
                    self.live[place] = live
                    if self._ended(live):
                        yield from self._finish(place, live)

    def _start(self, job: Job) -> _Live:
        """Encode a conversation so far, chunk by chunk as it was made, and draw the first token of its next reply."""
        live = _Live(job, Slot())
        prompts = [*(prompt for prompt, _ in job.dialogue.past), tuple(job.dialogue.prompt)]
        logits = self._encode(live.slot, prompts[0], 0)[1]
        for (prompt, content), following in zip(job.dialogue.past, prompts[1:], strict=True):
            logits = self._turn(live.slot, prompt, content, following)[1]
        self._first(live, logits)
        return live

    def _finish(self, place: int, live: _Live) -> Iterator[Reply]:
        """Measure a reply that ended, hand it over, and go on to the next user turn or free the slot."""
        done = self._remembering(partial(self._measured, live), live.job)
        if done is None:
            self._free(place, live)
            return
        reply, logits = done
        yield reply
        job = live.job
        if job.turn > job.dialogue.total:
            job.ended = True
        elif too_long(job, self.engine.max_new_tokens, self.engine.model.card.context):
            yield self._context(job)
        else:
            live.ids = []
            self._first(live, logits)
            if self._ended(live):
                yield from self._finish(place, live)
            return
        self._free(place, live)

    def _holds(self, place: int, live: _Live) -> bool:
        """Whether a rollout is still in its slot: a lack of memory may have taken it."""
        return place < len(self.live) and self.live[place] is live

    def _free(self, place: int, live: _Live) -> None:
        if self._holds(place, live):
            self.live[place] = None

    def _measured(self, live: _Live) -> tuple[Reply, Tensor]:
        """The reply with its residual means, and the logits of the next reply's first token. Where it fails, nothing has changed."""
        job, ids = live.job, self._kept(live)
        dialogue, moment = job.dialogue, job.dialogue.snapshot()
        dialogue.advance(ids)
        turn, (prompt, content) = moment.turn, dialogue.past[-1]
        try:
            residual, logits = self._turn(live.slot, prompt, content, dialogue.prompt if job.turn <= dialogue.total else None)
        except (RuntimeError, Stopped):
            dialogue.restore(moment)
            raise
        finish = finish_of(ids, self.engine.max_new_tokens, self.engine.model.card.end_ids)
        job.last = tuple(ids)
        return Reply(job.rollout, turn, prompt, tuple(ids), dialogue.replies[-1], finish, residual), logits

    def _turn(
        self, slot: Slot, prompt: Sequence[int], content: Sequence[int], following: Sequence[int] | None
    ) -> tuple[NDArray[np.float32] | None, Tensor]:
        """Encode a reply and what follows it on top of its prompt: as one chunk, or, where the template rewrote history, as two."""
        said = [*prompt, *content]
        keep = 0 if following is None else min(common_prefix(said, following), len(following) - 1)
        if following is not None and keep >= len(said):
            states, logits = self._encode(slot, following[len(prompt) :], len(prompt))
            return self._pooled(states, len(content)), logits
        residual, logits = None, torch.empty(0)
        if content:
            states, logits = self._encode(slot, content, len(prompt))
            residual = self._pooled(states, len(content))
        if following is not None:
            _, logits = self._encode(slot, following[keep:], keep)
        return residual, logits

    def _pooled(self, states: Sequence[Tensor], length: int) -> NDArray[np.float32] | None:
        return pool(states, 0, (0, length), self.engine.layers) if length else None

    def _encode(self, slot: Slot, ids: Sequence[int], start: int) -> tuple[Sequence[Tensor], Tensor]:
        """One forward over `ids` at positions `start` on: hidden states of every layer (1, tokens, width), and the last token's logits (1, vocabulary)."""
        if self.stop():
            raise Stopped
        slot.length = start
        tokens = torch.tensor([list(ids)], device=self.engine.model.device)
        out = step(self.engine.model, self.cache, slot, tokens, output_hidden_states=True)
        return out.hidden_states, out.logits[:, -1]

    def _decode(self) -> None:
        """One token for every live row; rows that stand empty are computed and thrown away, so that the shape never changes."""
        if self.stop():
            raise Stopped
        self.cache.rows = [None if live is None else live.slot for live in self.live]
        device = self.engine.model.device
        last = torch.tensor([[0 if live is None else live.ids[-1]] for live in self.live], device=device)
        places = torch.tensor([[0 if live is None else live.slot.length] for live in self.live], device=device)
        logits = forward(self.engine.model, self.cache, last, places).logits[:, -1]
        drawn = self._draw(logits, self.live)
        for live, token in zip(self.live, drawn, strict=True):
            if live is not None:
                live.slot.length += 1
                live.ids.append(token)

    def _first(self, live: _Live, logits: Tensor) -> None:
        live.ids = self._draw(logits, [live])

    def _draw(self, logits: Tensor, rows: Sequence[_Live | None]) -> list[int]:
        """The next token of each row from (rows, vocabulary) logits."""
        finite = torch.isfinite(logits.amax(-1)).tolist()
        for live, fine in zip(rows, finite, strict=True):
            if live is not None and not fine:
                raise not_finite(live.job, live.job.turn)
        device = logits.device
        keys = torch.tensor([(0, 0) if live is None else split_key(live.job.key) for live in rows], device=device)
        counts = [(0, 1, 0) if live is None else (live.job.rollout.sample, live.job.turn, len(live.ids)) for live in rows]
        samples, turns, tokens = torch.tensor(counts, device=device).unbind(-1)
        temperature = torch.tensor([0.0 if live is None else live.job.rollout.cell.temperature for live in rows], device=device)
        return [int(i) for i in draw(logits, temperature, uniforms(keys, samples, turns, tokens), self.engine.filters).tolist()]

    def _ended(self, live: _Live) -> bool:
        ids = live.ids
        if ids[-1] in self.engine.model.card.end_ids or len(ids) >= self.engine.max_new_tokens:
            return True
        return live.job.dialogue.chat.stop_length(ids) is not None

    def _kept(self, live: _Live) -> list[int]:
        keep = live.job.dialogue.chat.stop_length(live.ids)
        return live.ids if keep is None else live.ids[:keep]

    def _context(self, job: Job) -> Reply:
        job.ended = True
        return Reply(job.rollout, job.turn, tuple(job.dialogue.prompt), (), "", Finish.CONTEXT, None)

    def _remembering(self, work: Callable[[], Any], job: Job | None = None) -> Any:
        """Do `work`; out of memory halves the slots and returns None, with `job` and those that lost their slot waiting to be encoded anew."""
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        rows = len(self.live)
        if rows == 1:
            raise no_memory("a single slot")
        self.engine.batch = rows // 2
        lost = [live.job for live in self.live[self.engine.batch :] if live is not None and live.job is not job]
        self.live = self.live[: self.engine.batch]
        self.waiting.extendleft(reversed([*([] if job is None else [job]), *lost]))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.report(Incident("out-of-memory", f"out of memory with {rows} slots: going on with {self.engine.batch}"))
        return None
