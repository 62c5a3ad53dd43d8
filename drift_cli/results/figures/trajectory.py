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

from drift_cli.analysis.results import PairTurns
from drift_cli.analysis.summary import moments
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.errors import UsageError
from drift_cli.results.figures.bands import draw_band
from drift_cli.results.figures.canvas import looks
from drift_cli.results.figures.curves import Bands, Curve, curves, isolated, pointwise
from drift_cli.results.figures.difference import difference_marks, draw_differences
from drift_cli.results.figures.layout import compose, group_panels
from drift_cli.results.figures.legend import curve_entries, mark_entries, put_legend
from drift_cli.results.figures.lettering import shortened
from drift_cli.results.figures.palette import PAPER, Style
from drift_cli.results.figures.panel import check_drawable, dress

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
    differences: Sequence[PairTurns] = (),
    title: str | None = None,
    bands: Bands | None = None,
    marks: Sequence[Mark] = (),
    scope: str | None = None,
    style: Style = PAPER,
) -> Figure:
    """Draw the table, with 95 % pointwise t intervals unless other `bands` are given.

    `differences` of conditions from a baseline are drawn in panels below; `scope` is said below the figure.
    `reference` is somebody else's replies projected on the same axis, (T,) with NaN for missing turns; by transcript name where there are several.
    Raises `StoreError` for a table without a turn, `UsageError` for a reference that does not fit.
    """
    check_drawable(table)
    lines = references(table, reference)
    bands = bands or pointwise()
    with looks(style):
        panels = group_panels(table.groups, style, below=bool(differences))
        drawn = {group: list(curves(table, group, bands, style)) for group in panels.of}
        for group, ax in panels.of.items():
            for curve in drawn[group]:
                _draw_curve(ax, curve, style)
            _draw_reference(ax, lines.get(group.transcript), style)
            _draw_marks(ax, [mark for mark in marks if mark.transcript == group.transcript], style)
            dress(ax, table, group, style, note=_lacks_intervals(drawn[group]), bare=bool(differences))
        for group, ax in panels.below.items():
            draw_differences(ax, differences, group, style.each(table.conditions), style)
            dress(ax, table, group, style, label=f"less {differences[0].b}", untitled=True)
        every = [curve for group in panels.of for curve in drawn[group]]
        entries = [*curve_entries(every, style), *mark_entries(every, style, reference=bool(lines), band=bands.label)]
        entries += difference_marks(differences, style)
        put_legend(panels.fig, entries, style)
        notes = [*_quotes(marks, len({group.transcript for group in panels.of})), *([scope] if scope else [])]
        compose(panels.fig, style, heading=title, notes=notes)
    return panels.fig


def pulls(table: RunTable, transcript: str, most: int = 3) -> list[int]:
    """The turns (1 for the first) at which the script pulls hardest: where the mean over all conditions falls most from the turn before, `most` at most."""
    cells = [cell for cell in table.cells if cell.transcript == transcript]
    means = np.array([moments(table.projections[table.rows(cell)]).mean for cell in cells])
    falls = np.diff(moments(means).mean)
    steepest = np.argsort(np.where(np.isfinite(falls), falls, np.inf), kind="stable")[:most]
    return sorted(int(place) + 2 for place in steepest if np.isfinite(falls[place]) and falls[place] < 0)


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
    _hatch_flagged(ax, curve)
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


def _hatch_flagged(ax: Axes, curve: Curve) -> None:
    """Hatch the band where flagged replies are among those it stands on: half a turn to each side."""
    flagged = (curve.suspect & np.isfinite(curve.values)).any(axis=0) & curve.banded
    there = np.flatnonzero(curve.banded)
    for turn in curve.x[flagged]:
        x = np.array([max(turn - 0.5, curve.x[there[0]]), turn, min(turn + 0.5, curve.x[there[-1]])])
        low, high = (np.interp(x, curve.x[there], bound[there]) for bound in curve.interval)
        gid = f"hatched-{curve.condition}"
        ax.fill_between(x, low, high, gid=gid, facecolor="none", edgecolor=curve.look.color, hatch="/////", lw=0, zorder=2.5)


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
