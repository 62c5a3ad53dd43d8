"""What the tests of both engines share: a script, two conditions, their jobs, and models in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np

from drift_cli.chat import Conversation, chat_for, scripted
from drift_cli.engine.contract import Engine, Given, Incident, Job, JobSource, Reply
from drift_cli.engine.sampling import noise_key
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Condition, Finish, Placement, Rollout

USERS = ("hello there you are kind", "tell me more about that please", "what is the light", "I feel quiet")
CONDITIONS = (Condition("baseline"), Condition("simple", "be quiet and kind", Placement.USER_SUFFIX))


def never() -> bool:
    return False


def silent(incident: Incident) -> None:
    raise AssertionError(incident)


def jobs(model: LoadedModel, *, samples: int = 3, temperature: float = 0.8, chat: str = "template") -> list[Job]:
    made: list[Job] = []
    for condition in CONDITIONS:
        cell = Cell("t", condition.name, temperature)
        for sample in range(samples):
            talk = scripted(chat_for(model.card.tokenizer, chat), USERS, condition, model.card.end_ids)
            made.append(Job(Rollout(cell, sample), talk, noise_key(3, cell, independent=False)))
    return made


def talk_of(job: Job) -> Conversation:
    """A job's conversation, with its texts."""
    assert isinstance(job.conversation, Conversation)
    return job.conversation


def talk_after(reply: Reply) -> Conversation:
    """The conversation behind a reply, with its texts."""
    assert isinstance(reply.conversation, Conversation)
    return reply.conversation


def text(reply: Reply) -> str:
    """The answer of a reply; "" where the rollout ended."""
    return talk_after(reply).said[reply.turn - 1].answer if reply.ids else ""


def advance(job: Job, *replies: Sequence[int]) -> None:
    """Bring a job past replies that were made before."""
    for ids in replies:
        job.conversation = job.conversation.after(ids)
    job.ended = job.conversation.end is Finish.COMPLETE


def given(engine: Engine, todo: Iterable[Job], size: int = 4) -> JobSource:
    """A source of these jobs: in groups of `size` for an engine with fixed groups, else one by one."""
    return Given(todo, size if engine.fixed_groups else 1)


def replies(
    engine: Engine, todo: Iterable[Job], stop: Callable[[], bool] = never, report: Callable[[Incident], None] = silent, size: int = 4
) -> Generator[Reply]:
    """An engine's replies, as it makes them."""
    return engine.run(given(engine, todo, size), stop, report)


def run(engine: Engine, todo: Iterable[Job], size: int = 4) -> dict[tuple[Rollout, int], Reply]:
    """Replies by rollout and turn."""
    return {(reply.rollout, reply.turn): reply for reply in replies(engine, todo, size=size)}


def same_bits(a: dict[tuple[Rollout, int], Reply], b: dict[tuple[Rollout, int], Reply]) -> bool:
    """Whether two runs gave the same prompts, ids and residual means, to the bit."""
    return set(a) == set(b) and all(
        x.ids == b[key].ids
        and x.prompt == b[key].prompt
        and (x.residual is None if b[key].residual is None else np.array_equal(x.residual, b[key].residual))
        for key, x in a.items()
    )
