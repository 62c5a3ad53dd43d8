"""An axis as a picture: its diagnostics at every layer, and the personas along it at one."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drift_cli.axis import Axis
from drift_cli.measuring.diagnostics import Diagnostics
from drift_cli.results.figures.canvas import looks
from drift_cli.results.figures.palette import PAPER

_ASSISTANT, _ROLE = PAPER.of(0), PAPER.of(1)


def draw(axis: Axis, found: Sequence[Diagnostics], layer: int, suggested: int | None) -> Figure:
    """The figure.

    Args:
        axis: it knows its personas.
        found: the diagnostics of each of its layers.
        layer: whose personas are shown.
        suggested: the layer to be marked, if any.
    """
    shown = next(d for d in found if d.layer == layer)
    with looks():
        height = max(3.2, 0.75 + 0.155 * len(shown.ordering))
        if len(found) == 1:
            fig = Figure(figsize=(4.6, height), layout="constrained")
            _personas(fig.subplots(), axis, shown)
        else:
            fig = Figure(figsize=(8.4, height), layout="constrained")
            grid = fig.add_gridspec(2, 2, width_ratios=(1, 1.15))
            upper = fig.add_subplot(grid[0, 0])
            _shares(upper, found, suggested)
            _separation(fig.add_subplot(grid[1, 0], sharex=upper), found, suggested)
            _personas(fig.add_subplot(grid[:, 1]), axis, shown)
        fig.suptitle(f"Axis {axis.name}" + (f" of {axis.model}" if axis.model else ""), fontsize=10)
    return fig


def _shares(ax: Axes, found: Sequence[Diagnostics], suggested: int | None) -> None:
    layers = [d.layer for d in found]
    _line(ax, layers, [d.cosine_with_pc1 for d in found], 0, "cosine with PC1")
    _line(ax, layers, [d.variance_explained for d in found], 2, "variance along the axis")
    if all(d.left_out is not None for d in found):
        _line(ax, layers, [d.left_out.cosine_min for d in found if d.left_out], 3, "least cosine, one left out")
    ax.set_ylim(0, 1.04)
    ax.set_ylabel("share, cosine")
    ax.tick_params(labelbottom=False)
    _mark(ax, suggested)
    ax.legend(loc="lower right")


def _separation(ax: Axes, found: Sequence[Diagnostics], suggested: int | None) -> None:
    for index, label, values in (
        (0, "all personas", {d.layer: d.d_prime for d in found}),
        (1, "each one left out", {d.layer: d.left_out.d_prime if d.left_out else None for d in found}),
    ):
        known = {layer: value for layer, value in values.items() if value is not None}
        if known:
            _line(ax, list(known), list(known.values()), index, label)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("separation d′")
    ax.set_xlabel("layer (hidden_states)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark(ax, suggested)
    ax.legend(loc="lower right")


def _line(ax: Axes, layers: Sequence[int], values: Sequence[float], index: int, label: str) -> None:
    style = PAPER.of(index)
    size = 3.5 if len(layers) <= 16 else 2
    ax.plot(layers, values, color=style.color, marker=style.marker, markersize=size, linewidth=1.2, label=label)


def _mark(ax: Axes, suggested: int | None) -> None:
    if suggested is not None:
        ax.axvline(suggested, color=PAPER.neutral, linewidth=0.8, linestyle="--", zorder=0)


def _personas(ax: Axes, axis: Axis, found: Diagnostics) -> None:
    order = found.ordering[::-1]
    for side, style, label in ((True, _ASSISTANT, "assistant's side"), (False, _ROLE, "in a part")):
        places = [place for place, (name, _) in enumerate(order) if (name in axis.assistants) is side]
        ax.plot([order[p][1] for p in places], places, style.marker, color=style.color, markersize=4.5, linestyle="none", label=label)
    ax.axvline(0, color=PAPER.neutral, linewidth=0.7)
    ax.set_yticks(range(len(order)), [name for name, _ in order], fontsize=7)
    ax.set_ylim(-0.7, len(order) - 0.3)
    ax.grid(axis="x")
    ax.set_xlabel(f"persona mean along the axis, centred, layer {found.layer}")
    ax.legend(loc="lower right")
