"""The trajectory figure: projection against turn, one line per condition.

Each panel is one transcript at one temperature. Drawn are the mean over rollouts with its t interval, turn by turn (pointwise, and labelled so), every
rollout as a thin line, flagged replies as crosses, and the reference line where there is one. A missing turn is a gap; a turn without neighbours is a
point, its interval a bar. Where there is no interval (one rollout, or rollouts that are all alike) the legend says so.

Layout is done once, when the figure is drawn, so that writing it twice or in two formats moves nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from drift_cli.analysis.summary import LEVEL
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.errors import StoreError, UsageError
from drift_cli.figures.canvas import looks, save
from drift_cli.figures.curves import Curve, curves, isolated
from drift_cli.figures.legend import draw_legend
from drift_cli.figures.palette import NEUTRAL, REFERENCE

__all__ = ["save", "trajectory", "turn_ticks"]

PANEL = (5.2, 3.1)
"""Inches, of a panel that stands alone: at a paper's column width (3.4 inches) its 9-point text is 6 points high."""
SMALL_PANEL = (3.9, 2.6)
TURNS_LABELLED = 20

Reference = FloatArray | Mapping[str, FloatArray]


def trajectory(table: RunTable, *, reference: Reference | None = None, title: str | None = None, level: float = LEVEL) -> Figure:
    """Draw the table; `level` is that of the t intervals.

    `reference` is somebody else's replies projected on the same axis, (T,) with NaN for missing turns; by transcript name where there are several.
    Raises `StoreError` for a table without a turn, `UsageError` for a reference that does not fit.
    """
    if not np.isfinite(table.projections).any():
        raise StoreError(f"run {table.run_id} has no committed turn to draw", mend=f"drift resume {table.run_id}")
    references = _references(table, reference)
    with looks():
        fig, panels = _panels(table.groups)
        heading = fig.suptitle(textwrap.fill(title, int(12 * fig.get_figwidth())), fontsize=10) if title else None
        drawn = {group: list(curves(table, group, level)) for group in panels}
        for group, ax in panels.items():
            _draw_panel(ax, table, group, drawn[group], references.get(group.transcript))
        legend = draw_legend(fig, [curve for group in panels for curve in drawn[group]], reference=bool(references), level=level)
        _make_room(fig, [legend] if heading is None else [legend, heading])
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
    return fig


def turn_ticks(turns: int, most: int = TURNS_LABELLED) -> list[int]:
    """Turns to label on an axis of 1 … `turns`, at most about `most` of them: every one, or 1 and the multiples of 2, 5, 10, …"""
    steps = (step * 10**power for power in range(10) for step in (1, 2, 5))
    step = next(step for step in steps if turns <= step * most)
    return list(range(1, turns + 1)) if step == 1 else [1, *range(step, turns + 1, step)]


def _references(table: RunTable, reference: Reference | None) -> Mapping[str, FloatArray]:
    """The reference lines by transcript; `UsageError` for one that fits none."""
    if reference is None:
        return {}
    transcripts = list(dict.fromkeys(group.transcript for group in table.groups))
    if not isinstance(reference, Mapping):
        if len(transcripts) > 1:
            raise UsageError(
                f"one reference line for {len(transcripts)} transcripts: {', '.join(transcripts)}",
                mend="Give it for the transcript it belongs to.",
            )
        reference = {transcripts[0]: reference}
    for name, line in reference.items():
        if name in transcripts and (line.ndim != 1 or len(line) > table.length(name)):
            raise UsageError(
                f"the reference line of transcript {name} has shape {line.shape}, the transcript {table.length(name)} turns",
                mend="Measure the reference again, on this transcript.",
            )
    return {name: line for name, line in reference.items() if name in transcripts}


