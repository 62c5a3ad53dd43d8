"""Tables for pictures, always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from drift_cli.analysis.layers import LayerTable
from drift_cli.analysis.results import Options
from drift_cli.analysis.study import analyze
from drift_cli.analysis.table import RunTable
from drift_cli.results.figures.curves import simultaneous
from drift_cli.results.figures.difference import difference
from drift_cli.results.figures.forest import forest
from drift_cli.results.figures.heatmap import heatmap
from drift_cli.results.figures.layers import layers
from drift_cli.results.figures.palette import PAPER, Style
from drift_cli.results.figures.ridgeline import ridgeline
from drift_cli.results.figures.tokens import tokens
from drift_cli.results.figures.trajectory import Mark, trajectory
from drift_cli.spec import Cell

NAMES = ("baseline", "simple", "complex", "gentle", "stern", "poetic", f"a-reminder-that-is-{'long-' * 12}"[:80])
WORDS = "Hello there, I <b>feel</b> that this costs $5$ or $6$.\n\nThe light is quiet; tell me more about that please."


def table(conditions: int = 3, rollouts: int = 8, turns: int = 18, axis: str = "assistant") -> RunTable:
    """Conditions that fall at different speeds."""
    rng = np.random.default_rng((conditions, rollouts, turns))
    cells = {}
    for place, name in enumerate(NAMES[:conditions]):
        slope = 0.12 * (1 - place / 4)
        cells[Cell("lonely", name, 0.7)] = 3 - slope * np.arange(turns) + rng.normal(0, 0.35, (rollouts, turns))
    return RunTable.from_arrays("run-01234567", axis, cells, layer=3)


def flagged(**size: int) -> RunTable:
    """The same with flags of every kind, and turns that are missing."""
    made = table(**size)
    made.flags.reciting[-3:, -4:] = True
    made.flags.length[1, 2] = True
    made.projections[3, 9:] = np.nan
    made.finish[3, 9:] = ""
    made.flags.context[3, 9] = True
    return made


def layer_table(found: RunTable, depth: int = 5) -> LayerTable:
    """Layers in which the conditions come apart with depth."""
    rng = np.random.default_rng(depth)
    shares = (np.arange(depth) / (depth - 1)) ** 2
    values = found.projections[:, None, :] * shares[None, :, None] + rng.normal(
        0, 0.3, (len(found.sample), depth, found.projections.shape[1])
    )
    return LayerTable(found, tuple(range(depth)), values)


def pieces(times: int = 3) -> list[str]:
    """A reply in words, each with the space before it."""
    words = ((WORDS + " ") * times).strip().split(" ")
    return [(" " if place else "") + word for place, word in enumerate(words)]


@dataclass(frozen=True)
class Kind:
    draw: Callable[[RunTable, Style], Figure]

    def __call__(self, found: RunTable, style: Style = PAPER) -> Figure:
        return self.draw(found, style)


def _trajectory(found: RunTable, style: Style) -> Figure:
    study = analyze(found, Options(against=found.conditions[0]))
    marks = [Mark("lonely", 1, "I feel $alone$ <b>")]
    reference = np.linspace(3, 0, found.projections.shape[1])
    return trajectory(
        found, reference=reference, differences=study.turns, bands=simultaneous(found), marks=marks, scope=study.scope, style=style
    )


def _tokens(found: RunTable, style: Style) -> Figure:
    said = pieces()
    values: Any = np.sin(np.arange(len(said)))
    return tokens(said, values, label="projection on assistant", middle=0.0, half=1.0, title="simple, rollout 7, turn 12", style=style)


KINDS: dict[str, Kind] = {
    "trajectory": Kind(_trajectory),
    "difference": Kind(lambda found, style: difference(found, analyze(found, Options(against=found.conditions[0])), style=style)),
    "forest": Kind(lambda found, style: forest(found, analyze(found), style=style)),
    "heatmap": Kind(lambda found, style: heatmap(found, style=style)),
    "ridgeline": Kind(lambda found, style: ridgeline(found, style=style)),
    "layers": Kind(lambda found, style: layers(layer_table(found), style=style)),
    "tokens": Kind(_tokens),
}
