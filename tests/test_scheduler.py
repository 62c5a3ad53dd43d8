"""The scheduler's plans, without a network: a made-up device keeps rows of tokens and says what a model might."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_cli.engine.contract import Given, Incident, Job, Reply
from drift_cli.engine.plan import Chunk, DoesNotFit, Done, Encode, Free, Limits, Plan, Step
from drift_cli.engine.scheduler import Scheduler
from drift_cli.errors import DriftError
from drift_cli.spec import Answered, Cell, Finish, Rollout, Segment

END, STOP = 0, 9
"""An end-of-turn token, and one that takes the place of a stop string."""
TURNS = 3


@dataclass(frozen=True)
class Talk:
    """A conversation of numbers. User turn t is (100 + t, 200 + t); a template that `rewrites` leaves out the first token of earlier replies."""

    prompt: tuple[int, ...] = (101, 201)
    past: tuple[Answered, ...] = ()
    problem: str | None = None
    rewrites: bool = False
    has_stops: bool = False
    fails: int = 99
    """The turn for which there is no prompt."""

    @property
    def turn(self) -> int:
        return len(self.past) + 1

    @property
    def end(self) -> Finish | None:
        return Finish.COMPLETE if self.turn > TURNS else Finish.TEMPLATE if self.problem else None

    def stop_length(self, ids: Sequence[int]) -> int | None:
        return list(ids).index(STOP) if STOP in ids else None

    def after(self, ids: Sequence[int]) -> Talk:
        length = len(ids) - (ids[-1] == END)
        kept = ids[1:length] if self.rewrites else ids[:length]
        turn = self.turn + 1
        past = (*self.past, Answered(self.prompt, tuple(ids), length, (Segment("answer", 0, length),) if length else ()))  # type: ignore[arg-type]
        return replace(self, prompt=(*self.prompt, *kept, 100 + turn, 200 + turn), past=past, problem="no" if turn == self.fails else None)


def said(tokens: Sequence[int], key: int) -> list[int]:
    """What the model says behind these tokens."""
    state, made = hash((*tokens, key)) % 7919, []
    for _ in range(2 + state % 5):
        state = state * 31 % 7919
        made.append(10 + state % 50)
    return [*made, *([STOP, 77] if state % 3 == 0 else []), END]


@dataclass(frozen=True)
class Means:
    """Which tokens were measured, behind which."""

    before: tuple[int, ...]
    counted: tuple[int, ...]

    def ready(self) -> bool:
        return True

    def value(self) -> dict[object, object]:
        return {}


@dataclass
class Device:
    """Rows of tokens. `fails` says of each plan whether there is no room for it."""

    fails: Callable[[Plan], bool] = lambda plan: False
    rows: dict[int, list[int]] = field(default_factory=dict)
    replies: dict[int, tuple[list[int], int]] = field(default_factory=dict)
    """Row → its whole reply, and how much of it is drawn."""
    plans: list[Plan] = field(default_factory=list)

    def do(self, plan: Plan) -> Done | DoesNotFit:
        self.plans.append(plan)
        if isinstance(plan, Free):
            self.rows.pop(plan.row, None)
            self.replies.pop(plan.row, None)
            return Done()
        if isinstance(plan, Step):
            return self.step(plan)
        self.replies.pop(plan.row, None)
        if self.fails(plan):
            self.rows.pop(plan.row, None)
            return DoesNotFit()
        return self.encode(plan)

    def step(self, plan: Step) -> Done | DoesNotFit:
        assert set(plan.rows) == set(self.replies)
        if self.fails(plan):
            return DoesNotFit({row: drawn for row, (_, drawn) in self.replies.items()})
        self.replies = {row: (reply, min(drawn + 1, len(reply))) for row, (reply, drawn) in self.replies.items()}
        ended = [row for row, (reply, drawn) in self.replies.items() if drawn == len(reply)]
        return Done(ended=ended, said={row: self.replies[row][0][: self.replies[row][1]] for row in (*ended, *plan.watched)})

    def encode(self, plan: Encode) -> Done:
        residual = None
        for chunk in plan.chunks:
            tokens = self.rows.get(plan.row, [])
            assert chunk.start <= len(tokens)
            self.rows[plan.row] = [*tokens[: chunk.start], *chunk.ids]
            if chunk.counted:
                residual = Means(tuple(tokens[: chunk.start]), tuple(chunk.ids[: chunk.counted]))
        if plan.draw is not None:
            assert plan.draw.place == len(self.rows[plan.row])
            self.replies[plan.row] = (said(self.rows[plan.row], plan.draw.key)[: plan.draw.limit], 0)
        return Done(residual)  # type: ignore[arg-type]


LIMITS = Limits(8, 1000, frozenset({END}), lambda prompt, keep: keep)


def jobs(count: int, **how: object) -> list[Job]:
    return [Job(Rollout(Cell("t", "c", 1.0), n), Talk(**how), n) for n in range(count)]  # type: ignore[arg-type]


def scheduler(todo: list[Job], rows: int, limits: Limits = LIMITS, incidents: list[Incident] | None = None) -> Scheduler:
    return Scheduler(Given(todo), rows, limits, (incidents if incidents is not None else []).append)


def run(made: Scheduler, device: Device) -> list[tuple[Reply, Means | None]]:
    while (plan := made.schedule()) is not None:
        made.update(plan, device.do(plan))
    assert device.replies == {}
    return list(made.done)  # type: ignore[arg-type]


def known(found: list[tuple[Reply, Means | None]]) -> dict[tuple[Rollout, int], tuple[object, ...]]:
    """What must not depend on the order of work, each once."""
    made = {(reply.rollout, reply.turn, reply.ids == ()): (reply.prompt, reply.ids, reply.finish, means) for reply, means in found}
    assert len(made) == len(found)
    return made  # type: ignore[return-value]


def test_the_scheduler_needs_no_torch() -> None:
    line = "import sys, drift_cli.engine.scheduler; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0


def test_a_rollouts_plans_one_by_one() -> None:
    (job,) = todo = jobs(1)
    device = Device()
    run(scheduler(todo, 2), device)
    first = said((101, 201), 0)[:8]
    plans = [plan for plan in device.plans if not isinstance(plan, Step)]
    assert isinstance(plans[0], Encode)
    assert (plans[0].row, plans[0].chunks) == (0, (Chunk((101, 201), 0),))
    assert plans[0].draw is not None
    assert (plans[0].draw.place, plans[0].draw.turn, plans[0].draw.limit, plans[0].draw.forced) == (2, 1, 8, False)
    length = len(first) - 1
    assert isinstance(plans[1], Encode)
    assert plans[1].chunks == (Chunk((*first[:-1], 102, 202), 2, length, None, job.conversation.past[0].segments),)
    assert [type(plan) for plan in plans] == [Encode, Encode, Encode, Encode, Free]
    steps = [plan for plan in device.plans if isinstance(plan, Step)]
    assert set(steps) == {Step((0,), ())}
    assert plans[3].draw is None  # type: ignore[union-attr]
    assert job.ended
    assert job.conversation.turn == TURNS + 1


def test_every_reply_is_measured_behind_its_own_prompt() -> None:
    for rewrites in (False, True):
        for reply, means in run(scheduler(jobs(5, rewrites=rewrites), 3), Device()):
            assert means is not None
            assert (means.before, means.counted) == (reply.prompt, tuple(token for token in reply.ids if token != END))


def test_a_rewritten_history_is_encoded_from_where_it_parts() -> None:
    device = Device()
    run(scheduler(jobs(1, rewrites=True), 1), device)
    second = device.plans[[isinstance(plan, Encode) for plan in device.plans].index(True, 1)]
    assert isinstance(second, Encode)
    assert [(chunk.start, chunk.counted > 0, chunk.hold) for chunk in second.chunks] == [(2, True, 2), (2, False, None)]


def test_a_stop_string_cuts_a_reply_however_far_the_device_has_run_ahead() -> None:
    plain, cut = (known(run(scheduler(jobs(6, has_stops=stops), 4), Device())) for stops in (False, True))
    assert any(STOP in ids for _, ids, *_ in plain.values())  # type: ignore[operator]
    assert all(STOP not in ids for _, ids, *_ in cut.values())  # type: ignore[operator]

    @dataclass
    class Ahead(Device):
        """Tells only every third token, and then all at once."""

        asked: int = 0

        def step(self, plan: Step) -> Done | DoesNotFit:
            for _ in range(2):
                super().step(plan)
            return super().step(plan)

    assert known(run(scheduler(jobs(6, has_stops=True), 4), Ahead())) == cut


def test_a_prompt_that_does_not_fit_ends_its_rollout_and_one_that_is_none_does_too() -> None:
    short = replace(LIMITS, context=20)
    found = [reply for reply, _ in run(scheduler(jobs(4), 2, short), Device())]
    ends = [reply for reply in found if not reply.ids]
    assert {reply.finish for reply in ends} == {Finish.CONTEXT}
    assert all(len(reply.prompt) + 8 > 20 for reply in ends)
    assert all(len(reply.prompt) + 8 <= 20 for reply in found if reply.ids)
    ends = [reply for reply, _ in run(scheduler(jobs(4, fails=2), 2), Device()) if not reply.ids]
    assert {(reply.finish, reply.turn, reply.prompt, reply.problem) for reply in ends} == {(Finish.TEMPLATE, 2, (), "no")}


def test_a_next_prompt_beyond_the_last_position_is_not_encoded() -> None:
    limits = replace(LIMITS, context=10, max_new_tokens=8)
    for bounded in (False, True):
        device = Device()
        run(scheduler(jobs(12), 3, replace(limits, bounded=bounded)), device)
        ends = [chunk.start + len(chunk.ids) for plan in device.plans if isinstance(plan, Encode) for chunk in plan.chunks]
        assert (max(ends) > 10) == (not bounded)


def test_an_aborted_rollout_makes_no_more_replies_and_frees_its_row() -> None:
    todo, device = jobs(3), Device()
    made = scheduler(todo, 3)
    for _ in range(4):
        plan = made.schedule()
        assert plan is not None
        made.update(plan, device.do(plan))
    todo[1].abort()
    found = [reply for reply, _ in run(made, device)]
    assert {reply.rollout.sample for reply in found} == {0, 2}
    assert len(found) == 2 * TURNS
    assert todo[1].conversation.turn == 1
    assert Free(1) in device.plans


def test_work_that_comes_later_is_taken_when_a_row_is_free() -> None:
    todo = jobs(2)
    late: list[Job] = []

    class Source:
        def take(self) -> Sequence[Job]:
            return [late.pop()] if late else []

    made, device = Scheduler(Source(), 1, LIMITS, lambda incident: None), Device()
    assert made.schedule() is None
    late.append(todo[0])
    assert len(run(made, device)) == TURNS
    late.append(todo[1])
    assert len(run(made, device)) == 2 * TURNS


def test_what_does_not_fit_alone_ends_and_the_last_reply_still_counts() -> None:

    def fails(plan: Plan) -> bool:
        """No room for a chunk that ends behind the second prompt's beginning."""
        return isinstance(plan, Encode) and plan.draw is not None and plan.draw.turn == 2

    device = Device(fails)
    found = [reply for reply, _ in run(scheduler(jobs(1), 2), device)]
    assert [(reply.turn, reply.finish is Finish.CONTEXT) for reply in found] == [(1, False), (2, True)]
    last = [plan for plan in device.plans if isinstance(plan, Encode)][-1]
    assert [(chunk.start, chunk.counted) for chunk in last.chunks] == [(0, 0), (2, len(found[0].ids) - 1)]
    with pytest.raises(DriftError, match="out of memory with a single rollout"):
        run(scheduler(jobs(1), 2), Device(lambda plan: isinstance(plan, Encode) and any(chunk.counted for chunk in plan.chunks)))


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    count=st.integers(1, 6),
    rows=st.integers(2, 4),
    how=st.fixed_dictionaries({"rewrites": st.booleans(), "has_stops": st.booleans(), "fails": st.sampled_from([2, 99])}),
)
def test_want_of_memory_at_any_moment_changes_no_reply(data: st.DataObject, count: int, rows: int, how: dict[str, object]) -> None:
    expected = known(run(scheduler(jobs(count, **how), rows), Device()))
    todo = jobs(count, **how)
    made = scheduler(todo, rows)
    left = 8  # faults

    def fails(plan: Plan) -> bool:
        nonlocal left
        fault = left > 0 and len(made.live) > 1 and data.draw(st.integers(0, 5)) == 0
        left -= fault
        return fault

    device = Device(fails)
    while (plan := made.schedule()) is not None:
        if left > 0 and made.rows > 1 and data.draw(st.integers(0, 40)) == 0:
            left -= 1
            device.rows.clear()
            device.replies.clear()
            made.lost(made.rows - 1)
            continue
        made.update(plan, device.do(plan))
    assert known(list(made.done)) == expected  # type: ignore[arg-type]
    assert all(job.ended for job in todo)
    assert (made.live, list(made.waiting)) == ({}, [])
