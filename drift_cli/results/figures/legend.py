"""The legend of figures with a line per condition: what each line is, on how many rollouts it stands, and what the marks mean."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from drift_cli.results.figures.curves import Curve
from drift_cli.results.figures.palette import LineStyle, Style

LINE = 42
"""Characters of a legend entry before it is broken."""
MOST_COLUMNS = 4
_HANDLE = 0.55
"""Inches on paper of an entry's handle and gaps."""

_NO_BREAK = "\u00a0"
Handle = Artist | tuple[Artist, ...]
Entry = tuple[Handle, str]


def put_legend(fig: Figure, entries: Sequence[Entry], style: Style) -> Legend:
    """Give the figure a legend of these entries, as many abreast as fit its width; `layout.compose` puts it in its place."""
    width = max(20, style.characters(fig.get_figwidth() - _HANDLE * style.text, 8))
    labels = [
        "\n".join(textwrap.fill(line, min(LINE, width)) for line in label.split("\n")).replace(_NO_BREAK, " ") for _, label in entries
    ]
    # Handles in tuples are drawn over one another, which matplotlib allows and its annotations do not know.
    handles: list[Any] = [handle for handle, _ in entries]
    for columns in range(min(len(entries), MOST_COLUMNS), 0, -1):
        legend = fig.legend(handles, labels, ncols=columns, columnspacing=1.4, labelspacing=0.35, borderaxespad=0, borderpad=0.2)
        if columns == 1 or legend.get_window_extent().width <= 0.97 * fig.bbox.width:
            break
        legend.remove()
    return legend


def curve_entries(curves: Sequence[Curve], style: Style) -> list[Entry]:
    """An entry for each condition, from its curves in all panels, in the order of conditions."""
    by_condition = {curve.condition: [other for other in curves if other.condition == curve.condition] for curve in curves}
    return [
        (line_handle(same[0].look, style, banded=any(curve.banded.any() for curve in same)), condition_label(same))
        for same in by_condition.values()
    ]


def condition_label(curves: Sequence[Curve]) -> str:
    """A condition's entry, from its curves in all panels: name, number of rollouts, and what is unusual about them."""
    counts = sorted({len(curve.values) for curve in curves})
    facts = [f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}–{counts[-1]}"]
    early = sum(curve.early for curve in curves)
    if early:
        facts.append(f"{early} incomplete")
    if not any(curve.banded.any() for curve in curves) and counts[-1] > 0:
        facts.append("no interval" if counts[-1] == 1 else "all alike, no interval")
    # Between facts a line may break, within one it may not: textwrap leaves no-break spaces alone.
    said = ", ".join(fact.replace(" ", _NO_BREAK) for fact in facts)
    return textwrap.fill(f"{curves[0].condition} ({said})", LINE)


def line_handle(look: LineStyle, style: Style, *, banded: bool) -> Handle:
    """How a condition's line looks, on its band if it has one."""
    points = style.points
    line = Line2D([], [], color=look.color, ls=look.linestyle, marker=look.marker, ms=points(3.5), mew=0, lw=points(1.5))
    return (Patch(facecolor=look.color, alpha=0.25, lw=0), line) if banded else line


def mark_entries(curves: Sequence[Curve], style: Style, *, reference: bool, band: str) -> Iterator[Entry]:
    """Entries for what belongs to no single condition, as far as it is drawn."""
    points = style.points
    if any(curve.banded.any() for curve in curves):
        yield Patch(facecolor=style.neutral, alpha=0.35, lw=0), band
    if any(len(curve.values) > 1 for curve in curves):
        yield Line2D([], [], color=style.neutral, lw=points(0.6)), "single rollouts"
    if any((curve.suspect & np.isfinite(curve.values)).any() for curve in curves):
        yield Line2D([], [], color=style.neutral, ls="", marker="x", ms=points(3.5), mew=points(0.7)), "flagged reply (band hatched)"
    if reference:
        yield Line2D([], [], color=style.reference.color, ls=style.reference.linestyle, lw=points(1.1)), "reference"
