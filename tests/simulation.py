"""Simulated experiments whose truth is known, and what a sound analysis must do with them.

A rollout is a script's curve, a level of its own, and turns that go with one another (AR(1)) and spread further apart as the conversation goes on: the
shape of real drift. Arrays are (rollouts, experiments, turns).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 4000
ROLLOUTS, TURNS = 16, 18
LEVEL = 0.95
SCRIPT = 3.0 - 2.0 * np.sqrt(np.arange(TURNS) / TURNS)


@dataclass(frozen=True)
class Shape:
    """One condition of a simulated experiment: rollouts, spread, and what their noise looks like."""

    n: int = ROLLOUTS
    spread: float = 1.0
    kind: str = "normal"
    """normal; skewed (exponential); mixture (a fifth of the rollouts leaves for good, at a turn of its own)."""


def rollouts(rng: np.random.Generator, n: int = ROLLOUTS, draws: int = DRAWS, *, spread: float = 1.0, kind: str = "normal") -> Array:
    """(n, draws, TURNS) of one condition without any effect."""
    noise = rng.exponential(size=(n, draws, TURNS)) - 1 if kind == "skewed" else rng.normal(size=(n, draws, TURNS))
    turns = np.empty_like(noise)
    turns[..., 0] = noise[..., 0]
    for t in range(1, TURNS):
        turns[..., t] = 0.5 * turns[..., t - 1] + np.sqrt(0.75) * noise[..., t]
    levels = 0.15 * rng.normal(size=(n, draws, 1))
    made = SCRIPT + spread * (levels + np.linspace(0.2, 0.6, TURNS) * turns)
    if kind == "mixture":
        leaves = np.where(rng.random((n, draws)) < 0.2, rng.integers(3, TURNS, (n, draws)), TURNS)
        made = made - 1.5 * spread * (np.arange(TURNS) >= leaves[..., None])
    return made


def conditions(rng: np.random.Generator, shapes: tuple[Shape, ...], draws: int) -> list[Array]:
    """Conditions with one and the same mean curve."""
    return [rollouts(rng, shape.n, draws, spread=shape.spread, kind=shape.kind) for shape in shapes]


def cut_short(rng: np.random.Generator, values: Array, share: float) -> Array:
    """This share of the rollouts ends early, anywhere from turn 5 on."""
    ends = np.where(rng.random(values.shape[:2]) < share, rng.integers(5, TURNS, values.shape[:2]), TURNS)
    return np.where(np.arange(TURNS) < ends[..., None], values, np.nan)


@dataclass(frozen=True)
class Rates:
    """What a procedure did: how often it rejected a true null (for a family: found anything), and how often its intervals held the truth (for bands: all of
    it). NaN for what it does not have."""

    error: float = float("nan")
    coverage: float = float("nan")

    @classmethod
    def of(cls, p: Array | None = None, low: Array | None = None, high: Array | None = None, truth: float | Array = 0.0) -> Rates:
        """From p values and intervals of the experiments."""
        held = float("nan") if low is None or high is None else float(np.mean((low <= truth) & (truth <= high)))
        return cls(float("nan") if p is None else float(np.mean(p <= 1 - LEVEL)), held)


def check_error(rates: Rates, slack: float = 0.0) -> None:
    """The test rejects 4 to 6 % of true nulls at 5 %."""
    assert 0.04 - slack <= rates.error <= 0.06 + slack, f"rejects {rates.error:.1%} of true nulls"


def check_family_rate(rates: Rates, slack: float = 0.0) -> None:
    """The family finds something in at most 6 % of experiments without any difference."""
    assert 0.0 < rates.error <= 0.06 + slack, f"finds something in {rates.error:.1%} of experiments without any difference"


def check_held(rates: Rates, slack: float = 0.0) -> None:
    """The 95 % intervals hold the truth in 93.5 to 96.5 % of the experiments."""
    assert 0.935 - slack <= rates.coverage <= 0.965 + slack, f"covers {rates.coverage:.1%}"


def check_size(p: Array) -> None:
    """`check_error` of these p values."""
    check_error(Rates.of(p))


def check_family(p: Array) -> None:
    """`check_family_rate` of these adjusted p (experiments, tests)."""
    check_family_rate(Rates.of(np.nanmin(p, axis=-1)))


def check_coverage(low: Array, high: Array, truth: float | Array) -> None:
    """`check_held` of these intervals."""
    check_held(Rates.of(None, low, high, truth))


def fails(check: Callable[[], None]) -> str:
    """What the check says against an analysis; fails where it lets it pass."""
    try:
        check()
    except AssertionError as error:
        return str(error)
    raise AssertionError("a wrong analysis passed")
