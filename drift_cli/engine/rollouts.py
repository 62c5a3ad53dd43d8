"""The slots engine: carries out the scheduler's plans on slots (see `scheduler` for what is done in which order).

On a GPU the device runs ahead: a step is queued before the one before it has been looked at, chunks are queued behind steps, and a reply is handed over when
its residual means have arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from drift_cli.engine.contract import Incident, JobSource, Reply, Stopped, is_out_of_memory, no_memory
from drift_cli.engine.plan import DoesNotFit, Done, Encode, Free, Limits, NoRoom, Plan, Step
from drift_cli.engine.rotary import ends_with_context
from drift_cli.engine.scheduler import Scheduler
from drift_cli.engine.slots import Slots, make_slots
from drift_cli.models import LoadedModel
from drift_cli.pool import MEAN, Pool
from drift_cli.spec import Sampling


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
    pool: Pool = MEAN
    name: str = field(default="slots", init=False)
    fixed_groups: bool = field(default=False, init=False)
    slots: Slots | None = field(default=None, init=False)

    def prepare(self, report: Callable[[Incident], None]) -> Slots:
        """Make the slots now rather than at the first reply: compiled and captured where the device is a GPU."""
        while self.slots is None:
            try:
                asked = (self.model, self.layers, self.filters, self.max_new_tokens, self.batch)
                self.slots = make_slots(*asked, longest=self.longest, segmented=self.segmented, pool=self.pool, report=report)
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

    def run(self, jobs: JobSource, stop: Callable[[], bool], report: Callable[[Incident], None]) -> Generator[Reply]:
        """See `contract.Engine.run`."""
        try:
            slots = self.prepare(report)
            scheduler = Scheduler(jobs, slots.rows, self._limits(slots), report)
            while True:
                plan = scheduler.schedule()
                if plan is None and not scheduler.done:
                    return
                if plan is not None:
                    slots = self._work(scheduler, plan, slots, stop)
                yield from _arrived(scheduler, wait=plan is None)
        finally:
            self.close()

    def _limits(self, slots: Slots) -> Limits:
        card = self.model.card
        return Limits(self.max_new_tokens, card.context, card.end_ids, slots.layout.rewound, ends_with_context(self.model))

    def _work(self, scheduler: Scheduler, plan: Plan, slots: Slots, stop: Callable[[], bool]) -> Slots:
        """Carry a plan out; the slots to go on with. Out of memory halves them, and what was in the middle of a reply is made again from its last turn."""
        try:
            result = _carry_out(plan, slots, stop)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            scheduler.update(plan, result)
            return slots
        scheduler.done = deque((reply if late is None else reply.measured(late.value()), None) for reply, late in scheduler.done)
        self.halve(scheduler.report)
        slots = self.prepare(scheduler.report)
        scheduler.lost(slots.rows)
        return slots

    def close(self) -> None:
        """Give the slots' memory back, and the network its own attention."""
        if self.slots is not None:
            self.slots.close()
            self.slots = None


def _carry_out(plan: Plan, slots: Slots, stop: Callable[[], bool]) -> Done | DoesNotFit:
    """Do what a plan says."""
    if isinstance(plan, Free):
        slots.free(plan.row)
        return Done()
    return _step(plan, slots, stop) if isinstance(plan, Step) else _encode(plan, slots, stop)


def _step(plan: Step, slots: Slots, stop: Callable[[], bool]) -> Done | DoesNotFit:
    if stop():
        raise Stopped
    try:
        slots.step()
    except NoRoom:
        return DoesNotFit({row: len(slots.said(row)) for row in plan.rows})
    ended = tuple(slots.ended())
    return Done(ended=ended, said={row: slots.said(row) for row in (*plan.watched, *ended) if row in plan.rows})


def _encode(plan: Encode, slots: Slots, stop: Callable[[], bool]) -> Done | DoesNotFit:
    residual = None
    try:
        for chunk in plan.chunks:
            if stop():
                raise Stopped
            made = slots.encode(plan.row, chunk.ids, chunk.start, chunk.counted, chunk.hold, chunk.segments)
            residual = residual if made is None else made
        if plan.draw is not None:
            slots.begin(plan.row, plan.draw)
    except NoRoom:
        return DoesNotFit()
    return Done(residual)


def _arrived(scheduler: Scheduler, *, wait: bool) -> Iterator[Reply]:
    """Replies in the order in which they were made, as far as their residual means are there."""
    done = scheduler.done
    while done and (wait or done[0][1] is None or done[0][1].ready()):
        reply, residual = done.popleft()
        yield reply if residual is None else reply.measured(residual.value())
