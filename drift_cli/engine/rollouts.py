"""The slots engine: every rollout advances by itself, and one encode per turn does three jobs.

A rollout lives in a slot. Its reply is decoded a token at a time in one batch of a fixed number of rows together with the other slots' replies; when it
ends, its ids and the next user turn are encoded as one chunk on top of the slot's cache. That chunk replaces the keys and values that decoding wrote, yields
the residual means that are measured, and gives the logits of the next reply's first token. A resumed rollout encodes the same chunks again, so what follows
does not depend on whether it was interrupted, nor on the order, the company or the number of its neighbours beyond the fixed number of rows.

On a GPU the device runs ahead: a step is queued before the one before it has been looked at, chunks are queued behind steps, and a reply is handed over when
its residual means have arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from drift_cli.chat import common_prefix
from drift_cli.engine.contract import Incident, Job, Reply, Stopped, cannot_go_on, finish_of, is_out_of_memory, last_reply, no_memory
from drift_cli.engine.rotary import ends_with_context
from drift_cli.engine.rows import Draw, NoRoom, Residual
from drift_cli.engine.slots import Slots, make_slots
from drift_cli.models import LoadedModel
from drift_cli.spec import Finish, Sampling, Segment


@dataclass
class SlotEngine:
    """See the module's docstring. `layers` are the residual layers to pool; `batch` is the number of slots, and of rows of every decode step; `longest` the
    most tokens that a conversation may come to have, where that is known to be less than the context; `segmented` whether replies may have segments.
    """

    model: LoadedModel
    layers: tuple[int, ...]
    filters: Sampling
    max_new_tokens: int
    batch: int = 8
    longest: int | None = None
    segmented: bool = False
    name: str = field(default="slots", init=False)
    needs_company: bool = field(default=False, init=False)
    slots: Slots | None = field(default=None, init=False)

    def prepare(self, report: Callable[[Incident], None]) -> Slots:
        """Make the slots now rather than at the first reply: compiled and captured where the device is a GPU."""
        while self.slots is None:
            try:
                asked = (self.model, self.layers, self.filters, self.max_new_tokens, self.batch)
                self.slots = make_slots(*asked, longest=self.longest, segmented=self.segmented, report=report)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.halve(report)
        return self.slots

    def halve(self, report: Callable[[Incident], None]) -> None:
        """Go on with half as many slots, which are yet to be made."""
        self.close()
        if self.batch == 1:
            raise no_memory("a single slot")
        self.batch //= 2
        report(Incident("out-of-memory", f"out of memory with {self.batch * 2} slots or more: going on with {self.batch}"))

    def run(self, jobs: Iterable[Job], stop: Callable[[], bool], report: Callable[[Incident], None]) -> Iterator[Reply]:
        """See `contract.Engine.run`."""
        try:
            yield from _Schedule(self, iter(jobs), stop, report, self.prepare(report)).replies()
        finally:
            self.close()

    def close(self) -> None:
        """Give the slots' memory back, and the network its own attention."""
        if self.slots is not None:
            self.slots.close()
            self.slots = None


@dataclass
class _Live:
    """A job in a slot, in the middle of a reply."""

    job: Job
    checked: int = 0
    """Ids of the reply that were looked at for a stop string."""
    cut: int | None = None
    """How many of them to keep where there was one."""


