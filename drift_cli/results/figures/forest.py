"""The forest: every pair of conditions on rollout means, with its interval and what it is in standard deviations.

On the left the difference in the axis's units, on the right Hedges' g; a filled mark is shown: an adjusted p of at most 1 - level.
Colours are the later condition's. Where the same replies were read under the other prompt, a diamond is the words' part of a difference from the baseline,
with its interval, and a cross what the prompt's presence does to the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from drift_cli.analysis.layers import Unavailable
from drift_cli.analysis.measure import find_rollout_measure
from drift_cli.analysis.presence import Presence, Split
from drift_cli.analysis.results import Comparison, Measure
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import percent
from drift_cli.analysis.table import RunTable
from drift_cli.results.figures.canvas import looks
from drift_cli.results.figures.layout import Panel, blank, compose
from drift_cli.results.figures.legend import Entry, put_legend
from drift_cli.results.figures.lettering import shortened, wrapped
from drift_cli.results.figures.palette import PAPER, Style
from drift_cli.results.figures.panel import axis_label, check_drawable
from drift_cli.results.tables.words import measure_name

MOST = 45
"""Pairs that fit a page; those with the smallest p are kept, in their order."""

_NAMES = 2.2
"""Inches on paper for the pairs' names."""


def forest(
    table: RunTable,
    study: Study,
    measure: str | None = None,
    *,
    presence: Presence | None = None,
    title: str | None = None,
    style: Style = PAPER,
) -> Figure:
    """Draw a study's comparisons of rollout means, or of another measure of rollouts; of means also their split into presence and words.

    Raises `StoreError` for a table without a turn, `UsageError` where there is no such measure, `Unavailable` where there is nothing to compare.
    """
    check_drawable(table)
    wanted = Measure.MEAN if measure is None else find_rollout_measure(measure).name
    shown = _clearest(known := _known(table, study, wanted))
    level = percent(study.options.level)
    with looks(style):
        names = [_name(pair, study, style.characters(style.inches(_NAMES), 8)) for pair in shown]
        row = (0.34 if any("\n" in name for name in names) else 0.22) * style.text / style.size
        fig, axes = blank(1, 2, Panel(3.1, 0.85 + row * len(shown)), style, sharey=True)
        left, right = axes[0, 0], axes[0, 1]
        _draw(left, shown, [(p.difference, p.low, p.high) for p in shown], table, style)
        splits = _splits(shown, presence if wanted == Measure.MEAN else None)
        _draw_parts(left, shown, splits, table, style)
        _draw(right, shown, [(p.hedges_g, p.g_low, p.g_high) for p in shown], table, style)
        left.set_yticks(np.arange(len(shown)), names)
        left.set_ylim(len(shown) - 0.5, -0.5)
        letters = max(len(line) for name in names for line in name.split("\n"))
        wide = style.characters((fig.get_figwidth() - 0.0075 * style.points(8) * letters) / 2 - style.inches(0.25), 9)
        what = axis_label(table) if measure is None else f"{measure_name(wanted, study.first)}, {axis_label(table)}"
        left.set_xlabel(wrapped(f"difference in {what}", wide))
        right.set_xlabel(wrapped("Hedges' g (differences in SDs)", wide))
        put_legend(fig, _entries(style, level, study.options.level, parts=any(splits)), style)
        left_out = len(known) - len(shown)
        said = f"Adjusted: differences from {study.baseline} by Holm, others together with all turns and measures, and only where one of the former is shown."
        notes = [f"{shown[0].method}. {said} {study.scope}", *([f"{left_out} pairs with larger p are not shown."] if left_out else [])]
        compose(fig, style, heading=title, notes=notes)
    return fig


def _entries(style: Style, level: str, of: float, *, parts: bool) -> list[Entry]:
    """The legend's: what is shown, what is not, the interval, and the parts of a difference."""
    alpha = f"{1 - of:.3g}".lstrip("0")
    mark: dict[str, Any] = {"color": style.neutral, "marker": "o", "ms": style.points(4.5), "ls": "", "mew": style.points(1)}
    found: list[Entry] = [(Line2D([], [], **mark), f"p ≤ {alpha}, adjusted"), (Line2D([], [], mfc=style.ground, **mark), "not so")]
    found.append((Line2D([], [], color=style.neutral), f"{level} interval"))
    small = {**mark, "ms": style.points(3.2)}
    return found + [(Line2D([], [], **{**small, "marker": name}), said) for name, said in (_PARTS.items() if parts else ())]


