"""The trajectory figure: projection against turn, one line per condition.

Each panel is one transcript at one temperature. Drawn are the mean over rollouts with its band (what it covers is in the legend), every rollout as a thin
line, flagged replies as crosses, and the reference line where there is one. A missing turn is a gap; a turn without neighbours is a point, its interval a
bar. Where there is no interval (one rollout, or rollouts that are all alike) the legend says so. User turns are marked and quoted where asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drift_cli.analysis.summary import moments
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.errors import StoreError, UsageError
from drift_cli.figures.canvas import looks, save
from drift_cli.figures.curves import Bands, Curve, curves, isolated, pointwise
from drift_cli.figures.layout import compose, group_panels
from drift_cli.figures.legend import curve_entries, mark_entries, put_legend
from drift_cli.figures.lettering import shortened, wrapped
from drift_cli.figures.palette import PAPER, Style

__all__ = ["Mark", "pulls", "save", "trajectory", "turn_ticks"]

Reference = FloatArray | Mapping[str, FloatArray]
QUOTED = 150
"""Characters of an annotated user turn."""


@dataclass(frozen=True)
class Mark:
    """A user turn to be marked and quoted below the figure."""

    transcript: str
    turn: int
    """1 for the first."""
    text: str


def trajectory(
    table: RunTable,
    *,
    reference: Reference | None = None,
    title: str | None = None,
    bands: Bands | None = None,
    marks: Sequence[Mark] = (),
    style: Style = PAPER,
) -> Figure:
    """Draw the table, with 95 % pointwise t intervals unless other `bands` are given.

    `reference` is somebody else's replies projected on the same axis, (T,) with NaN for missing turns; by transcript name where there are several.
    Raises `StoreError` for a table without a turn, `UsageError` for a reference that does not fit.
    """
    check_drawable(table)
    lines = references(table, reference)
    bands = bands or pointwise()
    with looks(style):
        fig, panels = group_panels(table.groups, style)
        drawn = {group: list(curves(table, group, bands, style)) for group in panels}
        for group, ax in panels.items():
            for curve in drawn[group]:
                _draw_curve(ax, curve, style)
            _draw_reference(ax, lines.get(group.transcript), style)
            _draw_marks(ax, [mark for mark in marks if mark.transcript == group.transcript], style)
            dress(ax, table, group, style, note=_lacks_intervals(drawn[group]))
        every = [curve for group in panels for curve in drawn[group]]
        entries = [*curve_entries(every, style), *mark_entries(every, style, reference=bool(lines), band=bands.label)]
        put_legend(fig, entries, style)
        compose(fig, style, heading=title, notes=_quotes(marks, len({group.transcript for group in panels})))
    return fig


def pulls(table: RunTable, transcript: str, most: int = 3) -> list[int]:
    """The turns (1 for the first) at which the script pulls hardest: where the mean over all conditions falls most from the turn before, `most` at most."""
    cells = [cell for cell in table.cells if cell.transcript == transcript]
    means = np.array([moments(table.projections[table.rows(cell)]).mean for cell in cells])
    falls = np.diff(moments(means).mean)
    steepest = np.argsort(np.where(np.isfinite(falls), falls, np.inf), kind="stable")[:most]
    return sorted(int(place) + 2 for place in steepest if np.isfinite(falls[place]) and falls[place] < 0)


def check_drawable(table: RunTable) -> None:
    """Raise `StoreError` for a table without a turn."""
    if not np.isfinite(table.projections).any():
        raise StoreError(f"run {table.run_id} has no committed turn to draw", mend=f"drift resume {table.run_id}")


def dress(ax: Axes, table: RunTable, group: Group, style: Style, *, note: str = "", label: str | None = None) -> None:
    """Title, turns and labels of a panel of a group."""
    turns = table.length(group.transcript)
    fig = ax.get_figure(root=True)
    assert fig is not None
    columns = ax.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    width = fig.get_figwidth() / columns
    ax.set_title(wrapped(f"{group}{note}", style.characters(width - style.inches(0.7), 9)), loc="left")
    ax.set_xlim(0.5, turns + 0.5)
    ax.set_xticks(turn_ticks(turns, most=style.characters(width - style.inches(0.7), 24)))
    ax.set_xlabel("turn")
    if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        height = fig.get_figheight() / ax.get_subplotspec().get_gridspec().nrows  # type: ignore[union-attr]
        ax.set_ylabel(wrapped(label or axis_label(table), style.characters(height - style.inches(0.5), 9)))
    if not any(
        np.isfinite(table.projections[table.rows(cell)]).any() for cell in table.cells if (cell.transcript, cell.temperature) == group
    ):
        ax.text(0.5, 0.5, "no turn yet", transform=ax.transAxes, ha="center", va="center", color=style.neutral)


def turn_ticks(turns: int, most: int = 20) -> list[int]:
    """Turns to label on an axis of 1 … `turns`, at most about `most` of them: every one, every other, or 1 and the multiples of 5, 10, 20, …"""
    steps = (step * 10**power for power in range(10) for step in (1, 2, 5))
    step = next(step for step in steps if turns <= step * most)
    return list(range(1, turns + 1, step)) if step <= 2 else [1, *range(step, turns + 1, step)]


def axis_label(table: RunTable) -> str:
    """ "projection on <axis> (layer <l>)"."""
    return f"projection on {table.axis}" + ("" if table.layer is None else f" (layer\u00a0{table.layer})")


def references(table: RunTable, reference: Reference | None) -> Mapping[str, FloatArray]:
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


def _lacks_intervals(drawn: Sequence[Curve]) -> str:
    """What to add to the title of a panel without bands: other panels may have some, and the legend speaks of all."""
    there = [len(curve.values) for curve in drawn if len(curve.values)]
    if not there or any(curve.banded.any() for curve in drawn):
        return ""
    return " (n = 1, no interval)" if max(there) == 1 else " (all alike, no interval)"


def _draw_curve(ax: Axes, curve: Curve, style: Style) -> None:
    points = style.points
    alpha = float(np.clip(5 / max(len(curve.values), 1), 0.1, 0.4))
    for values in curve.values:
        _draw_line(
            ax, curve.x, values, gid=f"rollout-{curve.condition}", color=curve.look.color, ls="-", lw=points(0.5), alpha=alpha, zorder=1
        )
    rows, columns = np.nonzero(curve.suspect & np.isfinite(curve.values))
    if len(rows):
        flagged = curve.values[rows, columns]
        color = curve.look.color
        ax.plot(
            curve.x[columns], flagged, gid=f"flagged-{curve.condition}", color=color, ls="", marker="x", ms=points(3.5), mew=points(0.7)
        )
    draw_band(ax, curve.x, curve.interval.low, curve.interval.high, curve.condition, curve.look.color, style)
    size = points(3.2 if len(curve.x) <= 24 else 1.8)
    look = curve.look
    looks_of_mean: dict[str, Any] = {
        "color": look.color,
        "ls": look.linestyle,
        "marker": look.marker,
        "ms": size,
        "mew": 0,
        "lw": points(1.5),
    }
    ax.plot(curve.x, curve.mean, gid=f"mean-{curve.condition}", zorder=3, **looks_of_mean)


def draw_band(ax: Axes, x: FloatArray, low: FloatArray, high: FloatArray, name: str, color: str, style: Style) -> None:
    """An interval (T,) around a curve: an area, and bars at turns whose neighbours have none."""
    banded = np.isfinite(low) & np.isfinite(high)
    if not banded.any():
        return
    ax.fill_between(x, low, high, where=banded.tolist(), gid=f"band-{name}", color=color, alpha=0.25, lw=0, zorder=2)
    alone = isolated(x, low)
    if len(alone.x):
        at = np.isin(x, alone.x)
        ax.vlines(alone.x, low[at], high[at], gid=f"bar-{name}", color=color, alpha=0.35, lw=style.points(5), zorder=2)


def _draw_reference(ax: Axes, reference: FloatArray | None, style: Style) -> None:
    if reference is not None:
        look = style.reference
        x = np.arange(1.0, len(reference) + 1)
        _draw_line(ax, x, reference, gid="reference", color=look.color, ls=look.linestyle, lw=style.points(1.1), zorder=4)


def _draw_marks(ax: Axes, marks: Sequence[Mark], style: Style) -> None:
    for mark in marks:
        ax.axvline(mark.turn, gid=f"mark-{mark.turn}", color=style.neutral, ls=(0, (1, 2)), lw=style.points(0.9), zorder=0.5)


def _quotes(marks: Sequence[Mark], transcripts: int) -> list[str]:
    """What the user says at the marked turns, quoted; named by transcript where there are several."""
    where = [f"{mark.transcript}, turn {mark.turn}" if transcripts > 1 else f"Turn {mark.turn}" for mark in marks]
    return [f"{place}, user: “{shortened(mark.text, QUOTED)}”" for place, mark in zip(where, marks, strict=True)]


def _draw_line(ax: Axes, x: FloatArray, y: FloatArray, **looks_: Any) -> None:
    """A line with gaps at NaN, and dots where a point has no neighbour, which a line would not show."""
    ax.plot(x, y, **looks_)
    alone = isolated(x, y)
    if len(alone.x):
        ax.plot(alone.x, alone.y, **{**looks_, "gid": f"{looks_['gid']}-point", "ls": "", "marker": ".", "ms": 3})
