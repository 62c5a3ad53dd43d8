"""What the slots engine does next, as data. No torch, no network: tokens in, plans out.

Every rollout advances by itself. Its reply is decoded a token at a time together with the other rows' replies; when it ends, its ids and the next user turn are
encoded as one chunk on top of the row's cache. That chunk replaces the keys and values that decoding wrote, yields the residual means, and gives the logits of
the next reply's first token. A resumed rollout encodes the same chunks again, so what follows depends neither on whether it was interrupted nor on its
neighbours.

    while (plan := scheduler.schedule()) is not None:
        scheduler.update(plan, carried_out(plan))

A plan is `Step` (a token for every row), `Encode` (chunks in one row, and the draw of its next reply) or `Free`. Between `schedule` and `update` nothing is
taken over: where a plan could not be carried out, `lost` goes back to the last state of every conversation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from drift_cli.engine.contract import (
    Conversation,
    Incident,
    Job,
    JobSource,
    Reply,
    cannot_go_on,
    common_prefix,
    finish_of,
    last_reply,
    no_memory,
)
from drift_cli.engine.plan import Chunk, DoesNotFit, Done, Draw, Encode, Free, Limits, Plan, Residual, Step
from drift_cli.spec import Answered, Finish, Segment


@dataclass
class _Live:
    """A job in a row, in the middle of a reply."""

    job: Job
    checked: int = 0
    """Ids of the reply that were looked at for a stop string."""
    cut: int | None = None
    """How many of them to keep where there was one."""


@dataclass(frozen=True)
class _Turn:
    """A reply that ended, while it is encoded: what the rollout is once that is done."""

    ids: tuple[int, ...]
    following: Conversation
    finish: Finish | None
    """How the rollout ends behind the reply; None where it goes on."""
    alone: bool = False
    """The second try, with all memory to itself and without the next prompt."""

    @property
    def answered(self) -> Answered:
        """The turn."""
        return self.following.past[-1]


@dataclass
class Scheduler:
    """See the module's docstring. `rows` is the number of rows; `report` is told when a rollout has to wait."""

    source: JobSource
    rows: int
    limits: Limits
    report: Callable[[Incident], None]
    done: deque[tuple[Reply, Residual | None]] = field(default_factory=deque)
    """Replies in the order in which they were made, with residual means that may still be on their way: for the engine to hand out."""
    live: dict[int, _Live] = field(default_factory=dict)
    waiting: deque[Job] = field(default_factory=deque)
    """Jobs that were taken and have no row, such as those that lost theirs to a lack of memory; they come before new ones."""
    crowded: bool = False
    """Whether a rollout found no room since the last one left: none is tried before another leaves."""
    _ended: deque[tuple[int, tuple[int, ...]]] = field(default_factory=deque)
    _freed: deque[int] = field(default_factory=deque)
    _turn: _Turn | None = None
    _again: _Turn | None = None
    _step: Step | None = None

    def schedule(self) -> Plan | None:
        """What to do next; None where there is nothing to do now. To be followed by `update`, or by `lost`."""
        if self._freed:
            return Free(self._freed[0])
        if self._again is not None:
            return self._measure_alone(self._again)
        if self._ended:
            return self._finish(*self._ended[0])
        self.crowded = self.crowded and bool(self.live)
        if not self.crowded and len(self.live) < self.rows and (job := self._next_job()) is not None:
            return self._start(job)
        return self._steps() if self.live else None

    def update(self, plan: Plan, result: Done | DoesNotFit) -> None:
        """Take over what came of a plan."""
        if isinstance(plan, Free):
            self._freed.popleft()
        elif isinstance(plan, Step):
            if isinstance(result, Done):
                self._stepped(result)
            else:
                self._make_room(result)
        elif self._turn is None:
            self._started(plan.row, fits=isinstance(result, Done))
        else:
            turn, self._turn = self._turn, None
            if isinstance(result, Done):
                self._finished(plan.row, turn, result)
            else:
                self._did_not_fit(plan.row, turn)

    def lost(self, rows: int) -> None:
        """All rows are gone, and there are `rows` new ones: every reply in progress is made again from its conversation's last state."""
        self.rows = rows
        self.waiting.extendleft(live.job for _, live in sorted(self.live.items(), reverse=True))
        for held in (self.live, self._ended, self._freed):
            held.clear()
        self._turn = self._again = self._step = None

    def _next_job(self) -> Job | None:
        """The first job that has a reply to make; it stays in `waiting` until its row is begun."""
        while self.waiting or self._take():
            job = self.waiting[0]
            if job.ended or job.aborted:
                self.waiting.popleft()
            elif (finish := self._finish_before(job.conversation)) is not None:
                self._end(self.waiting.popleft(), finish)
            else:
                return job
        return None

    def _take(self) -> bool:
        self.waiting.extend(self.source.take())
        return bool(self.waiting)

    def _start(self, job: Job) -> Encode:
        """Encode a conversation so far, chunk by chunk as it was made, and begin its next reply."""
        row = next(row for row in range(self.rows) if row not in self.live)
        past = job.conversation.past
        prompts = [*(answered.prompt for answered in past), job.conversation.prompt]
        chunks = [Chunk(prompts[0], 0)]
        for answered, following in zip(past, prompts[1:], strict=True):
            chunks += self._chunks(answered, following, ())
        return Encode(row, tuple(chunks), self._draw(job, job.conversation))

    def _started(self, row: int, *, fits: bool) -> None:
        if fits:
            self.live[row] = _Live(self.waiting.popleft())
            self._step = None
            return
        self._freed.append(row)
        self.crowded = bool(self.live)
        if not self.live:
            self._end(self.waiting.popleft(), Finish.CONTEXT)

    def _draw(self, job: Job, conversation: Conversation) -> Draw:
        limit = self.limits.max_new_tokens if job.lengths is None else job.lengths[conversation.turn - 1]
        return Draw(job.rollout, conversation.turn, job.key, len(conversation.prompt), limit, job.lengths is not None)

    def _steps(self) -> Step:
        if self._step is None:
            watched = (row for row, live in self.live.items() if live.job.lengths is None and live.job.conversation.has_stops)
            self._step = Step(tuple(self.live), tuple(watched))
        return self._step

    def _stepped(self, result: Done) -> None:
        for row, said in result.said.items():
            self._look_for_stop_string(self.live[row], said)
        cut = (row for row in result.said if self.live[row].cut is not None)
        for row in dict.fromkeys((*(row for row in result.ended if row in self.live), *cut)):
            self._ended.append((row, tuple(result.said[row][: self.live[row].cut])))
        if any(live.job.aborted for live in self.live.values()):
            self._drop_aborted()

    def _look_for_stop_string(self, live: _Live, said: Sequence[int]) -> None:
        """Token by token, so that it does not matter how far the device has run ahead."""
        if live.job.lengths is None and live.job.conversation.has_stops:
            while live.checked < len(said) and live.cut is None:
                live.checked += 1
                live.cut = live.job.conversation.stop_length(said[: live.checked])

    def _drop_aborted(self) -> None:
        for row in [row for row, live in self.live.items() if live.job.aborted]:
            self._leave(row)
        self._ended = deque((row, ids) for row, ids in self._ended if row in self.live)

    def _make_room(self, result: DoesNotFit) -> None:
        """The rollout that has said least of its reply gives its row up and is encoded again when there is room."""
        row = min(self.live, key=lambda row: (result.said[row], -row))
        if len(self.live) > 1:
            self._suspend(row)
            return
        self._end(self.live[row].job, Finish.CONTEXT)
        self._leave(row)

    def _suspend(self, row: int) -> None:
        """A rollout gives its row up and waits."""
        job = self.live[row].job
        self._leave(row)
        self.waiting.append(job)
        self.crowded = True
        detail = f"{job.rollout} waits for room among {len(self.live)} others and goes on from turn {job.turn} later"
        self.report(Incident("no-room", detail))

    def _leave(self, row: int) -> None:
        del self.live[row]
        self._freed.append(row)
        self._step, self.crowded = None, False

    def _finish(self, row: int, ids: tuple[int, ...]) -> Encode:
        """Measure a reply that ended, and go on to the next user turn where there is one."""
        job = self.live[row].job
        following = job.conversation.after(ids)
        finish = self._finish_before(following)
        self._turn = turn = _Turn(ids, following, finish)
        chunks = self._chunks(turn.answered, self._prompt(following), turn.answered.segments)
        return Encode(row, tuple(chunks), None if finish is not None else self._draw(job, following))

    def _prompt(self, following: Conversation) -> Sequence[int] | None:
        """The next prompt, which is encoded with the reply before it, also where its own reply would not fit; None where there is none, and where it is
        longer than the context and the network has no positions for that.
        """
        if following.end is not None or (self.limits.bounded and len(following.prompt) > self.limits.context):
            return None
        return following.prompt

    def _chunks(self, answered: Answered, following: Sequence[int] | None, segments: tuple[Segment, ...]) -> Iterator[Chunk]:
        """A reply and what follows it on top of its prompt: one chunk, or, where the template rewrote history, two. `segments` are the reply's; where nobody
        looks at its means they may be left out, as what is encoded does not depend on them.
        """
        prompt, content = answered.prompt, answered.content
        said = (*prompt, *content)
        keep = 0 if following is None else min(common_prefix(said, following), len(following) - 1)
        if following is not None and keep >= len(said):
            yield Chunk(following[len(prompt) :], len(prompt), len(content), segments=segments)
            return
        if content:
            yield Chunk(content, len(prompt), len(content), len(prompt), segments)
        if following is not None:
            keep = self.limits.rewound(len(prompt), keep)
            yield Chunk(following[keep:], keep)

    def _finished(self, row: int, turn: _Turn, result: Done) -> None:
        """Everything that belongs to a turn is encoded: the reply counts."""
        job = self.live[row].job
        finish = finish_of(turn.ids, self.limits.max_new_tokens, self.limits.end_ids)
        self.done.append((Reply(job.rollout, job.turn, turn.answered.prompt, turn.ids, finish, turn.following), result.residual))
        job.conversation = turn.following
        self._over(turn)
        if turn.finish is None:
            self.live[row] = _Live(job)
            return
        if turn.finish is Finish.COMPLETE:
            job.ended = True
        else:
            self._end(job, turn.finish)
        self._leave(row)

    def _did_not_fit(self, row: int, turn: _Turn) -> None:
        if turn.alone:
            raise no_memory("a single rollout")
        if len(self.live) > 1:
            self._over(turn)
            self._suspend(row)
            return
        # A reply whose next prompt does not fit even with all memory to itself counts, and is the rollout's last.
        self._again = _Turn(turn.ids, turn.following, turn.finish if turn.following.end is not None else Finish.CONTEXT, alone=True)

    def _over(self, turn: _Turn) -> None:
        """A reply that ended was dealt with."""
        self._again = None
        self._ended.popleft()

    def _measure_alone(self, turn: _Turn) -> Encode:
        self._turn, (row, _) = turn, self._ended[0]
        answered = turn.answered
        content = Chunk(answered.content, len(answered.prompt), answered.length, segments=answered.segments)
        return Encode(row, (Chunk(answered.prompt, 0), *([content] if answered.length else [])), None)

    def _finish_before(self, conversation: Conversation) -> Finish | None:
        return cannot_go_on(conversation, self.limits.max_new_tokens, self.limits.context)

    def _end(self, job: Job, finish: Finish) -> None:
        job.ended = True
        self.done.append((last_reply(job, finish), None))
