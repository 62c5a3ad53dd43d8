"""The ridgeline: how projections are distributed over rollouts at each turn, the first turn on top; one panel per transcript and temperature.

Densities are Gaussian kernel estimates with Scott's bandwidth (`scipy.stats.gaussian_kde`), all scaled alike. Where a turn has fewer than three rollouts of a
condition, or all are alike, there is no density to estimate: the rollouts are drawn as ticks.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from drift_cli.analysis.summary import constant
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.results.figures.canvas import looks
from drift_cli.results.figures.curves import Curve, curves, pointwise
from drift_cli.results.figures.layout import Panel, blank, compose
from drift_cli.results.figures.legend import line_handle, put_legend
from drift_cli.results.figures.lettering import wrapped
from drift_cli.results.figures.palette import PAPER, LineStyle, Style
from drift_cli.results.figures.panel import axis_label, check_drawable, turn_ticks

OVERLAP = 1.6
"""Height of the highest density, in distances between turns."""
_POINTS = 160
_LEAST = 3
"""Rollouts that make a density."""


def ridgeline(table: RunTable, *, title: str | None = None, style: Style = PAPER) -> Figure:
    """Draw the table. Raises `StoreError` for a table without a turn."""
    check_drawable(table)
    groups = table.groups
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    longest = max(table.length(group.transcript) for group in groups)
    panel = Panel(4.4 if len(groups) == 1 else 3.6, float(np.clip(0.7 + 0.21 * longest, 1.8, 6.5)))
    with looks(style):
        fig, axes = blank(rows, columns, panel, style, sharex=True)
        for place, ax in enumerate(axes.values()):
            if place < len(groups):
                _draw_group(ax, table, groups[place], style)
            else:
                fig.delaxes(ax)
        looks_of = style.each(table.conditions)
        entries = [(line_handle(LineStyle(look.color, "", look.linestyle), style, banded=True), name) for name, look in looks_of.items()]
        put_legend(fig, entries, style)
        notes = [
            f"Density over rollouts at each turn (Gaussian kernel, Scott's bandwidth); fewer than {_LEAST} rollouts, or equal ones: ticks."
        ]
        compose(fig, style, heading=title, notes=notes)
    return fig


def density(values: FloatArray, at: FloatArray) -> FloatArray | None:
    """The kernel estimate of `values` (n,) at `at` (p,); None where there are fewer than three, or all are the same up to rounding."""
    there = values[np.isfinite(values)]
    if len(there) < _LEAST or constant(there[:, None])[0]:
        return None
    return np.asarray(stats.gaussian_kde(there)(at), dtype=np.float64)


def _draw_group(ax: Axes, table: RunTable, group: Group, style: Style) -> None:
    drawn = list(curves(table, group, pointwise(), style))
    turns = table.length(group.transcript)
    at = _span(drawn)
    found = {(curve.condition, turn): density(curve.values[:, turn], at) for curve in drawn for turn in range(turns)}
    highest = max((float(line.max()) for line in found.values() if line is not None), default=1.0)
    for turn in range(turns):
        base = float(turns - turn)
        for curve in drawn:
            _draw_ridge(ax, curve, turn, at, found[curve.condition, turn], base, OVERLAP / highest, style)
    fig = ax.get_figure(root=True)
    assert fig is not None
    width = fig.get_figwidth() / ax.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    ax.set_title(wrapped(str(group), style.characters(width, 10)), loc="left")
    ax.set_ylim(0.6, turns + OVERLAP + 0.15)
    labelled = turn_ticks(turns, most=25)
    ax.set_yticks([turns - turn + 1 for turn in labelled], [str(turn) for turn in labelled])
    ax.set_ylabel("turn")
    ax.set_xlabel(wrapped(axis_label(table), style.characters(width - style.inches(0.6), 9)))
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    if not any(np.isfinite(curve.values).any() for curve in drawn):
        ax.text(0.5, 0.5, "no turn yet", transform=ax.transAxes, ha="center", va="center", color=style.neutral)


def _span(drawn: list[Curve]) -> FloatArray:
    """Where densities are evaluated: all projections of a panel, and a tenth more on both sides."""
    values = np.concatenate([curve.values.ravel() for curve in drawn]) if drawn else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.linspace(0.0, 1.0, _POINTS)
    low, high = float(values.min()), float(values.max())
    margin = 0.1 * (high - low) or max(abs(high), 1.0) * 0.05
    return np.linspace(low - margin, high + margin, _POINTS)


def _draw_ridge(
    ax: Axes, curve: Curve, turn: int, at: FloatArray, line: FloatArray | None, base: float, height: float, style: Style
) -> None:
    order = 2 + turn * 0.01
    color, points = curve.look.color, style.points
    if line is None:
        there = curve.values[:, turn][np.isfinite(curve.values[:, turn])]
        ax.vlines(there, base, base + 0.45, gid=f"ticks-{curve.condition}-{turn + 1}", color=color, lw=points(1.1), zorder=order)
        return
    line = np.where(line > 0.004 * line.max(), line, np.nan)
    ax.fill_between(at, base, base + height * line, color=color, alpha=0.22, lw=0, zorder=order)
    gid = f"ridge-{curve.condition}-{turn + 1}"
    ax.plot(at, base + height * line, gid=gid, color=color, ls=curve.look.linestyle, lw=points(0.9), zorder=order)
