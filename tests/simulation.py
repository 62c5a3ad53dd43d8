"""Simulated experiments whose truth is known, and what a sound analysis must do with them.

A rollout is a script's curve, a level of its own, and turns that go with one another (AR(1)) and spread further apart as the conversation goes on: the
shape of real drift. Arrays are (rollouts, experiments, turns).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 5000
ROLLOUTS, TURNS = 16, 18
LEVEL = 0.95
SCRIPT = 3.0 - 2.0 * np.sqrt(np.arange(TURNS) / TURNS)


def rollouts(rng: np.random.Generator, n: int = ROLLOUTS, draws: int = DRAWS, *, spread: float = 1.0, skewed: bool = False) -> Array:
    """(n, draws, TURNS) of one condition without any effect."""
    noise = rng.exponential(size=(n, draws, TURNS)) - 1 if skewed else rng.normal(size=(n, draws, TURNS))
    turns = np.empty_like(noise)
    turns[..., 0] = noise[..., 0]
    for t in range(1, TURNS):
        turns[..., t] = 0.5 * turns[..., t - 1] + np.sqrt(0.75) * noise[..., t]
    levels = 0.15 * rng.normal(size=(n, draws, 1))
    return SCRIPT + spread * (levels + np.linspace(0.2, 0.6, TURNS) * turns)


def check_size(p: Array) -> None:
    """The test with these p values of true nulls rejects 4 to 6 % of them at 5 %."""
    rate = float(np.mean(p < 1 - LEVEL))
    assert 0.04 <= rate <= 0.06, f"rejects {rate:.1%} of true nulls"


def check_family(p: Array) -> None:
    """The procedure with these adjusted p (experiments, turns) of true nulls finds a turn in at most 6 % of the experiments."""
    rate = float(np.mean((p < 1 - LEVEL).any(axis=-1)))
    assert 0.0 < rate <= 0.06, f"finds a turn in {rate:.1%} of experiments without any"


def check_coverage(low: Array, high: Array, truth: float | Array) -> None:
    """The 95 % intervals hold the truth in 93.5 to 96.5 % of the experiments."""
    rate = float(np.mean((low <= truth) & (truth <= high)))
    assert 0.935 <= rate <= 0.965, f"covers {rate:.1%}"


def fails(check: Callable[[], None]) -> str:
    """What the check says against an analysis; fails where it lets it pass."""
    try:
        check()
    except AssertionError as error:
        return str(error)
    raise AssertionError("a wrong analysis passed")