@dataclass
class _Schedule:
    """One call of `run`: the slots in use, what waits, and replies whose residual means are still on their way."""

    engine: SlotEngine
    jobs: Iterator[Job]
    stop: Callable[[], bool]
    report: Callable[[Incident], None]
    slots: Slots
    live: dict[int, _Live] = field(default_factory=dict)
    waiting: deque[Job] = field(default_factory=deque)
    """Jobs that lost their slot to a lack of memory; they come before new ones."""
    done: deque[tuple[Reply, Residual | None]] = field(default_factory=deque)
    crowded: bool = False
    """Whether a rollout found no room since the last one left: none is tried before another leaves."""

    def replies(self) -> Iterator[Reply]:
        """Fill free slots, decode a token, finish what ended, until nothing is left."""
        while True:
            self._remembering(self._admit)
            if self.live:
                self._remembering(self._step)
                self._remembering(self._finish_ended)
            yield from self._arrived(wait=not self.live)
            if not self.live and not self.done and not self._more():
                return

    def _more(self) -> bool:
        if not self.waiting:
            self.waiting.extend(job for job in [next(self.jobs, None)] if job is not None)
        return bool(self.waiting)

    def _arrived(self, *, wait: bool) -> Iterator[Reply]:
        """Replies in the order in which they were made, as far as their residual means are there."""
        while self.done and (wait or self.done[0][1] is None or self.done[0][1].ready()):
            reply, residual = self.done.popleft()
            yield reply if residual is None else reply.measured(residual.value())

    def _asked(self) -> None:
        if self.stop():
            raise Stopped

    def _admit(self) -> None:
        if self.crowded and self.live:
            return
        for row in range(self.slots.rows):
            while row not in self.live and self._more():
                job = self.waiting[0]
                if job.ended:
                    self.waiting.popleft()
                elif (finish := self._finish_before(job)) is not None:
                    self._end(self.waiting.popleft(), finish)
                elif not self._start(row, job):
                    return

    def _start(self, row: int, job: Job) -> bool:
        """Encode a conversation so far, chunk by chunk as it was made, and begin its next reply. False where there is no room for it now."""
        try:
            self._encode_past(row, job)
            self._begin(row, job)
        except NoRoom:
            self.slots.free(row)
            if not self.live:
                self._end(self.waiting.popleft(), Finish.CONTEXT)
                return True
            self.crowded = True
            return False
        self.waiting.popleft()
        self.live[row] = _Live(job)
        return True

    def _encode_past(self, row: int, job: Job) -> None:
        prompts = [*(prompt for prompt, _ in job.dialogue.past), tuple(job.dialogue.prompt)]
        self._asked()
        self.slots.encode(row, prompts[0], 0, 0)
        for (prompt, content), following in zip(job.dialogue.past, prompts[1:], strict=True):
            self._asked()
            self._turn(row, prompt, content, following)

    def _begin(self, row: int, job: Job) -> None:
        limit = self.engine.max_new_tokens if job.lengths is None else job.lengths[job.turn - 1]
        self.slots.begin(row, Draw(job.rollout, job.turn, job.key, len(job.dialogue.prompt), limit, job.lengths is not None))

    def _step(self) -> None:
        self._asked()
        while True:
            try:
                return self.slots.step()
            except NoRoom:
                self._make_room()

    def _make_room(self) -> None:
        """The rollout that has said least of its reply gives its slot up and is encoded again when there is room."""
        row = min(self.live, key=lambda r: (len(self.slots.said(r)), -r))
        if len(self.live) > 1:
            self._suspend(row)
            return
        self._end(self.live.pop(row).job, Finish.CONTEXT)
        self.slots.free(row)

    def _suspend(self, row: int) -> None:
        """A rollout gives its slot up and waits."""
        job = self.live.pop(row).job
        self.slots.free(row)
        self.waiting.append(job)
        self.crowded = True
        detail = f"{job.rollout} waits for room among {len(self.live)} others and goes on from turn {job.turn} later"
        self.report(Incident("no-room", detail))

    def _finish_ended(self) -> None:
        for row, live in self.live.items():
            self._look_for_stop_string(row, live)
        ended = dict.fromkeys(row for row in self.slots.ended() if row in self.live)
        for row in [*ended, *(row for row, live in self.live.items() if live.cut is not None and row not in ended)]:
            self._finish(row, self.live[row])

    def _look_for_stop_string(self, row: int, live: _Live) -> None:
        """Token by token, so that it does not matter how far the device has run ahead."""
        if live.job.lengths is None and live.cut is None:
            said = self.slots.said(row)
            while live.checked < len(said) and live.cut is None:
                live.checked += 1
                live.cut = live.job.dialogue.chat.stop_length(said[: live.checked])

    def _finish(self, row: int, live: _Live) -> None:
        """Measure a reply that ended and go on to the next user turn, or free the slot. Where it fails, the turn is to be done again."""
        job = live.job
        ids, moment = self.slots.said(row)[: live.cut], job.dialogue.snapshot()
        job.dialogue.advance(ids)
        turn, (prompt, content) = moment.turn, job.dialogue.past[-1]
        over, full = job.turn > job.dialogue.total, False
        ended = over or job.dialogue.problem is not None
        finish = finish_of(ids, self.engine.max_new_tokens, self.engine.model.card.end_ids)
        text, reasoning, segments = moment.text(ids), moment.reasoning(ids), moment.segments(ids)
        try:
            self._asked()
            residual = self._turn(row, prompt, content, None if ended else self._following(job), segments)
        except NoRoom:
            if len(self.live) > 1:
                job.dialogue.restore(moment)
                self._suspend(row)
                return
            residual, full = self._measured_alone(row, prompt, content, segments), not ended
        except (RuntimeError, Stopped):
            job.dialogue.restore(moment)
            raise
        job.last = tuple(ids)
        self.done.append((Reply(job.rollout, turn, prompt, tuple(ids), text, finish, None, segments, reasoning), residual))
        self._next(row, job, over=over, full=full)

    def _following(self, job: Job) -> Sequence[int] | None:
        """The next prompt, which is encoded with the reply before it; None where it is longer than the context and the network has no positions for that."""
        beyond = len(job.dialogue.prompt) > self.engine.model.card.context
        return None if beyond and ends_with_context(self.engine.model) else job.dialogue.prompt

    def _measured_alone(self, row: int, prompt: Sequence[int], content: Sequence[int], segments: Sequence[Segment]) -> Residual | None:
        """Measure a reply whose next prompt does not fit even with all memory to itself: the reply counts, and is the rollout's last."""
        self.slots.encode(row, prompt, 0, 0)
        return self.slots.encode(row, content, len(prompt), len(content), segments=segments) if content else None

    def _next(self, row: int, job: Job, *, over: bool, full: bool) -> None:
        job.ended = over
        finish = None if over else Finish.CONTEXT if full else self._finish_before(job)
        if not over and finish is None:
            self.live[row] = _Live(job)
            self._begin(row, job)
            return
        if finish is not None:
            self._end(job, finish)
        del self.live[row]
        self.slots.free(row)
        self.crowded = False

    def _turn(
        self, row: int, prompt: Sequence[int], content: Sequence[int], following: Sequence[int] | None, segments: Sequence[Segment] = ()
    ) -> Residual | None:
        """Encode a reply and what follows it on top of its prompt: as one chunk, or, where the template rewrote history, as two. `segments` are the reply's;
        where nobody looks at its means they may be left out, as what is encoded does not depend on them.
        """
        said = [*prompt, *content]
        keep = 0 if following is None else min(common_prefix(said, following), len(following) - 1)
        if following is not None and keep >= len(said):
            return self.slots.encode(row, following[len(prompt) :], len(prompt), len(content), segments=segments)
        residual = self.slots.encode(row, content, len(prompt), len(content), hold=len(prompt), segments=segments) if content else None
        if following is not None:
            keep = self.slots.layout.rewound(len(prompt), keep)
            self.slots.encode(row, following[keep:], keep, 0)
        return residual

    def _finish_before(self, job: Job) -> Finish | None:
        return cannot_go_on(job, self.engine.max_new_tokens, self.engine.model.card.context)

    def _end(self, job: Job, finish: Finish) -> None:
        job.ended = True
        self.done.append((last_reply(job, finish), None))

    def _remembering(self, work: Callable[[], None]) -> None:
        """Do `work`. Out of memory halves the slots; what was in the middle of a reply is encoded again from its last finished turn."""
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        self.done = deque((reply if late is None else reply.measured(late.value()), None) for reply, late in self.done)
        self.waiting.extendleft(live.job for _, live in sorted(self.live.items(), reverse=True))
        self.live.clear()
        self.engine.halve(self.report)
        self.slots = self.engine.prepare(self.report)
