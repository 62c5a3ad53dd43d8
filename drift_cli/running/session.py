"""One process's part in a run: rollouts that it claims become jobs, replies become committed turns.

A turn is committed only while the claim on its rollout is this worker's own. What turns out to be another's (a lock, a claim that was taken away, a file that
somebody else has written) is passed over, recorded, and costs nothing but the work on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from drift_cli.axes import Axis
from drift_cli.chat import Chat, Dialogue, prompt_hash
from drift_cli.display import Display
from drift_cli.engine.contract import Job, Reply
from drift_cli.engine.sampling import noise_key
from drift_cli.errors import StoreError
from drift_cli.probe import project
from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store.growing import Forked
from drift_cli.store.log import Damaged, End, InUse, RolloutLog
from drift_cli.store.run import RolloutState, Run
from drift_cli.workers.queue import Queue


@dataclass
class Session:
    """The rollouts that one process works on, and the logs it holds open."""

    run: Run
    queue: Queue
    chat: Chat
    axis: Axis | None
    end_ids: frozenset[int]
    display: Display
    company: bool
    """The engine runs whole groups: finished rollouts too where an unfinished one needs theirs, and one group a call."""
    logs: dict[Rollout, RolloutLog] = field(default_factory=dict)
    totals: dict[Rollout, int] = field(default_factory=dict)
    lost: deque[Rollout] = field(default_factory=deque)
    """Rollouts that were given up while they were worked on, and of which the engine is yet to be told."""
    problems: list[StoreError] = field(default_factory=list)
    """Damage that was met: such rollouts are left alone."""
    turns_taken: int = 0
    """Turns that were left of the rollouts taken, when they were taken."""
    _groups: int = 0
    _jobs: dict[Rollout, Job] = field(default_factory=dict)
    _given_up: list[Rollout] = field(default_factory=list)
    _ready: deque[Job] = field(default_factory=deque)
    _given: bool = False

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        """The next job. Asked again after it has stopped, it goes on once there is something to be had again."""
        if not self.is_ready():
            raise StopIteration
        self._given = True
        return self._ready.popleft()

    def is_ready(self) -> bool:
        """Whether there is a job: claims rollouts if need be."""
        while not self._ready and not (self.company and self._given):
            try:
                states = self.queue.take()
            except Damaged as error:
                self._problem(error)
                continue
            if states is None:
                return False
            self._ready.extend(self._begin(states))
        return bool(self._ready)

    def again(self) -> None:
        """A call of the engine is over, so that what was given up can be tried again: nothing that was given to it is in its hands any more."""
        self._given = False
        self.queue.put_back(self._given_up)
        self._given_up.clear()
        self._jobs.clear()

    def _begin(self, states: Sequence[RolloutState]) -> list[Job]:
        """Jobs of rollouts that were claimed together; none where one of them cannot be opened."""
        group, made = self._groups, []
        waiting = {state.done for state in states if not state.ended}
        try:
            for state in states:
                if not state.ended:
                    made.append(self._open(state, group))
                elif self.company and state.complete and state.done - 1 in waiting:
                    made.append(self._job(state.rollout, self.run.record(state.rollout).turns, group, ended=True))
        except (InUse, Forked, Damaged) as error:
            self._put_back(states, error)
            return []
        self._groups += 1
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
        self.display.note(error.what)
        self.run.event("damaged", detail=error.what)

    def _open(self, state: RolloutState, group: int) -> Job:
        log = self.run.writer(state.rollout)
        self.logs[state.rollout] = log
        for notice in log.record.notices:
            self.display.note(notice)
            self.run.event("recovered", rollout=str(state.rollout), detail=notice)
        if log.record.end is None and len(log.record.turns) == state.total:
            # Killed between the last turn's line and the end line: nothing is left to generate.
            log.end(End(Finish.COMPLETE, state.total, None))
        ended = log.record.end is not None or len(log.record.turns) == state.total
        job = self._job(state.rollout, log.record.turns, group, ended=ended)
        if ended:
            self._finish(state.rollout)
        return job

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
        """Bring a dialogue past a committed turn, and see that its prompt and its segments are still what they were."""
        if dialogue.problem is not None or turn.ids is None or prompt_hash(dialogue.prompt) != turn.prompt_hash:
            raise StoreError(
                f"{rollout} turn {turn.index}: the conversation's prompt is no longer what it was when this turn was made",
                mend="The tokenizer or transformers changed: `drift runs show` lists the versions in use then. Install those, or start a new run.",
            )
        if dialogue.segments(turn.ids) != turn.segments:
            raise StoreError(
                f"{rollout} turn {turn.index}: its reasoning and its answer are no longer found where they were when this turn was made",
                mend="drift or the tokenizer changed: `drift runs show` lists the versions in use then. Install those, or start a new run.",
            )
        dialogue.advance(turn.ids)

    def commit(self, reply: Reply) -> bool:
        """Write a reply to its rollout's file, and the rollout's end where this was its last turn. False where the rollout was given up."""
        log = self.logs.get(reply.rollout)
        if log is None:
            return False
        if not self.queue.claims.is_mine(reply.rollout):
            self._lose(reply.rollout, "another worker has claimed it, since this one gave no sign of life for too long")
            return False
        try:
            ended = self._write(log, reply)
        except Forked as error:
            self._lose(reply.rollout, error.what)
            return False
        if ended:
            self._finish(reply.rollout)
        return True

    def _write(self, log: RolloutLog, reply: Reply) -> bool:
        """Commit one reply; whether its rollout has ended with it."""
        if reply.finish is Finish.CONTEXT:
            log.end(End(Finish.CONTEXT, reply.turn, len(reply.prompt)))
            self.run.event("context", rollout=str(reply.rollout), turn=reply.turn, prompt_length=len(reply.prompt))
            return True
        if reply.finish is Finish.TEMPLATE:
            log.end(End(Finish.TEMPLATE, reply.turn, None))
            self.run.event("template", rollout=str(reply.rollout), turn=reply.turn, detail=reply.problem)
            return True
        log.append(self._turn(reply))
        if reply.turn < self.totals[reply.rollout]:
            return False
        log.end(End(Finish.COMPLETE, reply.turn, None))
        return True

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
            segments=reply.segments,
            reasoning=reply.reasoning,
            means=reply.means,
        )

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
        """Rollouts given up since this was last asked; the engine ends them with the reply it is at. (A group that needs its company keeps it.)

        To be called from the engine's own thread.
        """
        while self.lost:
            rollout = self.lost.popleft()
            self._given_up.append(rollout)
            if not self.company:
                self._jobs[rollout].dialogue.users = ()
            yield rollout

    def close(self) -> None:
        """Close every log and give up every claim; what was committed stays."""
        for rollout in [*self.logs, *self.queue.claims.held]:
            self._release(rollout)
