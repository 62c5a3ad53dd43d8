"""Simulated experiments that are looked at five times, whose samples share noise, and whose replies are read under two prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from simulation import LEVEL, Array, Rates, Shape, conditions

from drift_cli.analysis import sequential, tests
from drift_cli.analysis.dynamics import Dynamic, movements
from drift_cli.analysis.presence import Readings, split
from drift_cli.analysis.results import Options
from drift_cli.analysis.scripts import _grid, _inferences
from drift_cli.analysis.sequential import Spending
from drift_cli.analysis.table import RunTable
from drift_cli.spec import Cell

LOOKS = (16, 24, 32, 48, 64)
Run = Callable[[np.random.Generator, int], Rates]
Rule = Callable[[list[tests.Estimates]], NDArray[np.bool_]]
"""Whether anything is shown at any of the looks (experiments,)."""


def looks(rule: Rule, *shapes: Shape) -> Run:
    """Rollout means of two conditions without a difference, looked at as they come; `shapes` have as many as the last look."""

    def run(rng: np.random.Generator, draws: int) -> Rates:
        a, b = (values.mean(axis=2) for values in conditions(rng, shapes, draws))
        found = []
        for n in LOOKS:
            share = [round(n / LOOKS[-1] * shape.n) for shape in shapes]
            found.append(tests.welch(a[: share[0]], b[: share[1]], LEVEL))
        return Rates(float(rule(found).mean()))

    return run


def naive(found: list[tests.Estimates]) -> NDArray[np.bool_]:
    """The usual test at every look."""
    return np.any([one.p <= 1 - LEVEL for one in found], axis=0)


def _z(one: tests.Estimates) -> Array:
    return np.asarray(stats.norm.isf(np.maximum(one.p, 1e-300) / 2))


def _always(found: Sequence[tests.Estimates], ns: Sequence[float]) -> NDArray[np.bool_]:
    crossed = [_z(one) >= sequential.always_valid(n, 1 - LEVEL) for one, n in zip(found, ns, strict=True)]
    return np.any(crossed, axis=0) if crossed else np.zeros(found[0].p.shape, dtype=bool)


def always(found: list[tests.Estimates]) -> NDArray[np.bool_]:
    """The always-valid interval at every look, as under a rule that decides from the data when to stop."""
    return _always(found, LOOKS)


def first_then_always(found: list[tests.Estimates]) -> NDArray[np.bool_]:
    """What a run without a plan has: the usual test at its first look, always-valid ones later."""
    return (found[0].p <= 1 - LEVEL) | _always(found[1:], LOOKS[1:])


def planned(spending: Spending, taken: Sequence[int] = LOOKS) -> Rule:
    """A plan's boundaries at the looks that were taken."""

    def rule(found: list[tests.Estimates]) -> NDArray[np.bool_]:
        limits = sequential.boundaries(tuple(n / LOOKS[-1] for n in taken), 1 - LEVEL, spending)
        return np.any([_z(found[LOOKS.index(n)]) >= limit for n, limit in zip(taken, limits, strict=True)], axis=0)

    return rule


def shared_noise(r: float, pair: Callable[[Array, Array], NDArray[np.bool_]], n: int = 16) -> Run:
    """Rollout means that correlate by r; `pair` (experiments,) says where the paired test is taken."""

    def run(rng: np.random.Generator, draws: int) -> Rates:
        a, own = rng.normal(size=(2, n, draws))
        b = r * a + np.sqrt(1 - r * r) * own
        chosen = pair(a, b)
        together, apart = tests.paired(a, b, LEVEL, 99, 0), tests.welch(a, b, LEVEL)
        return Rates.of(*(np.where(chosen, getattr(together, name), getattr(apart, name)) for name in ("p", "low", "high")))

    return run


def fixed_beforehand(a: Array, b: Array) -> NDArray[np.bool_]:
    """Always: the rule of drift for runs that recorded common noise."""
    return np.ones(a.shape[1], dtype=bool)


def where_r_looks_positive(a: Array, b: Array) -> NDArray[np.bool_]:
    """Decided by the same data."""
    return np.asarray(((a - a.mean(axis=0)) * (b - b.mean(axis=0))).sum(axis=0) > 0)


