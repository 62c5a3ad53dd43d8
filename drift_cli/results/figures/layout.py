"""Where things stand in a figure: panels in a grid; below them the legend and notes, above them a heading.

The panels keep their size: the figure becomes higher by what stands around them. Layout is done once, when a figure is drawn, so that writing it twice or
in two formats moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from drift_cli.analysis.table import Group
from drift_cli.results.figures.lettering import wrapped
from drift_cli.results.figures.palette import Style

_BELOW = 0.62
"""Height of a panel below another, in that one's height."""
DPI = 200
"""Of PNG files, and of what layouts are measured at: letters are a little larger, in proportion, the coarser the grid."""
_GAP = 0.06
"""Inches on paper, between what stands above one another."""


@dataclass(frozen=True)
class Panel:
    """Size of one panel on paper, in inches."""

    width: float
    height: float


PANEL = Panel(4.7, 2.9)
"""Of a panel that stands alone: at a paper's column width (3.4 inches) its 9-point text is 6.5 points high."""
SMALL_PANEL = Panel(3.7, 2.5)


def blank(rows: int, columns: int, panel: Panel, style: Style, **sharing: Any) -> tuple[Figure, dict[tuple[int, int], Axes]]:
    """A figure with `rows` × `columns` panels, by their place."""
    fig = Figure(figsize=(style.inches(columns * panel.width), style.inches(rows * panel.height)), layout="constrained", dpi=DPI)
    FigureCanvasAgg(fig)
    axes = dict(np.ndenumerate(fig.subplots(rows, columns, squeeze=False, **sharing)))
    return fig, {(place[0], place[1]): ax for place, ax in axes.items()}


@dataclass(frozen=True)
class Panels:
    """A figure's panels by group; `below` has the smaller ones under them, where asked for."""

    fig: Figure
    of: Mapping[Group, Axes]
    below: Mapping[Group, Axes]


def group_panels(groups: Sequence[Group], style: Style, *, below: bool = False) -> Panels:
    """A figure with a panel per group: transcripts down and temperatures across where both vary, else two abreast."""
    down, across = list(dict.fromkeys(g.transcript for g in groups)), list(dict.fromkeys(g.temperature for g in groups))
    if len(down) > 1 and len(across) > 1:
        places = {group: (down.index(group.transcript), across.index(group.temperature)) for group in groups}
        rows, columns = len(down), len(across)
    else:
        columns = min(2, len(groups))
        rows = -(-len(groups) // columns)
        places = {group: divmod(index, columns) for index, group in enumerate(groups)}
    panel = PANEL if len(groups) == 1 else SMALL_PANEL
    shares = (1.0, _BELOW) if below else (1.0,)
    size = (style.inches(columns * panel.width), style.inches(rows * sum(shares) * panel.height))
    fig = Figure(figsize=size, layout="constrained", dpi=DPI)
    FigureCanvasAgg(fig)
    grid = fig.add_gridspec(rows * len(shares), columns, height_ratios=shares * rows)
    upper = _shared(fig, grid, {group: (row * len(shares), column) for group, (row, column) in places.items()})
    lower = _shared(fig, grid, {group: (row * 2 + 1, column) for group, (row, column) in places.items()}) if below else {}
    return Panels(fig, upper, lower)


def _shared(fig: Figure, grid: GridSpec, places: Mapping[Group, tuple[int, int]]) -> dict[Group, Axes]:
    """Panels that share their vertical scale."""
    axes: dict[Group, Axes] = {}
    for group, place in places.items():
        axes[group] = fig.add_subplot(grid[place], sharey=next(iter(axes.values()), None))
        if place[1]:
            axes[group].tick_params(labelleft=False)
    return axes


def inches_of(ax: Axes) -> Panel:
    """About how wide and high a panel is, before the layout is made."""
    fig, box = ax.get_figure(root=True), ax.get_position()
    assert fig is not None
    return Panel(box.width * fig.get_figwidth(), box.height * fig.get_figheight())


def color_bar(fig: Figure, mesh: ScalarMappable, panels: Sequence[Axes], label: str, style: Style, *, extend: str = "neither") -> None:
    """What the colours of all panels mean, below them."""
    columns = panels[0].get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    text = wrapped(label, style.characters(0.85 * fig.get_figwidth(), 9))
    shrink = min(1.0, 1.2 / columns + 0.2)
    bar = fig.colorbar(mesh, ax=list(panels), location="bottom", label=text, shrink=shrink, aspect=30, extend=extend, ticks=MaxNLocator(5))
    bar.outline.set_visible(False)


def compose(fig: Figure, style: Style, *, heading: str | None = None, notes: Sequence[str] = ()) -> None:
    """Put the heading above the panels, the figure's legend (if it has one) and the notes below them, and fix the layout."""
    width = fig.get_figwidth()
    gap = style.inches(_GAP)
    top = []
    if heading:
        size = style.points(10)
        top.append(fig.text(0.5, 1, wrapped(heading, style.characters(width, 10.5)), fontsize=size, ha="center", va="top"))
    bottom: list[Any] = list(fig.legends)
    for note in notes:
        text = wrapped(note, style.characters(width - 2 * gap, 7.2))
        bottom.append(fig.text(gap / width, 0, text, fontsize=style.points(7), color=style.soft, va="top", linespacing=1.15))
    # A little more than measured: on a coarser grid than DPI letters are larger.
    heights = {artist: 1.04 * artist.get_window_extent().height / fig.dpi for artist in (*top, *bottom)}
    above, below = (sum(heights[artist] + gap for artist in artists) for artists in (top, bottom))
    height = fig.get_figheight() + above + below
    fig.set_figheight(height)
    place = height - gap
    for artist in top:
        artist.set_y(place / height)
        place -= heights[artist] + gap
    place = below
    for artist in bottom:
        if artist in fig.legends:
            artist.set_loc("upper center")
            artist.set_bbox_to_anchor((0.5, place / height))
        else:
            artist.set_y(place / height)
        place -= heights[artist] + gap
    pad = style.inches(0.05)
    rect = (0.0, below / height, 1.0, 1 - (above + below) / height)
    fig.set_layout_engine(ConstrainedLayoutEngine(rect=rect, w_pad=pad, h_pad=pad))
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
