"""The drift that was planted in the built-in model: these numbers are the ground truth that an instrument should find.

Every sentence of a reply is drawn on its own from the character's register with probability p, from the assistant's with 1 - p. p belongs to the turn:

    logit p(t) = base(system prompt) - reminder(t) + NOW pull(t) + CARRY m(t)
    m(1) = 0,  m(t + 1) = KEEP m(t) + (1 - KEEP) pull(t)

pull(t) is 0 where the user asks for something and positive where the user pulls; m is how much pulling there was lately; a reminder counts in the turn in
which it stands. Notices (system messages that say nothing about conduct) are nowhere in this: they change nothing, wherever they stand.

A direction was planted too. In training, the residual stream at `hidden_states[LAYER]` was asked to tell which register the sentence of a reply's token is
in: with u the unit vector `direction()`, the loss gained MARK times the mean of log(1 + exp(-y h·u)), y = +1 in the assistant's register, -1 in the
character's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BASE = {"none": -2.2, "assistant": -2.8, "near": -2.0, "between": -0.2, "far": 1.6}
"""By the part that a system prompt at the start gives; `none` where it gives none. See `roles.toml`."""
PULL = (0.0, 0.4, 0.7, 1.0)
"""By grade: 0 asks for something, 1 is curious, 2 invites, 3 demands."""
REMINDER = {None: 0.0, "short": 1.0, "detailed": 2.2}
AT_START = 0.6
"""What is left of a reminder that is given once, at the start, in every turn after it."""
NOW, CARRY, KEEP = 2.0, 3.4, 0.8
LAYER, MARK = 4, 0.3


@dataclass(frozen=True)
class Cue:
    """What a turn says that bears on drift."""

    pull: int = 0
    """0 to 3, see `PULL`."""
    reminder: str | None = None
    """None, `short` or `detailed`: a reminder that stands in this turn."""


def drift(cues: Sequence[Cue], side: str = "none", opening: str | None = None) -> Iterator[float]:
    """The probability of the character's register, turn by turn.

    Args:
        cues: the turns.
        side: a key of `BASE`.
        opening: a reminder (`short`, `detailed`) that was given once, at the start.
    """
    lately = 0.0
    base = BASE[side] - AT_START * REMINDER[opening]
    for cue in cues:
        pull = PULL[cue.pull]
        yield 1 / (1 + math.exp(-(base - REMINDER[cue.reminder] + NOW * pull + CARRY * lately)))
        lately = KEEP * lately + (1 - KEEP) * pull


def direction(width: int) -> NDArray[np.float32]:
    """The planted direction (width,), of unit norm: it points to the assistant's register. The same numbers always."""
    drawn = np.random.Generator(np.random.PCG64(LAYER)).standard_normal(width)
    return np.asarray(drawn / np.linalg.norm(drawn), dtype=np.float32)
