"""Where the effects of conditions stand among those on control axes: is it this axis, or any axis?

The same rollouts are projected on each control axis and compared as on the axis itself: Hedges' g of rollout means, by the rule of `measures.py` where turns
are missing. Effects are compared by size, whatever their sign: a random direction has none that means anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from drift_cli.analysis.compare import Pair, pairs
from drift_cli.analysis.effects import hedges_g
from drift_cli.analysis.measures import both, sample
from drift_cli.analysis.results import Measure, Options
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.spec import Cell


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A difference between two conditions beside the same difference on control axes of one kind."""

    a: str
    b: str
    transcript: str
    temperature: float
    kind: str
    """Of the control axes."""
    count: int
    """Control axes that have an effect: those on which rollouts differ at all."""
    hedges_g: float | None
    """On the axis itself."""
    smaller: float | None
    """Share of the control axes whose effect is smaller in size."""
    median: float | None
    largest: float | None
    """Of the sizes of the controls' effects."""


def standings(table: RunTable, controls: Mapping[str, FloatArray], options: Options) -> tuple[Standing, ...]:
    """Every pair of conditions, for each kind of control axes.

    Args:
        table: the rollouts on the axis itself. Turns that it lacks do not count on control axes either.
        controls: by kind, projections (K, R, T) of the same rollouts and turns on K control axes.
        options: which pairs and turns, as in `study.analyze`.
    """
    real = {_key(pair): _effect([pair]) for pair in _pairs(table, options)}
    found = []
    for kind, projections in controls.items():
        there = np.isfinite(table.projections)
        views = [_pairs(replace(table, projections=np.where(there, one, np.nan)), options) for one in projections]
        for of_pair in zip(*views, strict=True):
            found.append(_standing(kind, *_key(of_pair[0]), real[_key(of_pair[0])][0], np.abs(_effect(of_pair))))
    return tuple(found)


def _pairs(table: RunTable, options: Options) -> list[Pair]:
    seen = table if options.turns is None else table.window(*options.turns)
    return pairs([sample(seen, cell) for cell in seen.cells], options.against)


def _key(pair: Pair) -> tuple[Cell, Cell]:
    return pair[0].cell, pair[1].cell


def _effect(of_axes: list[Pair] | tuple[Pair, ...]) -> FloatArray:
    """g (K,) of the same pair of cells on K axes; NaN where it cannot be computed."""
    a, b = (np.stack(columns, axis=1) for columns in zip(*(both(Measure.MEAN, *pair) for pair in of_axes), strict=True))
    a, b = a[np.isfinite(a).all(axis=1)], b[np.isfinite(b).all(axis=1)]
    effects = np.full(len(of_axes), np.nan)
    if min(len(a), len(b)) >= 2:
        spread = (a.std(axis=0) > 0) | (b.std(axis=0) > 0)
        effects[spread] = hedges_g(a[:, spread], b[:, spread], 0.95).g
    return effects


def _standing(kind: str, a: Cell, b: Cell, real: float, sizes: FloatArray) -> Standing:
    sizes = sizes[np.isfinite(sizes)]
    known = bool(np.isfinite(real)) and len(sizes) > 0
    return Standing(
        a=a.condition,
        b=b.condition,
        transcript=a.transcript,
        temperature=a.temperature,
        kind=kind,
        count=len(sizes),
        hedges_g=float(real) if np.isfinite(real) else None,
        smaller=float((sizes < abs(real)).mean()) if known else None,
        median=float(np.median(sizes)) if len(sizes) else None,
        largest=float(sizes.max()) if len(sizes) else None,
    )
