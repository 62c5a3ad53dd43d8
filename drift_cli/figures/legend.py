"""The legend of the trajectory figure: what each line is, on how many rollouts it stands, and what the marks mean."""

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

from drift_cli.figures.curves import Curve
from drift_cli.figures.palette import NEUTRAL, REFERENCE

LINE = 42
"""Characters of a legend entry before it is broken."""
_CHARACTER, _HANDLE = 0.068, 0.55
"""Inches: of an average character of 8-point DejaVu Sans, and of an entry's handle and gaps."""

_NO_BREAK = "\u00a0"
Handle = Artist | tuple[Artist, ...]


def draw_legend(fig: Figure, curves: Sequence[Curve], *, reference: bool, level: float) -> Legend:
    """Put the legend below the panels, within the figure's width. `curves` are those of all panels, in the order of conditions within each."""
    by_condition = {curve.condition: [other for other in curves if other.condition == curve.condition] for curve in curves}
    entries = [(_handle(same), condition_label(same)) for same in by_condition.values()]
    entries += _marks(curves, reference, level)
    columns = _columns([label for _, label in entries], fig.get_figwidth())
    # Handles in tuples are drawn over one another, which matplotlib allows and its annotations do not know.
    handles: list[Any] = [handle for handle, _ in entries]
    labels = [label for _, label in entries]
    return fig.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.4, labelspacing=0.35)


def _columns(labels: Sequence[str], width: float) -> int:
    """The most columns that fit `width` (inches), filled top to bottom as matplotlib fills them."""
    widths = [_CHARACTER * max(map(len, label.split("\n"))) + _HANDLE for label in labels]
    fits = (n for n in range(len(labels), 1, -1) if sum(max(column) for column in np.array_split(widths, n)) <= width)
    return next(fits, 1)


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
    return textwrap.fill(f"{curves[0].condition} ({said})", LINE).replace(_NO_BREAK, " ")


def _handle(curves: Sequence[Curve]) -> Handle:
    look = curves[0].look
    line = Line2D([], [], color=look.color, ls=look.linestyle, marker=look.marker, ms=3.5, mew=0, lw=1.5)
    banded = any(curve.banded.any() for curve in curves)
    return (Patch(facecolor=look.color, alpha=0.25, lw=0), line) if banded else line


def _marks(curves: Sequence[Curve], reference: bool, level: float) -> Iterator[tuple[Handle, str]]:
    """Entries for what belongs to no single condition, as far as it is drawn."""
    if any(curve.banded.any() for curve in curves):
        yield Patch(facecolor=NEUTRAL, alpha=0.35, lw=0), f"{100 * level:g} % t interval of the mean, pointwise"
    if any(len(curve.values) > 1 for curve in curves):
        yield Line2D([], [], color=NEUTRAL, lw=0.6), "single rollouts"
    if any((curve.suspect & np.isfinite(curve.values)).any() for curve in curves):
        yield Line2D([], [], color=NEUTRAL, ls="", marker="x", ms=3.5, mew=0.7), "flagged reply"
    if reference:
        yield Line2D([], [], color=REFERENCE.color, ls=REFERENCE.linestyle, lw=1.1), "reference"
