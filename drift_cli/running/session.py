"""One process's part in a run: rollouts that it claims become jobs, replies become committed turns.

A turn is committed only while the claim on its rollout is this worker's own. What turns out to be another's (a lock, a claim that was taken away, a file that
somebody else has written) is passed over, recorded, and costs nothing but the work on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from drift_cli.axis import Axis
from drift_cli.chat import Ask, Chat, Conversation, begin, prompt_hash
from drift_cli.chat.replay import replay, user_of
from drift_cli.engine.contract import Job, Reply
from drift_cli.engine.sampling import noise_key
from drift_cli.errors import StoreError
from drift_cli.running.events import Event, Notice, RolloutEnded, TurnCommitted
from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store.growing import Forked
from drift_cli.store.log import Damaged, End, InUse, RolloutLog
from drift_cli.store.run import RolloutState, Run
from drift_cli.workers.queue import Queue


@dataclass
class Session:
    """The rollouts that one process works on, and the logs it holds open. A source of jobs for the engine."""

    run: Run
    queue: Queue
    chat: Chat
    axis: Axis | None
    end_ids: frozenset[int]
    tell: Callable[[Event], object]
    fixed_groups: bool
    """The engine runs whole groups: finished rollouts too where an unfinished one needs theirs, and one group a call."""
    users: Mapping[str, Ask] = field(default_factory=dict)
    """Transcript → the code that asks in its place."""
    logs: dict[Rollout, RolloutLog] = field(default_factory=dict)
    totals: dict[Rollout, int] = field(default_factory=dict)
    lost: deque[Rollout] = field(default_factory=deque)
    """Rollouts that were given up while they were worked on, and of which the engine is yet to be told."""
    problems: list[StoreError] = field(default_factory=list)
    """Damage that was met: such rollouts are left alone."""
    turns_taken: int = 0
    """Turns that were left of the rollouts taken, when they were taken."""
    _jobs: dict[Rollout, Job] = field(default_factory=dict)
    _given_up: list[Rollout] = field(default_factory=list)
    _ready: deque[Sequence[Job]] = field(default_factory=deque)
    _given: bool = False

    def take(self) -> Sequence[Job]:
        """The next jobs: of one rollout, or of those that were claimed together. None where nothing is to be had now. See `contract.JobSource`."""
        if not self.is_ready():
            return ()
        self._given = True
        return self._ready.popleft()

    def is_ready(self) -> bool:
        """Whether there is a job: claims rollouts if need be."""
        while not self._ready and not (self.fixed_groups and self._given):
            try:
                states = self.queue.take()
            except Damaged as error:
                self._problem(error)
                continue
            if states is None:
                return False
            if jobs := self._begin(states):
                self._ready.append(jobs)
        return bool(self._ready)

    def again(self) -> None:
        """A call of the engine is over, so that what was given up can be tried again: nothing that was given to it is in its hands any more."""
        self._given = False
        self.queue.put_back(self._given_up)
        self._given_up.clear()
        self._jobs.clear()

    def _begin(self, states: Sequence[RolloutState]) -> list[Job]:
        """Jobs of rollouts that were claimed together; none where one of them cannot be opened."""
        made = []
        waiting = {state.done for state in states if not state.ended}
        try:
            for state in states:
                if not state.ended:
                    made.append(self._open(state))
                elif self.fixed_groups and state.complete and state.done - 1 in waiting:
                    made.append(self._job(state.rollout, self.run.record(state.rollout).turns, ended=True))
        except (InUse, Forked, Damaged) as error:
            self._put_back(states, error)
            return []
        self.turns_taken += sum(self.totals[job.rollout] - job.turn + 1 for job in made if not job.ended)
        self._jobs.update({job.rollout: job for job in made})
        return made

    def _put_back(self, states: Sequence[RolloutState], error: StoreError) -> None:
        """Give up rollouts that were claimed together, since one of them is another process's or damaged."""
        mine = [state.rollout for state in states if not state.ended]
        for rollout in mine:
            self._release(rollout)
        if isinstance(error, Damaged):
            self._problem(error)
            return
        self.run.event("passed-over", rollouts=[str(rollout) for rollout in mine], detail=error.what)
        self.queue.put_back(mine)
        if isinstance(error, InUse):
            self.queue.locked(mine)

    def _problem(self, error: StoreError) -> None:
        self.problems.append(error)
        self.tell(Notice(error.what))
        self.run.event("damaged", detail=error.what)

    def _open(self, state: RolloutState) -> Job:
        log = self.run.writer(state.rollout)
        self.logs[state.rollout] = log
        for notice in log.record.notices:
            self.tell(Notice(notice))
            self.run.event("recovered", rollout=str(state.rollout), detail=notice)
        if log.record.end is None and len(log.record.turns) == state.total:
            # Killed between the last turn's line and the end line: nothing is left to generate.
            log.end(End(Finish.COMPLETE, state.total, None))
        ended = log.record.end is not None or len(log.record.turns) == state.total
        job = self._job(state.rollout, log.record.turns, ended=ended)
        if ended:
            self._finish(state.rollout)
        return job

    def _job(self, rollout: Rollout, turns: Sequence[Turn], *, ended: bool) -> Job:
        manifest, cell = self.run.manifest, rollout.cell
        user = user_of(manifest.transcripts[cell.transcript], turns, self.chat, self.users.get(cell.transcript))
        self.totals[rollout] = user.total
        talk = replay(begin(self.chat, user, manifest.conditions[cell.condition], self.end_ids), turns, str(rollout))
        return Job(rollout, talk, noise_key(manifest.spec.seed, cell, independent=manifest.spec.sampling.independent_noise), ended)

    def commit(self, reply: Reply) -> Sequence[Event]:
        """Write a reply to its rollout's file, and the rollout's end where this was its last turn. What is on disk now; nothing where it was given up."""
        log = self.logs.get(reply.rollout)
        if log is None:
            return ()
        if not self.queue.claims.is_mine(reply.rollout):
            self._lose(reply.rollout, "another worker has claimed it, since this one had no heartbeat for too long")
            return ()
        try:
            events = self._write(log, reply)
        except Forked as error:
            self._lose(reply.rollout, error.what)
            return ()
        if isinstance(events[-1], RolloutEnded):
            self._finish(reply.rollout)
        return events

    def _write(self, log: RolloutLog, reply: Reply) -> list[Event]:
        """Commit one reply."""
        rollout, total = reply.rollout, self.totals[reply.rollout]
        if reply.finish in (Finish.CONTEXT, Finish.TEMPLATE):
            length = len(reply.prompt) if reply.finish is Finish.CONTEXT else None
            log.end(End(reply.finish, reply.turn, length))
            facts = {"prompt_length": length} if reply.problem is None else {"detail": reply.problem}
            self.run.event(reply.finish.value, rollout=str(rollout), turn=reply.turn, **facts)
            why = reply.problem or f"its prompt of {length} tokens and a reply do not fit"
            return [RolloutEnded(rollout, reply.finish, reply.turn, total - reply.turn + 1, why)]
        turn, user = self._turn(reply)
        log.append(turn)
        events: list[Event] = [TurnCommitted(rollout, turn, user)]
        if reply.turn == total:
            log.end(End(Finish.COMPLETE, reply.turn, None))
            events.append(RolloutEnded(rollout, Finish.COMPLETE, reply.turn, 0))
        return events

    def _turn(self, reply: Reply) -> tuple[Turn, str]:
        """A reply as it is stored, and the user's text that it answers."""
        manifest, talk, projections = self.run.manifest, reply.conversation, {}
        assert isinstance(talk, Conversation)
        if self.axis is not None and reply.residual is not None:
            for entry in manifest.axes:
                projections[entry.name] = float(self.axis.project(reply.residual[manifest.layers.index(entry.layer)], entry.layer))
        said, user = talk.said[reply.turn - 1], talk.users[reply.turn - 1]
        turn = Turn(
            index=reply.turn,
            text=said.answer,
            finish=reply.finish,
            ids=reply.ids,
            prompt_length=len(reply.prompt),
            prompt_hash=prompt_hash(reply.prompt),
            residual=reply.residual,
            projections=projections,
            segments=said.segments,
            reasoning=said.reasoning or None,
            means=reply.means,
            user=user if manifest.lines > 1 else None,
        )
        return turn, user

    def _finish(self, rollout: Rollout) -> None:
        self._close_log(rollout)
        self.queue.claims.finish(rollout)
        self.queue.ended(rollout)

    def _lose(self, rollout: Rollout, why: str) -> None:
        """Give a rollout up in the middle: what was committed stays, what the engine still makes of it is thrown away."""
        self._release(rollout)
        self.lost.append(rollout)
        self.run.event("passed-over", rollouts=[str(rollout)], detail=why)

    def _release(self, rollout: Rollout) -> None:
        """Close a rollout's log, then give up its claim: in this order, so that whoever claims it next finds no lock."""
        self._close_log(rollout)
        self.queue.claims.release(rollout)

    def _close_log(self, rollout: Rollout) -> None:
        log = self.logs.pop(rollout, None)
        if log is not None:
            log.close()

    def let_go(self) -> Iterator[Rollout]:
        """Rollouts given up since this was last asked; the engine makes no more replies of them. (A group of fixed members keeps them to its end.)

        To be called from the engine's own thread.
        """
        while self.lost:
            rollout = self.lost.popleft()
            self._given_up.append(rollout)
            self._jobs[rollout].abort()
            yield rollout

    def close(self) -> None:
        """Close every log and give up every claim; what was committed stays."""
        for rollout in [*self.logs, *self.queue.claims.held]:
            self._release(rollout)
