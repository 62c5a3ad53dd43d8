"""The only place where engine, store and display meet.

Rollouts that are not finished become jobs, replies become committed turns, and whatever happens in between is recorded. A turn is on disk before it is
counted. The runner knows neither how replies are made nor how files are named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import Queue
from threading import Thread

from drift_cli.axes import Axis
from drift_cli.chat import Chat, Dialogue, prompt_hash
from drift_cli.display import Display, Progress
from drift_cli.engine.contract import Engine, Incident, Job, Reply, Stopped
from drift_cli.engine.sampling import noise_key
from drift_cli.errors import StoreError
from drift_cli.probe import project
from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store.log import End, RolloutLog
from drift_cli.store.run import RolloutState, Run

_AHEAD = 256
"""Replies that may wait for the disk."""


@dataclass(frozen=True)
class Outcome:
    """What one call of `run_rollouts` did."""

    turns: int
    seconds: float
    interrupted: bool


@dataclass
class _Session:
    """One process's work on a run: the logs it holds open, by rollout."""

    run: Run
    chat: Chat
    axis: Axis | None
    end_ids: frozenset[int]
    display: Display
    logs: dict[Rollout, RolloutLog] = field(default_factory=dict)
    totals: dict[Rollout, int] = field(default_factory=dict)

    def jobs(self, states: Sequence[RolloutState], size: int, *, company: bool) -> Iterator[Job]:
        """Jobs in groups of `size` planned rollouts; with `company`, finished rollouts too where an unfinished one needs theirs."""
        for start in range(0, len(states), size):
            group = states[start : start + size]
            waiting = {state.done for state in group if not state.ended}
            for state in group:
                if not state.ended:
                    yield self._open(state, start // size)
                elif company and state.complete and state.done - 1 in waiting:
                    turns = self.run.record(state.rollout).turns
                    yield self._job(state.rollout, turns, start // size, ended=True)

    def _open(self, state: RolloutState, group: int) -> Job:
        log = self.run.writer(state.rollout)
        self.logs[state.rollout] = log
        for notice in log.record.notices:
            self.display.note(notice)
            self.run.event("recovered", rollout=str(state.rollout), detail=notice)
        if log.record.end is None and len(log.record.turns) == state.total:
            # Killed between the last turn's line and the end line: nothing is left to generate.
            log.end(End(Finish.COMPLETE, state.total, None))
            return self._job(state.rollout, log.record.turns, group, ended=True)
        return self._job(state.rollout, log.record.turns, group, ended=log.record.end is not None)

    def _job(self, rollout: Rollout, turns: Sequence[Turn], group: int, *, ended: bool) -> Job:
        manifest = self.run.manifest
        cell = rollout.cell
        dialogue = Dialogue(self.chat, manifest.transcripts[cell.transcript].users, manifest.conditions[cell.condition], self.end_ids)
        self.totals[rollout] = dialogue.total
        for turn in turns:
            self._replay(rollout, dialogue, turn)
        key = noise_key(manifest.spec.seed, cell, independent=manifest.spec.sampling.independent_noise)
        return Job(rollout, dialogue, key, group, turns[-1].ids if turns else None, ended)

    def _replay(self, rollout: Rollout, dialogue: Dialogue, turn: Turn) -> None:
        """Bring a dialogue past a committed turn, and see that its prompt is still the one the reply was given to."""
        found = prompt_hash(dialogue.prompt)
        if turn.ids is None or found != turn.prompt_hash:
            raise StoreError(
                f"{rollout} turn {turn.index}: the conversation's prompt is no longer what it was when this turn was made",
                mend="The tokenizer or transformers changed: `drift runs show` lists the versions in use then. Install those, or start a new run.",
            )
        dialogue.advance(turn.ids)

    def commit(self, reply: Reply) -> None:
        """Write a reply to its rollout's file, and the rollout's end where this was its last turn."""
        log = self.logs[reply.rollout]
        if reply.finish is Finish.CONTEXT:
            log.end(End(Finish.CONTEXT, reply.turn, len(reply.prompt)))
            self.run.event("context", rollout=str(reply.rollout), turn=reply.turn, prompt_length=len(reply.prompt))
        else:
            log.append(self._turn(reply))
            if reply.turn < self.totals[reply.rollout]:
                return
            log.end(End(Finish.COMPLETE, reply.turn, None))
        log.close()
        del self.logs[reply.rollout]

    def _turn(self, reply: Reply) -> Turn:
        layers = self.run.manifest.layers
        projections = {}
        if self.axis is not None and reply.residual is not None:
            for entry in self.run.manifest.axes:
                projections[entry.name] = project(reply.residual[layers.index(entry.layer)], self.axis.at(entry.layer))
        return Turn(
            index=reply.turn,
            text=reply.text,
            finish=reply.finish,
            ids=reply.ids,
            prompt_length=len(reply.prompt),
            prompt_hash=prompt_hash(reply.prompt),
            residual=reply.residual,
            projections=projections,
        )

    def close(self) -> None:
        """Close every log; what was committed stays."""
        for log in self.logs.values():
            log.close()
        self.logs.clear()


@dataclass
class _Writer:
    """Commits replies in a thread of its own, in order, so that the engine never waits for a disk.

    What it has committed comes back through `committed`, and what went wrong through `check`; at most `_AHEAD` replies wait.
    """

    session: _Session
    waiting: Queue[Reply | None] = field(default_factory=lambda: Queue(_AHEAD))
    done: Queue[Reply] = field(default_factory=Queue)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = Thread(target=self._work, name="drift-writer", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (reply := self.waiting.get()) is not None:
            if self.failure is None:
                try:
                    self.session.commit(reply)
                    self.done.put(reply)
                except BaseException as error:  # noqa: BLE001 (whatever it is, it is raised again in the main thread)
                    self.failure = error

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
) -> Outcome:
    """Answer every unanswered turn of a run's plan, committing each as it is made.

    Returns when everything is done or soon after `stop()` turns true. Errors of store and engine pass through; every turn counted before is on disk.
    """
    states = run.states()
    total, done = sum(state.total for state in states), sum(state.total if state.ended else state.done for state in states)
    session = _Session(run, chat, axis, end_ids, display)
    started, interrupted = time.monotonic(), False

    def report(incident: Incident) -> None:
        display.note(incident.detail)
        run.event(incident.kind, detail=incident.detail)

    with ExitStack() as stack:
        stack.callback(session.close)
        shown = _Shown(session, stack.enter_context(display.progress(total, done)))
        writer = _Writer(session)
        stack.callback(writer.finish)

        def asked() -> bool:
            shown.update(writer)
            return stop()

        try:
            for reply in engine.run(session.jobs(states, engine.batch, company=engine.needs_company), asked, report):
                writer.put(reply)
                if asked():
                    raise Stopped
        except Stopped:
            interrupted = True
        writer.finish()
        shown.update(writer)
        writer.check()
    return Outcome(shown.turns, time.monotonic() - started, interrupted)


@dataclass
class _Shown:
    """What the person at the terminal has been told. A turn is counted when it is on disk."""

    session: _Session
    progress: Progress
    turns: int = 0

    def update(self, writer: _Writer) -> None:
        """Count what was committed since; raise what went wrong with it."""
        self.progress.tick()
        for reply in writer.committed():
            if reply.finish is Finish.CONTEXT:
                length = len(reply.prompt)
                self.session.display.note(
                    f"{reply.rollout} ends before turn {reply.turn}: its prompt of {length} tokens and a reply do not fit"
                )
                self.progress.skip(self.session.totals[reply.rollout] - reply.turn + 1)
            else:
                self.turns += 1
                self.progress.step(f"{reply.rollout} turn {reply.turn}")
        writer.check()
