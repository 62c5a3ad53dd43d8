"""The only place where engine, store and display meet.

Rollouts that are not finished become jobs, replies become committed turns, and whatever happens in between is recorded. A turn is on disk before it is
counted. The runner knows neither how replies are made nor how files are named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import Queue as ThreadQueue
from threading import Thread

from drift_cli.axes import Axis
from drift_cli.chat import Chat
from drift_cli.display import Display, Progress
from drift_cli.engine.contract import Engine, Incident, Reply, Stopped
from drift_cli.errors import StoreError
from drift_cli.running.session import Session
from drift_cli.spec import Finish
from drift_cli.store.run import Run
from drift_cli.workers.leases import WorkerState
from drift_cli.workers.queue import correct_hints
from drift_cli.workers.share import Share, take_part

_AHEAD = 256
"""Replies that may wait for the disk."""


@dataclass(frozen=True)
class Outcome:
    """What one call of `run_rollouts` did."""

    turns: int
    seconds: float
    interrupted: bool
    others: Mapping[str, int] = field(default_factory=dict)
    """Who holds what is left: workers' ids ("" for a process without a claim), and how many rollouts."""
    problems: tuple[StoreError, ...] = ()
    """Damaged rollouts that were left alone."""


@dataclass
class _Writer:
    """Commits replies in a thread of its own, in order, so that the engine never waits for a disk.

    What it has committed comes back through `committed`, and what went wrong through `check`; at most `_AHEAD` replies wait.
    """

    session: Session
    waiting: ThreadQueue[Reply | None] = field(default_factory=lambda: ThreadQueue(_AHEAD))
    done: ThreadQueue[Reply] = field(default_factory=ThreadQueue)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = Thread(target=self._work, name="drift-writer", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (reply := self.waiting.get()) is not None:
            if self.failure is None:
                try:
                    if self.session.commit(reply):
                        self.done.put(reply)
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

    def committed(self) -> Iterator[Reply]:
        """Replies that have been committed since this was last asked."""
        while not self.done.empty():
            yield self.done.get()

    def finish(self) -> None:
        """Wait until everything handed over is committed. May be called again."""
        if self.thread.is_alive():
            self.waiting.put(None)
            self.thread.join()


def run_rollouts(
    run: Run,
    engine: Engine,
    *,
    chat: Chat,
    axis: Axis | None,
    end_ids: frozenset[int],
    display: Display,
    stop: Callable[[], bool],
    share: Share | None = None,
) -> Outcome:
    """Answer every unanswered turn of a run's plan that no other worker is at, committing each as it is made.

    Returns when nothing is left that this process could take, or soon after `stop()` turns true. Errors of store and engine pass through; every turn counted
    before is on disk.
    """
    with ExitStack() as stack:
        if share is None:
            states = run.states()
            correct_hints(run.paths, states)
            share = stack.enter_context(take_part(run))
            share.turns = sum(state.total for state in states), sum(state.total if state.ended else state.done for state in states)
        queue = share.queue(run, engine.batch if engine.needs_company else 1)
        session = Session(run, queue, chat, axis, end_ids, display, engine.needs_company)
        stack.callback(session.close)
        shown = _Shown(session, share, stack.enter_context(share.progress(display)))
        return _run(engine, _Working(session, share, shown, stop))


@dataclass
class _Working:
    """What one call of `run_rollouts` has at hand."""

    session: Session
    share: Share
    shown: _Shown
    stop: Callable[[], bool]

    def report(self, incident: Incident) -> None:
        """Show and record what an engine dealt with."""
        told(self.session.display, self.session.run, incident)


def told(display: Display, run: Run, incident: Incident) -> None:
    """Show and record what an engine dealt with."""
    display.note(incident.detail)
    run.event(incident.kind, detail=incident.detail)


def _run(engine: Engine, work: _Working) -> Outcome:
    """Run the engine as long as there is something for it."""
    session, shown, started, interrupted = work.session, work.shown, time.monotonic(), False
    writer = _Writer(session)

    def asked() -> bool:
        shown.update(writer)
        return work.stop()

    try:
        while work.share.wait(session.display, session.queue, session.is_ready, asked):
            work.share.presence.now(WorkerState.WORKING)
            for reply in engine.run(session, asked, work.report):
                writer.put(reply)
                if asked():
                    raise Stopped
            writer.drain()
            shown.update(writer)
            session.again()
    except Stopped:
        interrupted = True
    finally:
        writer.finish()
    shown.update(writer)
    return Outcome(shown.turns, time.monotonic() - started, interrupted, session.queue.others(), tuple(session.problems))


@dataclass
class _Shown:
    """What the person at the terminal, and whoever looks at the worker's file, has been told. A turn is counted when it is on disk."""

    session: Session
    share: Share
    progress: Progress
    turns: int = 0

    def update(self, writer: _Writer) -> None:
        """Count what was committed since; raise what went wrong with it."""
        if self.share.turns is None:
            self.progress.grow(self.session.turns_taken)
        self.progress.tick()
        for reply in writer.committed():
            if reply.finish in (Finish.CONTEXT, Finish.TEMPLATE):
                why = f"its prompt of {len(reply.prompt)} tokens and a reply do not fit" if reply.problem is None else reply.problem
                self.session.display.note(f"{reply.rollout} ends before turn {reply.turn}: {why}")
                self.progress.skip(self.session.totals[reply.rollout] - reply.turn + 1)
            else:
                self.turns += 1
                self.progress.step(f"{reply.rollout} turn {reply.turn}")
        for rollout in self.session.let_go():
            self.session.display.note(f"{rollout} is given up: another process writes it or has claimed it")
        self.share.presence.now(turns=self.turns, held=len(self.session.queue.claims.held))
        writer.check()
