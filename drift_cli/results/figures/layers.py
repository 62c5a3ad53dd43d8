"""The layers figure: at which depth, and from which turn on, conditions come apart.

Each panel is a condition against the baseline: the difference of mean projections by layer (up) and turn (across), in units of the layer's SD over
rollouts, pooled over conditions and turns, so that layers can be compared. A run with one condition shows its change since the first turn instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from drift_cli.analysis.layers import LayerTable, Unavailable
from drift_cli.analysis.segments import sentence
from drift_cli.analysis.summary import moments
from drift_cli.analysis.table import FloatArray, Group
from drift_cli.results.figures.canvas import looks
from drift_cli.results.figures.layout import Panel, blank, color_bar, compose
from drift_cli.results.figures.lettering import wrapped
from drift_cli.results.figures.palette import PAPER, Style
from drift_cli.results.figures.panel import check_drawable, turn_ticks

ACROSS = 3
_LIMIT = 99.0
"""Percentile of the absolute values at which the colours end."""


@dataclass(frozen=True, eq=False)
class _Map:
    """One panel: (L, T) in SDs."""

    title: str
    group: Group
    values: FloatArray


def layers(found: LayerTable, *, against: str | None = None, title: str | None = None, style: Style = PAPER) -> Figure:
    """Draw the table; `against` is the baseline (default: the first condition). Raises `StoreError` for a table without a turn."""
    check_drawable(found.table)
    baseline = against or found.table.conditions[0]
    maps = list(_maps(found, baseline))
    if not any(np.isfinite(shown.values).any() and np.any(shown.values) for shown in maps):
        raise Unavailable(
            f"run {found.table.run_id} has one condition and one turn: there is no difference by layer", mend="Add a condition."
        )
    columns = min(ACROSS, len(maps))
    rows = -(-len(maps) // columns)
    height = float(np.clip(0.11 * len(found.layers), 0.9, 2.6)) + 1.1 * style.text / style.size
    with looks(style):
        fig, axes = blank(rows, columns, Panel({1: 4.4, 2: 2.8}.get(columns, 2.2), height), style, sharey=True)
        scale = _scale([found_map.values for found_map in maps])
        for place, ax in enumerate(axes.values()):
            if place < len(maps):
                mesh = _draw(ax, maps[place], found, scale, style, columns)
            else:
                fig.delaxes(ax)
        used = [ax for ax in axes.values() if ax in fig.axes]
        label = f"mean projection, less that of {baseline}, in SDs over rollouts"
        if len(found.table.conditions) == 1:
            label = "mean projection, less that of turn 1, in SDs over rollouts"
        color_bar(fig, mesh, used, label, style, extend="both")
        compose(
            fig,
            style,
            heading=title,
            notes=[f"{sentence(found.table.segment)}Axis {found.table.axis}; its own layer is marked. Layer 0 is the embeddings."],
        )
    return fig


def _maps(found: LayerTable, baseline: str) -> Iterator[_Map]:
    table, spread = found.table, found.spread()[:, None]
    for group in table.groups:
        means = {
            cell.condition: _mean(found.values[table.rows(cell)][:, :, : table.length(group.transcript)])
            for cell in table.cells
            if (cell.transcript, cell.temperature) == group
        }
        where = f", {group}" if len(table.groups) > 1 else ""
        if baseline not in means or len(means) == 1:
            for name, mean in means.items():
                yield _Map(f"{name}, since turn 1{where}", group, (mean - mean[:, :1]) / spread)
            continue
        for name, mean in means.items():
            if name != baseline:
                yield _Map(f"{name}{where}", group, (mean - means[baseline]) / spread)


def _mean(values: FloatArray) -> FloatArray:
    """Mean over rollouts (n, L, T) → (L, T)."""
    n, depth, turns = values.shape
    return moments(values.reshape(n, depth * turns)).mean.reshape(depth, turns)


def _scale(values: list[FloatArray]) -> CenteredNorm:
    every = np.abs(np.concatenate([value.ravel() for value in values]))
    every = every[np.isfinite(every)]
    return CenteredNorm(halfrange=max(float(np.percentile(every, _LIMIT)), 1e-9) if len(every) else 1.0)


def _draw(ax: Axes, shown: _Map, found: LayerTable, scale: CenteredNorm, style: Style, columns: int) -> QuadMesh:
    turns, depth = shown.values.shape[1], len(found.layers)
    colors = colormaps[style.diverging]
    values = np.ma.masked_invalid(shown.values)
    mesh = ax.pcolormesh(np.arange(turns + 1) + 0.5, np.arange(depth + 1), values, norm=scale, cmap=colors, gid=f"map-{shown.title}")
    fig = ax.get_figure(root=True)
    assert fig is not None
    width = fig.get_figwidth() / columns - style.inches(0.5)
    ax.set_title(wrapped(shown.title, style.characters(width, 9), lines=3), loc="left")
    ax.grid(visible=False)
    ax.set_xticks(turn_ticks(turns, most=style.characters(width, 24)))
    ax.set_xlabel("turn")
    step = max(1, -(-depth // 12))
    ax.set_yticks(np.arange(0, depth, step) + 0.5, [str(layer) for layer in found.layers[::step]])
    if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        ax.set_ylabel("layer")
    own = found.table.layer
    if own in found.layers:
        ax.plot(
            [0.5], [found.layers.index(own) + 0.5], marker=">", ms=style.points(5), color=style.ink, clip_on=False, ls="", gid="own-layer"
        )
    ax.set_xlim(0.5, turns + 0.5)
    ax.set_ylim(0, depth)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return mesh
