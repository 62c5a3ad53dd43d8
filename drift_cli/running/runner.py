"""Conversations, engine and store, as events.

Rollouts that are not finished become jobs, replies become committed turns, and whatever happens in between is an event (see `events`). A turn is on disk
before it is told of. The runner knows neither how replies are made nor how files are named, and writes to no terminal.

    for event in run_events(run, engine, chat=chat, axis=axis, end_ids=card.end_ids):     # a library: iterate
        if isinstance(event, TurnCommitted):
            print(event.rollout, event.turn.text)

    outcome = run_rollouts(run, engine, ..., tell=show)                                   # a command: be told at once, also within a reply
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from queue import Queue as ThreadQueue
from threading import Thread

from drift_cli.axis import Axis
from drift_cli.chat import Ask, Chat
from drift_cli.engine.contract import Engine, Incident, Reply, Stopped
from drift_cli.errors import UsageError
from drift_cli.running.events import Began, Event, Finished, GivenUp, Notice, Outcome, Taken, TurnCommitted
from drift_cli.running.session import Session
from drift_cli.store.manifest import Manifest
from drift_cli.store.run import Run
from drift_cli.workers.leases import WorkerState
from drift_cli.workers.queue import correct_hints
from drift_cli.workers.share import Share, take_part

__all__ = ["Outcome", "run_events", "run_rollouts"]

_AHEAD = 256
"""Replies that may wait for the disk."""


@dataclass
class _Writer:
    """Commits replies in a thread of its own, in order, so that the engine never waits for a disk.

    What it has committed comes back through `committed`, and what went wrong through `check`; at most `_AHEAD` replies wait.
    """

    session: Session
    waiting: ThreadQueue[Reply | None] = field(default_factory=lambda: ThreadQueue(_AHEAD))
    done: ThreadQueue[Event] = field(default_factory=ThreadQueue)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = Thread(target=self._work, name="drift-writer", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (reply := self.waiting.get()) is not None:
            if self.failure is None:
                try:
                    for event in self.session.commit(reply):
                        self.done.put(event)
                except BaseException as error:  # noqa: BLE001 (whatever it is, it is raised again in the main thread)
                    self.failure = error
            self.waiting.task_done()

    def drain(self) -> None:
        """Wait until everything handed over is committed."""
        self.waiting.join()

    def put(self, reply: Reply) -> None:
        """Hand a reply over; waits where the disk is far behind."""
        self.check()
        self.waiting.put(reply)

    def check(self) -> None:
        """Raise what went wrong."""
        if self.failure is not None:
            raise self.failure

    def committed(self) -> Iterator[Event]:
        """What has been committed since this was last asked."""
        while not self.done.empty():
            yield self.done.get()

    def finish(self) -> None:
        """Wait until everything handed over is committed. May be called again."""
        if self.thread.is_alive():
            self.waiting.put(None)
            self.thread.join()


def _never() -> bool:
    return False


def run_events(
    run: Run,
    engine: Engine,
    *,
    chat: Chat,
    axis: Axis | None,
    end_ids: frozenset[int],
    stop: Callable[[], bool] = _never,
    share: Share | None = None,
    users: Mapping[str, Ask] | None = None,
) -> Iterator[Event]:
    """`run_rollouts` as an iterator: yields what has happened whenever the engine hands a reply over; `Finished` is the last event.

    Who stops iterating (`break`, or `close()`) stops the run: what was committed stays, and the next call goes on from there.
    """
    pending: deque[Event] = deque()
    work = _work(run, engine, chat, axis, end_ids, pending.append, stop, share, users or {})
    try:
        while True:
            try:
                next(work)
            except StopIteration as end:
                yield from _drained(pending)
                yield Finished(end.value)
                return
            yield from _drained(pending)
    finally:
        work.close()


def _drained(pending: deque[Event]) -> Iterator[Event]:
    while pending:
        yield pending.popleft()


def run_rollouts(
    run: Run,
    engine: Engine,
    *,
    chat: Chat,
    axis: Axis | None,
    end_ids: frozenset[int],
    stop: Callable[[], bool] = _never,
    tell: Callable[[Event], object] = lambda event: None,
    share: Share | None = None,
    users: Mapping[str, Ask] | None = None,
) -> Outcome:
    """Answer every unanswered turn of a run's plan that no other worker is at, committing each as it is made.

    Returns when nothing is left that this process could take, or soon after `stop()` turns true. Errors of store and engine pass through; every turn that was
    told of before is on disk.

    Args:
        run: the run; its manifest is the plan.
        engine: what makes replies.
        chat: the model's chat format.
        axis: what is projected on, the run's own.
        end_ids: tokens that end a reply.
        stop: asked about once a token, from this thread.
        tell: told of each event as soon as it is known, from this thread. `Finished` is not among them.
        share: which worker this is; None: one of its own, for as long as the call lasts.
        users: by transcript, the Python code that asks, for those whose user turns come from no script.

    Raises:
        UsageError: a transcript needs such code, and it is not given.
    """
    work = _work(run, engine, chat, axis, end_ids, tell, stop, share, users or {})
    while True:
        try:
            next(work)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def _work(
    run: Run,
    engine: Engine,
    chat: Chat,
    axis: Axis | None,
    end_ids: frozenset[int],
    tell: Callable[[Event], object],
    stop: Callable[[], bool],
    share: Share | None,
    users: Mapping[str, Ask],
) -> Generator[None, None, Outcome]:
    """The work itself; pauses after every reply."""
    check_users(run.manifest, users)
    with ExitStack() as stack:
        if share is None:
            states = run.states()
            correct_hints(run.paths, states)
            share = stack.enter_context(take_part(run))
            share.turns = sum(state.total for state in states), sum(state.total if state.ended else state.done for state in states)
        queue = share.queue(run, engine.batch if engine.fixed_groups else 1)
        session = Session(run, queue, chat, axis, end_ids, tell, engine.fixed_groups, users)
        stack.callback(session.close)
        tell(Began(*(share.turns or (0, 0)), whole=share.turns is not None))
        return (yield from _Working(session, share, tell, stop).run(engine))


def check_users(manifest: Manifest, users: Mapping[str, Ask]) -> None:
    """Raise `UsageError` where the user turns of a transcript come from Python code that is not among `users` (transcript → code)."""
    for script in manifest.transcripts.values():
        if script.user is not None and script.name not in users:
            raise UsageError(
                f"the user turns of {script.name} come from Python code ({script.user}), not from a script",
                mend="Go on with this run from Python, with the same code.",
            )


@dataclass
class _Working:
    """What one call of `run_rollouts` has at hand, and what it has told. A turn is counted when it is on disk."""

    session: Session
    share: Share
    tell: Callable[[Event], object]
    stop: Callable[[], bool]
    turns: int = 0
    taken: int = 0
    writer: _Writer = field(init=False)

    def run(self, engine: Engine) -> Generator[None, None, Outcome]:
        """Run the engine as long as there is something for it."""
        session, started, interrupted = self.session, time.monotonic(), False
        self.writer = _Writer(session)
        try:
            while self.share.wait(self.note, session.queue, session.is_ready, self.asked):
                self.share.presence.now(WorkerState.WORKING)
                with closing(engine.run(session, self.asked, self.report)) as replies:
                    for reply in replies:
                        self.writer.put(reply)
                        if self.asked():
                            raise Stopped
                        yield
                self.writer.drain()
                self.update()
                yield
                session.again()
        except Stopped:
            interrupted = True
        finally:
            self.writer.finish()
        self.update()
        return Outcome(self.turns, time.monotonic() - started, interrupted, session.queue.others(), tuple(session.problems))

    def asked(self) -> bool:
        """Asked once a token: whether to stop. Tells what has happened since."""
        self.update()
        return self.stop()

    def note(self, text: str) -> None:
        """Tell something in a sentence."""
        self.tell(Notice(text))

    def report(self, incident: Incident) -> None:
        """Tell and record what an engine dealt with."""
        self.tell(incident)
        self.session.run.event(incident.kind, detail=incident.detail)

    def update(self) -> None:
        """Tell what was taken, committed and given up since, here and in the worker's file; raise what went wrong with it."""
        if self.session.turns_taken != self.taken:
            self.taken = self.session.turns_taken
            self.tell(Taken(self.taken))
        for event in self.writer.committed():
            self.turns += isinstance(event, TurnCommitted)
            self.tell(event)
        for rollout in self.session.let_go():
            self.tell(GivenUp(rollout))
        self.share.presence.now(turns=self.turns, held=len(self.session.queue.claims.held))
        self.writer.check()