def _known(table: RunTable, study: Study, measure: str) -> list[Comparison]:
    rows = (row for row in (*study.comparisons, *study.drift, *study.added) if row.measure == measure)
    if not (known := [pair for pair in rows if pair.difference is not None]):
        raise Unavailable(
            f"run {table.run_id} has no two conditions with a turn in common", mend="Add one: drift generate --condition NAME"
        )
    return known


_PARTS = {"d": "the words' part", "x": "the prompt's presence"}


def _splits(pairs: Sequence[Comparison], presence: Presence | None) -> list[Split | None]:
    """Of each pair, its split; None where it has none, or where the pair is the other way round."""
    if presence is None:
        return [None] * len(pairs)
    wanted = (
        (p, None if p.transcript is None or p.temperature is None else presence.of(p.a, p.transcript, p.temperature, Measure.MEAN))
        for p in pairs
    )
    return [split if split is not None and split.words.b == pair.b else None for pair, split in wanted]


def _draw_parts(ax: Axes, pairs: Sequence[Comparison], splits: Sequence[Split | None], table: RunTable, style: Style) -> None:
    look_of = style.each(table.conditions)
    for place, (pair, split) in enumerate(zip(pairs, splits, strict=True)):
        for marker, row in () if split is None else (("d", split.words), ("x", split.presence)):
            at, color = place + 0.28, look_of[pair.a].color
            if row.low is not None and row.high is not None and marker == "d":
                ax.plot([row.low, row.high], [at, at], gid=f"words-interval-{place}", color=color, lw=style.points(0.9), zorder=2)
            if row.difference is not None:
                gid = f"{'words' if marker == 'd' else 'presence'}-{place}"
                face = color if marker == "x" or row.starred else style.ground
                ax.plot([row.difference], [at], gid=gid, marker=marker, color=color, mfc=face, ms=style.points(3.2), ls="", zorder=3)


def _clearest(pairs: Sequence[Comparison]) -> list[Comparison]:
    ranked = sorted(range(len(pairs)), key=lambda place: (pairs[place].p is None, pairs[place].p or 0.0, place))
    return [pairs[place] for place in sorted(ranked[:MOST])]


def _name(pair: Comparison, study: Study, width: int) -> str:
    """Both conditions in lines of at most `width` characters; where they do not fit one line, each has its own."""
    several = len({(p.transcript, p.temperature) for p in study.comparisons}) > 1
    where = f" ({pair.transcript}, T {pair.temperature:g})" if several and pair.temperature is not None else ""
    whole = f"{pair.a} − {pair.b}{where}"
    return whole if len(whole) <= width else f"{shortened(pair.a, width - 2)} −\n{shortened(pair.b + where, width)}"


def _draw(
    ax: Axes, pairs: Sequence[Comparison], numbers: Sequence[tuple[float | None, float | None, float | None]], table: RunTable, style: Style
) -> None:
    look_of = style.each(table.conditions)
    ax.axvline(0, color=style.ink, lw=style.points(0.8), zorder=1)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    for place, (pair, (middle, low, high)) in enumerate(zip(pairs, numbers, strict=True)):
        look = look_of[pair.a]
        if low is not None and high is not None:
            ax.plot(
                [low, high],
                [place, place],
                gid=f"interval-{place}",
                color=look.color,
                lw=style.points(1.6),
                zorder=2,
                solid_capstyle="butt",
            )
        if middle is not None:
            sure = pair.starred
            looks_of: dict[str, Any] = {
                "mfc": look.color if sure else style.ground,
                "mec": look.color,
                "mew": style.points(1),
                "ms": style.points(4.5),
            }
            ax.plot([middle], [place], gid=f"effect-{place}", marker=look.marker, ls="", zorder=3, **looks_of)
