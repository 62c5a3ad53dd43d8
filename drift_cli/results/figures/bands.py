"""An interval around a curve, as it is drawn in every figure with one."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from drift_cli.analysis.table import FloatArray
from drift_cli.results.figures.curves import isolated
from drift_cli.results.figures.palette import Style


def draw_band(ax: Axes, x: FloatArray, low: FloatArray, high: FloatArray, name: str, color: str, style: Style) -> None:
    """Bounds (T,): an area, and bars at turns whose neighbours have none."""
    banded = np.isfinite(low) & np.isfinite(high)
    if not banded.any():
        return
    ax.fill_between(x, low, high, where=banded.tolist(), gid=f"band-{name}", color=color, alpha=0.25, lw=0, zorder=2)
    alone = isolated(x, low)
    if len(alone.x):
        at = np.isin(x, alone.x)
        ax.vlines(alone.x, low[at], high[at], gid=f"bar-{name}", color=color, alpha=0.35, lw=style.points(5), zorder=2)
