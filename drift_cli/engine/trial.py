"""Whether slots compute what a network computes, measured against the network's own rounding before slots are trusted with it.

The same conversations go through the slots that will run, as the engine will call them (a prompt, a reply token by token, the reply and the next user turn as
one chunk behind the prompt, another reply), in rows of unequal lengths, and through plain forward passes. Two things are compared, position by position:

- logits, at the end of every chunk and after every step: the root mean square of the difference over the vocabulary, in standard deviations of the logits;
- residual means of the replies at every layer: the length of the difference, as a share of the mean's own length.

What is true is a plain forward pass in float32. Its weights are held a second time while the trial runs; where memory does not allow that, a plain forward pass
in the model's own dtype takes its place. What slots may be off by is what a plain computation in the model's dtype is off by: a whole forward pass where
float32 is known, else a pass in chunks through the network's own cache. Random errors of two computations in one dtype differ by far less than `FACTOR`.

In float32 rounding is small, so that a wrong formula shows: where weights are held in float32 for the trial, slots on torch kernels run through them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drift_cli.engine.plain_passes import Yardstick
from drift_cli.engine.slot_passes import through_slots
from drift_cli.engine.slots import Slots
from drift_cli.engine.trial_text import Conversation, Measured

FACTOR = 3.0
"""How many times as far off as a plain computation slots may be, before it is called another formula: `benchmarks/trust.py` measures what rounding does."""
EXACT = 1e-3
"""What is put down to rounding in float32, whatever a plain computation is off by. Wrong windows and positions are off by .01 and more."""
FLOORS = {"float32": EXACT, "bfloat16": 4e-3, "float16": 1e-3}
"""What slots may be off by in each dtype whatever a plain computation is off by: half a unit in its last place."""


@dataclass(frozen=True)
class Distance:
    """How far a computation is from what is true; see the module's docstring."""

    logits: tuple[float, ...]
    """Of each half of each conversation, in standard deviations."""
    residuals: tuple[float, ...]
    """Of each layer, the largest over replies, as a share of the mean's length."""


@dataclass(frozen=True)
class Trial:
    """What was found."""

    dtype: str
    tokens: int
    """Of the longest conversation."""
    truth: str
    """What the two are compared with, and what `plain` is, in words."""
    slots: Distance
    plain: Distance
    """A plain computation in the same dtype."""
    exact: Distance | None
    """Plain slots with the weights in float32, where they fit a second time and the dtype is another."""

    @property
    def problem(self) -> str | None:
        """Why slots are not to be trusted with the network, in words; None where they are."""
        if self.exact is not None and (found := _worst(self.exact, None, EXACT)).share > 1:
            return f"with the weights in float32 its {found.what} differ from a plain forward pass's by {found.ours:.2g} {found.unit}"
        if (found := self.rounding).share > 1:
            return f"its {found.what} are off by {found.ours:.2g} {found.unit}, where {self.truth} is off by {found.theirs:.2g}"
        return None

    @property
    def rounding(self) -> Figure:
        """The figure of slots that is nearest to its limit, or furthest beyond it."""
        return _worst(self.slots, self.plain, FLOORS[self.dtype])

    @property
    def said(self) -> str:
        """The two figures, in words."""
        ours, theirs = max(self.slots.logits), max(self.plain.logits)
        means = max(self.slots.residuals), max(self.plain.residuals)
        return (
            f"over {self.tokens} tokens slots are off by {ours:.2g} standard deviations of the logits and {means[0]:.2g} of a residual mean's length, "
            f"{self.truth} by {theirs:.2g} and {means[1]:.2g}"
        )


@dataclass(frozen=True)
class Figure:
    """One figure of slots, and the same of a plain computation."""

    what: str
    ours: float
    unit: str
    theirs: float
    share: float
    """Of what slots may be off by; infinite where a number is not finite."""


def _worst(ours: Distance, theirs: Distance | None, floor: float) -> Figure:
    """The figure with the largest share of what is allowed: `floor`, or `FACTOR` times what the plain computation is off by."""

    def figure(what: str, unit: str, mine: float, other: float) -> Figure:
        share = mine / max(floor, FACTOR * other)
        return Figure(what, mine, unit, other, share if math.isfinite(share) else math.inf)

    plain = theirs or Distance((0.0,), (0.0,) * len(ours.residuals))
    # Seven positions and one mean are few, and chance may make one of them exact: each is held against the largest that the plain computation shows.
    found = [figure("logits", "of a standard deviation", max(ours.logits), max(plain.logits))]
    for layer, mine in enumerate(ours.residuals):
        found.append(figure(f"residual means at layer {layer}", "of their length", mine, max(plain.residuals)))
    return max(found, key=lambda it: it.share)


def distance(found: Sequence[Measured], truth: Sequence[Measured]) -> Distance:
    """See the module's docstring."""
    logits: list[float] = []
    residuals = []
    for ours, theirs in zip(found, truth, strict=True):
        spread = theirs.logits.std(-1)
        off = np.sqrt(((ours.logits - theirs.logits).astype(np.float64) ** 2).mean(-1)) / np.maximum(spread, 1e-12)
        logits += [float(np.sqrt((half**2).mean())) for half in np.split(off, 2)]
        for mine, true in zip(ours.means, theirs.means, strict=True):
            residuals.append(np.linalg.norm(mine - true, axis=1) / np.maximum(np.linalg.norm(true, axis=1), 1e-12))
    return Distance(tuple(logits), tuple(float(x) for x in np.max(residuals, axis=0)))


def judge(dtype: str, slots: Slots, given: Sequence[Conversation], against: Yardstick) -> Trial:
    """Run slots and compare.

    Raises:
        NoRoom: the conversations do not fit.
    """
    exact = None if against.exact is None else distance(against.exact, against.truth)
    ours, plain = distance(through_slots(slots, given), against.truth), distance(against.plain, against.truth)
    return Trial(dtype, max(len(it.ids) for it in given), against.said, ours, plain, exact)