def _panels(groups: Sequence[Group]) -> tuple[Figure, dict[Group, Axes]]:
    """A figure with one axes per group: transcripts down and temperatures across where both vary, else two abreast."""
    down, across = list(dict.fromkeys(g.transcript for g in groups)), list(dict.fromkeys(g.temperature for g in groups))
    if len(down) > 1 and len(across) > 1:
        places = {group: (down.index(group.transcript), across.index(group.temperature)) for group in groups}
        rows, columns = len(down), len(across)
    else:
        columns = min(2, len(groups))
        rows = -(-len(groups) // columns)
        places = {group: divmod(index, columns) for index, group in enumerate(groups)}
    width, height = PANEL if len(groups) == 1 else SMALL_PANEL
    fig = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(fig)
    axes: dict[tuple[int, ...], Axes] = dict(np.ndenumerate(fig.subplots(rows, columns, sharey=True, squeeze=False)))
    for blank in axes.keys() - places.values():
        fig.delaxes(axes[blank])
    return fig, {group: axes[place] for group, place in places.items()}


def _make_room(fig: Figure, artists: Sequence[Legend | Text]) -> None:
    """Make the figure higher by what stands above and below the panels, so that these keep their height."""
    heights = [artist.get_window_extent().height / fig.dpi for artist in artists]
    fig.set_figheight(fig.get_figheight() + sum(heights))


def _draw_panel(ax: Axes, table: RunTable, group: Group, drawn: Sequence[Curve], reference: FloatArray | None) -> None:
    turns = table.length(group.transcript)
    for curve in drawn:
        _draw_rollouts(ax, curve)
        _draw_band(ax, curve)
        _draw_mean(ax, curve)
    if reference is not None:
        _draw_line(
            ax,
            np.arange(1.0, len(reference) + 1),
            reference,
            gid="reference",
            color=REFERENCE.color,
            ls=REFERENCE.linestyle,
            lw=1.1,
            zorder=4,
        )
    if not any(len(curve.values) for curve in drawn):
        ax.text(0.5, 0.5, "no turn yet", transform=ax.transAxes, ha="center", va="center", color=NEUTRAL)
    ax.set_title(textwrap.fill(str(group) + _lacks_intervals(drawn), 44), loc="left", color="#444444")
    ax.set_xlim(0.5, turns + 0.5)
    figure_width = ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    ax.set_xticks(turn_ticks(turns, most=TURNS_LABELLED if figure_width > PANEL[0] - 0.1 else 10))
    ax.set_xlabel("turn")
    if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        ax.set_ylabel(_axis_label(table))


def _lacks_intervals(drawn: Sequence[Curve]) -> str:
    """What to add to the title of a panel without bands: other panels may have some, and the legend speaks of all."""
    there = [len(curve.values) for curve in drawn if len(curve.values)]
    if not there or any(curve.banded.any() for curve in drawn):
        return ""
    return " (n = 1, no interval)" if max(there) == 1 else " (all alike, no interval)"


def _axis_label(table: RunTable) -> str:
    """ "projection on <axis> (layer <l>)", broken into lines that fit a panel's height."""
    layer = "" if table.layer is None else f" (layer {table.layer})"
    return textwrap.fill(f"projection on {table.axis}{layer}", 34)


def _draw_rollouts(ax: Axes, curve: Curve) -> None:
    """Each rollout, the paler the more there are, and crosses where a reply is flagged."""
    alpha = float(np.clip(5 / max(len(curve.values), 1), 0.1, 0.4))
    for values in curve.values:
        _draw_line(ax, curve.x, values, gid=f"rollout-{curve.condition}", color=curve.look.color, ls="-", lw=0.5, alpha=alpha, zorder=1)
    rows, columns = np.nonzero(curve.suspect & np.isfinite(curve.values))
    if len(rows):
        ax.plot(
            curve.x[columns],
            curve.values[rows, columns],
            gid=f"flagged-{curve.condition}",
            color=curve.look.color,
            ls="",
            marker="x",
            ms=3.5,
            mew=0.7,
        )


def _draw_band(ax: Axes, curve: Curve) -> None:
    """The interval of the mean: an area, and bars at turns whose neighbours have none."""
    if not curve.banded.any():
        return
    low, high, color = curve.moments.low, curve.moments.high, curve.look.color
    ax.fill_between(curve.x, low, high, where=curve.banded.tolist(), gid=f"band-{curve.condition}", color=color, alpha=0.25, lw=0, zorder=2)
    alone = isolated(curve.x, low)
    if len(alone.x):
        at = np.isin(curve.x, alone.x)
        ax.vlines(alone.x, low[at], high[at], gid=f"bar-{curve.condition}", color=color, alpha=0.35, lw=5, zorder=2)


def _draw_mean(ax: Axes, curve: Curve) -> None:
    size = 3.2 if len(curve.x) <= 24 else 1.8
    look = curve.look
    ax.plot(
        curve.x,
        curve.moments.mean,
        gid=f"mean-{curve.condition}",
        color=look.color,
        ls=look.linestyle,
        marker=look.marker,
        ms=size,
        mew=0,
        lw=1.5,
        zorder=3,
    )


def _draw_line(ax: Axes, x: FloatArray, y: FloatArray, **looks: Any) -> None:
    """A line with gaps at NaN, and dots where a point has no neighbour, which a line would not show."""
    ax.plot(x, y, **looks)
    alone = isolated(x, y)
    if len(alone.x):
        ax.plot(alone.x, alone.y, **{**looks, "gid": f"{looks['gid']}-point", "ls": "", "marker": ".", "ms": 3})
