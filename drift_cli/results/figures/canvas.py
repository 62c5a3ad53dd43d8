"""What all figures share: their looks, and how they become files. matplotlib's own defaults are the base, so a user's matplotlibrc changes nothing.

The same figure gives the same bytes: no file carries a date and SVG ids do not vary. Text stays text in SVG and PDF, in a font that comes with
matplotlib, and nothing in a name or a text is read as a formula.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib import style as settings
from matplotlib.figure import Figure

from drift_cli.errors import UsageError
from drift_cli.files import atomic_write, create_folder
from drift_cli.results.figures.layout import DPI
from drift_cli.results.figures.palette import PAPER, Style

FORMATS = ("png", "svg", "pdf")
_NO_DATE: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def looks(style: Style = PAPER) -> AbstractContextManager[None]:
    """The context in which figures are drawn and written. matplotlib's settings are global: it changes them and puts them back."""
    return settings.context(["default", _settings(style)])


def _settings(style: Style) -> dict[str, Any]:
    points = style.points
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": points(9),
        "axes.titlesize": points(9),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": points(0.7),
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.edgecolor": style.ink,
        "axes.labelcolor": style.ink,
        "axes.titlecolor": style.soft,
        "axes.facecolor": style.ground,
        "figure.facecolor": style.ground,
        "text.color": style.ink,
        "xtick.color": style.ink,
        "ytick.color": style.ink,
        "grid.color": style.grid,
        "grid.linewidth": points(0.6),
        "hatch.linewidth": points(0.6),
        "xtick.labelsize": points(8),
        "ytick.labelsize": points(8),
        "xtick.major.width": points(0.7),
        "ytick.major.width": points(0.7),
        "legend.fontsize": points(8),
        "legend.frameon": False,
        "text.parse_math": False,
        "text.usetex": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "drift",
        "pdf.fonttype": 42,
    }


def render(fig: Figure, suffix: str, dpi: int = DPI) -> bytes:
    """The figure as the bytes of a .png, .svg or .pdf file. `UsageError` for another suffix."""
    if suffix not in _NO_DATE:
        raise UsageError(f"figures cannot be written as {suffix or 'a file without suffix'}", mend=f"Use one of: {', '.join(_NO_DATE)}")
    buffer = io.BytesIO()
    with looks():
        fig.savefig(buffer, format=suffix[1:], dpi=dpi, metadata=_NO_DATE[suffix], facecolor=fig.get_facecolor())
    return buffer.getvalue()


def save(fig: Figure, path: Path) -> None:
    """Write the figure to `path`, in the format that its suffix names, whole or not at all; its folder is made where it is missing."""
    data = render(fig, path.suffix.lower())
    create_folder(path.parent)
    atomic_write(path, data)
