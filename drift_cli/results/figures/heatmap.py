"""The heatmap: every rollout a row, every turn a column, its colour the projection; one panel per condition, transcript and temperature.

Rows are sorted by level: the rollout with the lowest mean projection is at the bottom. Flagged replies are hatched; turns that are
missing stay empty. The colours are one scale for the whole figure.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from drift_cli.analysis.flags import Flag
from drift_cli.analysis.segments import sentence
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.results.figures.canvas import looks
from drift_cli.results.figures.layout import Panel, blank, color_bar, compose
from drift_cli.results.figures.legend import Entry, put_legend
from drift_cli.results.figures.lettering import wrapped
from drift_cli.results.figures.palette import PAPER, Style
from drift_cli.results.figures.panel import axis_label, check_drawable, turn_ticks
from drift_cli.spec import Cell

COLORMAP = "cividis"
"""Even in lightness, and made for colour-blind eyes (Nuñez et al. 2018)."""
ACROSS = 3
HATCHES = {
    Flag.RECITING: "////",
    Flag.REPEATED: "xxxx",
    Flag.EMPTY: "....",
    Flag.LENGTH: "\\\\\\\\",
    Flag.CONTEXT: "||||",
    Flag.NO_ANSWER: "oo",
    Flag.TEMPLATE: "----",
}
_SAYS = {
    Flag.RECITING: "recites the system prompt",
    Flag.REPEATED: "repeats itself",
    Flag.EMPTY: "empty",
    Flag.LENGTH: "cut at the length limit",
    Flag.CONTEXT: "no reply: out of context",
    Flag.NO_ANSWER: "no answer, reasoning only",
    Flag.TEMPLATE: "no reply: no prompt from the chat template",
}


def heatmap(table: RunTable, *, title: str | None = None, style: Style = PAPER) -> Figure:
    """Draw the table. Raises `StoreError` for a table without a turn."""
    check_drawable(table)
    cells = [cell for cell in table.cells if table.rows(cell).any()]
    columns = min(ACROSS, len(cells))
    rows = -(-len(cells) // columns)
    scale = _scale(table.projections)
    with looks(style):
        fig, axes = blank(rows, columns, _panel(table, columns, len(cells), style), style)
        for place, cell in enumerate(cells):
            mesh = _draw_cell(axes[divmod(place, columns)], table, cell, scale, style, columns)
        used = [axes[divmod(place, columns)] for place in range(len(cells))]
        for ax in axes.values():
            if ax not in used:
                fig.delaxes(ax)
        color_bar(fig, mesh, used, axis_label(table), style)
        entries = list(_entries(table, style))
        if entries:
            put_legend(fig, entries, style)
        compose(fig, style, heading=title, notes=list(_notes(table)))
    return fig


def order(values: FloatArray) -> NDArray[np.intp]:
    """Rows of `values` (n, T) from the bottom up: the lowest mean over the turns that a rollout has first, rollouts without a turn last."""
    found: NDArray[np.intp] = np.argsort(np.ma.masked_invalid(values).mean(1).filled(np.nan), kind="stable")
    return found


def _panel(table: RunTable, columns: int, cells: int, style: Style) -> Panel:
    """Rows high enough to be seen, from 3 to 64 and more of them."""
    most = max(int(table.rows(cell).sum()) for cell in table.cells)
    return Panel(
        {1: 4.0, 2: 2.6}.get(columns, 2.0), float(np.clip(0.11 * most, 0.7, 3.4 if cells <= ACROSS else 2.0)) + style.text / style.size
    )


def _scale(values: FloatArray) -> Normalize:
    """From the lowest to the highest projection; a band around it where all are the same."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    around = 0.0 if high > low else max(abs(high), 1.0) * 0.01
    return Normalize(low - around, high + around)


def _draw_cell(ax: Axes, table: RunTable, cell: Cell, scale: Normalize, style: Style, columns: int) -> QuadMesh:
    rows, turns = np.flatnonzero(table.rows(cell)), table.length(cell.transcript)
    rows = rows[order(table.projections[rows][:, :turns])]
    values = table.projections[rows][:, :turns]
    edges = np.arange(turns + 1) + 0.5
    values_there = np.ma.masked_invalid(values)
    mesh = ax.pcolormesh(edges, np.arange(len(rows) + 1), values_there, norm=scale, cmap=colormaps[COLORMAP])
    mesh.set_gid(f"cells-{cell.condition}")
    for flag, hatch in _hatches(table).items():
        mask = table.flags.of(flag)[rows][:, :turns]
        if mask.any():
            _hatch(ax, mask, scale(values_there), hatch, f"{flag.value}-{cell.condition}", style)
    several = len({(c.transcript, c.temperature) for c in table.cells}) > 1
    name = f"{cell.condition}, {cell.transcript}, T\u00a0{cell.temperature:g}" if several else cell.condition
    fig = ax.get_figure(root=True)
    assert fig is not None
    width = (fig.get_figwidth() - style.inches(0.9)) / columns - style.inches(0.3)
    ax.set_title(wrapped(name, style.characters(width, 9), lines=3), loc="left")
    ax.grid(visible=False)
    ax.set_xticks(turn_ticks(turns, most=style.characters(width, 24)))
    ax.set_yticks([])
    ax.set_xlabel("turn")
    if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        ax.set_ylabel("rollouts")
    ax.set_xlim(0.5, turns + 0.5)
    ax.set_ylim(0, len(rows))
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return mesh


def _hatch(ax: Axes, mask: NDArray[np.bool_], shade: np.ma.MaskedArray, hatch: str, gid: str, style: Style) -> None:
    """Hatch the cells where `mask` (n, T): dark on light cells, light on dark ones, by their `shade` (n, T) from 0 to 1; missing ones in between."""
    empty = np.ma.getmaskarray(shade)
    for color, where in (
        ("black", mask & ~empty & (shade.filled(0) > 0.55)),
        ("white", mask & ~empty & (shade.filled(0) <= 0.55)),
        (style.neutral, mask & empty),
    ):
        corners = [[(x + 0.5, y), (x + 1.5, y), (x + 1.5, y + 1), (x + 0.5, y + 1)] for y, x in zip(*np.nonzero(where), strict=True)]
        if corners:
            ax.add_collection(PolyCollection(corners, facecolors="none", edgecolors=color, linewidths=0.2, hatch=hatch, gid=gid))


def _hatches(table: RunTable) -> dict[Flag, str]:
    """The flags to hatch: all but a length limit that most replies ran into, which would cover everything and single out nothing."""
    return {flag: hatch for flag, hatch in HATCHES.items() if flag is not Flag.LENGTH or not _mostly_cut(table)}


def _mostly_cut(table: RunTable) -> bool:
    return 2 * int(table.flags.length.sum()) > int(table.turns.sum())


def _notes(table: RunTable) -> Iterator[str]:
    yield f"{sentence(table.segment)}Rows are rollouts, sorted by their mean projection, the lowest at the bottom. Empty: no turn."
    if _mostly_cut(table):
        yield f"Not hatched: {int(table.flags.length.sum())} of {int(table.turns.sum())} replies were cut at the length limit."


def _entries(table: RunTable, style: Style) -> Iterator[Entry]:
    for flag, hatch in _hatches(table).items():
        count = int(table.flags.of(flag).sum())
        if count:
            yield Patch(facecolor=style.neutral, edgecolor="white", hatch=hatch, lw=0), f"{_SAYS[flag]} ({count})"
