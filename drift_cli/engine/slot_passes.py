"""A trial's conversations through slots, as the engine calls them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.plan import Draw
from drift_cli.engine.slots import Slots, make_slots
from drift_cli.engine.trial_text import REPLY, Conversation, Measured
from drift_cli.models import LoadedModel
from drift_cli.pool import MEAN
from drift_cli.spec import Cell, Part, Rollout, Sampling


def through_slots(slots: Slots, given: Sequence[Conversation]) -> list[Measured]:
    """The conversations, one in each row, through slots.

    Raises:
        NoRoom: they do not fit.
    """
    logits: list[list[Tensor]] = [[] for _ in given]
    means: list[list[NDArray[np.float32]]] = [[] for _ in given]
    for number in range(2):
        for row, it in enumerate(given):
            _prompt(slots, row, it, number, means[row])
            logits[row].append(slots.newest(row).to("cpu", torch.float32, copy=True))
            reply = it.replies[number]
            slots.begin(row, Draw(Rollout(Cell("trial", "trial", 0.0), row), number + 1, 0, reply.start, 1 << 20, True))
            slots.say(row, it.ids[reply.start])
        for step in range(REPLY):
            slots.step()
            for row, it in enumerate(given):
                logits[row].append(slots.newest(row).to("cpu", torch.float32, copy=True))
                if step + 1 < REPLY:
                    slots.say(row, it.ids[it.replies[number].start + step + 1])
    for row in range(len(given)):
        slots.free(row)
    return [Measured(torch.stack(found).numpy(), tuple(mean)) for found, mean in zip(logits, means, strict=True)]


def _prompt(slots: Slots, row: int, it: Conversation, number: int, means: list[NDArray[np.float32]]) -> None:
    """Encode a conversation's first prompt, or its first reply and the next user turn behind it."""
    if number == 0:
        slots.encode(row, it.ids[: it.prompt], 0, 0)
        return
    chunk = it.ids[it.prompt : it.following]
    means.append(slots.every_layer(row, chunk, it.prompt, REPLY))
    kept = slots.encode(row, chunk, it.prompt, REPLY if slots.layers else 0)
    if kept is not None and slots.chunks.pool == MEAN:
        # What the engine will store comes from the same encode: it stands in for what was measured beside it.
        means[-1] = means[-1].copy()
        means[-1][list(slots.layers)] = kept.value()[Part.ANSWER]


def through_torch_slots(model: LoadedModel, given: Sequence[Conversation]) -> list[Measured]:
    """The same through slots on torch kernels, made for it."""
    slots = make_slots(model, (), Sampling(), REPLY, len(given), backend="torch")
    try:
        return through_slots(slots, given)
    finally:
        slots.close()
