"""What the tests of both engines share: a script, two conditions, their jobs, and models in memory."""

from __future__ import annotations

import numpy as np

from drift_cli.chat import Dialogue, chat_for
from drift_cli.engine.contract import Engine, Incident, Job, Reply
from drift_cli.engine.sampling import noise_key
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Condition, Placement, Rollout

USERS = ("hello there you are kind", "tell me more about that please", "what is the light", "I feel quiet")
CONDITIONS = (Condition("baseline"), Condition("simple", "be quiet and kind", Placement.USER_SUFFIX))


def never() -> bool:
    return False


def silent(incident: Incident) -> None:
    raise AssertionError(incident)


def jobs(model: LoadedModel, *, samples: int = 3, temperature: float = 0.8, size: int = 4, chat: str = "template") -> list[Job]:
    made: list[Job] = []
    for condition in CONDITIONS:
        cell = Cell("t", condition.name, temperature)
        for sample in range(samples):
            dialogue = Dialogue(chat_for(model.card.tokenizer, chat), USERS, condition, model.card.end_ids)
            made.append(Job(Rollout(cell, sample), dialogue, noise_key(3, cell, independent=False), len(made) // size))
    return made


def run(engine: Engine, todo: list[Job]) -> dict[tuple[Rollout, int], Reply]:
    """Replies by rollout and turn."""
    return {(reply.rollout, reply.turn): reply for reply in engine.run(todo, never, silent)}


def same_bits(a: dict[tuple[Rollout, int], Reply], b: dict[tuple[Rollout, int], Reply]) -> bool:
    """Whether two runs gave the same prompts, ids and residual means, to the bit."""
    return set(a) == set(b) and all(
        x.ids == b[key].ids
        and x.prompt == b[key].prompt
        and (x.residual is None if b[key].residual is None else np.array_equal(x.residual, b[key].residual))
        for key, x in a.items()
    )
