"""Differences from a baseline, turn by turn: each condition's mean less the baseline's, with the band of all turns together.

Turns whose adjusted p is at most 1 - level are filled, where the primary difference is shown too; the others are hollow. What the p and the band are
adjusted for is said below the figure. Where the same replies were read under the other prompt, a thin dotted line is the words' part of the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from drift_cli.analysis.layers import Unavailable
from drift_cli.analysis.presence import Presence
from drift_cli.analysis.results import Correction, Measure, PairTurns
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import percent
from drift_cli.analysis.table import Group, RunTable
from drift_cli.results.figures.bands import draw_band
from drift_cli.results.figures.canvas import looks
from drift_cli.results.figures.curves import beside
from drift_cli.results.figures.layout import compose, group_panels
from drift_cli.results.figures.legend import Entry, line_handle, put_legend
from drift_cli.results.figures.palette import PAPER, LineStyle, Style
from drift_cli.results.figures.panel import axis_label, check_drawable, dress


def difference(
    table: RunTable, study: Study, *, presence: Presence | None = None, title: str | None = None, style: Style = PAPER
) -> Figure:
    """Draw a study that compares with one condition. Raises `StoreError` for a table without a turn, `Unavailable` where there is nothing to compare."""
    check_drawable(table)
    if not any(turn.difference is not None for pair in study.turns for turn in pair.turns):
        raise Unavailable(
            f"run {table.run_id} has no two conditions with a turn in common", mend="Add one: drift generate --condition NAME"
        )
    baseline = study.turns[0].b
    look_of = style.each(table.conditions)
    split = False
    with looks(style):
        panels = group_panels(table.groups, style)
        for group, ax in panels.of.items():
            draw_differences(ax, study.turns, group, look_of, style)
            split = _draw_words(ax, study.turns, group, presence, look_of, style) or split
            dress(ax, table, group, style, label=f"{axis_label(table)}, less that of {baseline}")
        shown = dict.fromkeys(pair.a for pair in study.turns)
        entries = [(line_handle(look_of[name], style, banded=True), f"{name} − {baseline}") for name in shown]
        if any(turn.low is not None for pair in study.turns for turn in pair.turns):
            entries.append((Patch(facecolor=style.neutral, alpha=0.35, lw=0), band_label(study.turns)))
        if split:
            entries.append((Line2D([], [], color=style.neutral, ls=":", lw=style.points(1.1)), "the words' part"))
        put_legend(panels.fig, [*entries, *difference_marks(study.turns, style)], style)
        notes = [study.turns[0].method + ".", *([_WORDS] if split else []), study.scope]
        compose(panels.fig, style, heading=title, notes=notes)
    return panels.fig


_WORDS = "The words' part is what is left without the prompt's presence: the same replies were read under both prompts, and both orders are averaged."


def _draw_words(
    ax: Axes, pairs: Sequence[PairTurns], group: Group, presence: Presence | None, look_of: Mapping[str, LineStyle], style: Style
) -> bool:
    """Draw the words' part of the pairs of a group; whether there is any."""
    drawn = False
    mine = [pair for pair in pairs if (pair.transcript, pair.temperature) == group]
    for index, pair in enumerate(mine):
        split = None if presence is None else presence.of(pair.a, pair.transcript, pair.temperature, Measure.MEAN)
        if split is None:
            continue
        x = beside(len(pair.turns), index, len(mine))
        values = np.array([_nan(value) for value in split.turns[: len(x)]])
        ax.plot(x[: len(values)], values, gid=f"words-{pair.a}", color=look_of[pair.a].color, ls=":", lw=style.points(1.1), zorder=2.8)
        drawn = True
    return drawn


def band_label(pairs: Sequence[PairTurns]) -> str:
    """What the bands of these pairs hold."""
    level = percent(pairs[0].level)
    return f"{level} band, all turns" if all(pair.critical is not None for pair in pairs) else f"{level} band, each turn by itself"


def draw_differences(ax: Axes, pairs: Sequence[PairTurns], group: Group, look_of: Mapping[str, LineStyle], style: Style) -> None:
    """Draw the pairs of a group into its panel."""
    ax.axhline(0, color=style.ink, lw=style.points(0.8), zorder=1)
    together = all(pair.critical is not None for pair in pairs)
    mine = [pair for pair in pairs if (pair.transcript, pair.temperature) == group]
    for index, pair in enumerate(mine):
        x = beside(len(pair.turns), index, len(mine))
        values = np.array([[_nan(n) for n in (t.difference, t.band_low, t.band_high, t.low, t.high)] for t in pair.turns]).T
        low, high = values[1:3] if together else values[3:5]
        look = look_of[pair.a]
        draw_band(ax, x, low, high, pair.a, look.color, style)
        ax.plot(x, values[0], gid=f"difference-{pair.a}", color=look.color, ls=look.linestyle, lw=style.points(1.3), zorder=3)
        if not tested(pairs):
            ax.plot(x, values[0], gid=f"point-{pair.a}", color=look.color, marker=look.marker, ms=style.points(2.6), ls="", zorder=3.5)
            continue
        differs = np.isin([turn.turn for turn in pair.turns], pair.significant)
        size = style.points(4.2 if len(x) <= 24 else 2.6)
        for marked, face, name in ((differs, look.color, "differs"), (~differs, style.ground, "alike")):
            looks_of: dict[str, Any] = {"color": look.color, "mfc": face, "mew": style.points(0.9), "ms": size, "marker": look.marker}
            ax.plot(x[marked], values[0][marked], gid=f"{name}-{pair.a}", ls="", zorder=3.5, **looks_of)


def tested(pairs: Sequence[PairTurns]) -> bool:
    """Whether any turn could be tested: one rollout a side cannot."""
    return any(turn.p_adjusted is not None for pair in pairs for turn in pair.turns)


def difference_marks(pairs: Sequence[PairTurns], style: Style) -> Iterator[Entry]:
    """Legend entries: what filled and hollow turns are, and the band."""
    if not tested(pairs):
        return
    looks_of: dict[str, Any] = {"color": style.neutral, "marker": "o", "ms": style.points(4.2), "ls": "", "mew": style.points(0.9)}
    alpha = f"{1 - pairs[0].level:.3g}".lstrip("0")
    adjusted = {Correction.NONE: "each turn by itself"}.get(pairs[0].correction, "all pairs and turns together")
    yield Line2D([], [], mfc=style.neutral, **looks_of), f"differs, p ≤ {alpha}, {adjusted}"
    yield Line2D([], [], mfc=style.ground, **looks_of), "does not"


def _nan(value: float | None) -> float:
    return np.nan if value is None else value