def parts(part: str, *, n: int = 12, m: int = 12, ratio: float = 1.0) -> Run:
    """The interval of a part of a difference, from table to result: words differ by .5, and the prompt moves replies by .4 on average."""

    def run(rng: np.random.Generator, draws: int) -> Rates:
        low, high = np.empty(draws), np.empty(draws)
        for draw in range(draws):
            found = split(*_read(rng, n, m, ratio), Options())[0]
            row = found.words if part == "words" else found.presence
            low[draw], high[draw] = row.low or 0.0, row.high or 0.0
        return Rates.of(None, low, high, 0.5 if part == "words" else 0.4)

    return run


def _read(rng: np.random.Generator, n: int, m: int, ratio: float) -> tuple[RunTable, Readings]:
    base = rng.normal(size=(m, 1)) + rng.normal(0, 0.5, (m, 4))
    other = ratio * (rng.normal(size=(n, 1)) + rng.normal(0, 0.5, (n, 4))) + 0.5
    moved = [0.4 + 0.2 * rng.normal(size=(size, 1)) + rng.normal(0, 0.1, (size, 4)) for size in (n, m)]
    table = RunTable.from_arrays("r", "x", {Cell("s", "base", 0.5): base, Cell("s", "other", 0.5): other + moved[0]})
    nothing = np.full((n + m, 4), np.nan)
    under_base, under_other = nothing.copy(), nothing.copy()
    under_base[m:], under_other[:m] = other, base + moved[1]
    return table, Readings("base", under_base, {"other": under_other}, 0)


def reach(population: str, k: int, w: int, n: int = 8, *, scripts: float = 0.5, words: float = 0.5, both: float = 0.3) -> Run:
    """The interval of a difference over K transcripts and W wordings, whose own effects vary by these SDs where the population says so."""
    crossed = population == "scripts and wordings like these"
    varying = np.array([scripts * (crossed or population.startswith("scripts like")), words * (crossed or "wordings like" in population)])
    together = both if varying.all() else 0.0

    def run(rng: np.random.Generator, draws: int) -> Rates:
        p, low, high = np.ones(draws), np.empty(draws), np.empty(draws)
        for draw in range(draws):
            effects = varying[0] * rng.normal(size=(k, 1)) + varying[1] * rng.normal(size=w) + together * rng.normal(size=(k, w))
            rows = []
            for place in range(k):
                base = rng.normal(place, 1, n)
                rows.append([(rng.normal(place + effects[place, word], 1, n), base) for word in range(w)])
            found = next(one for one in _inferences(_grid(rows), LEVEL) if one.population == population)
            p[draw], low[draw], high[draw] = found.p or 1.0, found.low or 0.0, found.high or 0.0
        return Rates.of(p, low, high)

    return run


MOVES = {Dynamic.AFTER_PULLS: "level behind the largest drop", Dynamic.EQUILIBRIUM: "equilibrium", Dynamic.PHI: "persistence"}


def moving(measure: Dynamic, n: int = 16, phi: float = 0.5) -> Run:
    """Two conditions of mean-reverting rollouts around one script, without a difference."""
    script = 3 - 2 * np.sqrt(np.arange(18) / 18)
    script[9] -= 1

    def run(rng: np.random.Generator, draws: int) -> Rates:
        p, low, high = np.empty(draws), np.empty(draws), np.empty(draws)
        for draw in range(draws):
            made = []
            for _ in "ab":
                own = 0.3 * rng.normal(size=n)
                values = np.empty((n, 18))
                values[:, 0] = own + 0.4 / np.sqrt(1 - phi**2) * rng.normal(size=n)
                for turn in range(1, 18):
                    values[:, turn] = own + phi * (values[:, turn - 1] - own) + 0.4 * rng.normal(size=n)
                made.append(script + values)
            table = RunTable.from_arrays(
                "r", "x", {Cell("s", name, 0.5): values for name, values in zip(("base", "other"), made, strict=True)}
            )
            found = next(
                row.difference for row in movements(table, "base", Options()) if row.measure is measure and row.difference is not None
            )
            p[draw], low[draw], high[draw] = found.p or 1.0, found.low or 0.0, found.high or 0.0
        return Rates.of(p, low, high)

    return run
