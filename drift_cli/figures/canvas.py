"""What all figures share: their looks, and how they become files. matplotlib's own defaults are the base, so a user's matplotlibrc changes nothing.

The same figure gives the same bytes: no file carries a date and SVG ids do not vary. Text stays text in SVG and PDF, in a font that comes with
matplotlib, and nothing in a name is read as a formula.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from drift_cli.errors import UsageError
from drift_cli.store.files import atomic_write, create_folder

DPI = 200
"""Of PNG files."""
_LOOKS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.parse_math": False,
    "text.usetex": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "drift",
    "pdf.fonttype": 42,
}
_NO_DATE: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def looks() -> AbstractContextManager[None]:
    """The context in which figures are drawn and written. matplotlib's settings are global: it changes them and puts them back."""
    return style.context(["default", _LOOKS])


def render(fig: Figure, suffix: str) -> bytes:
    """The figure as the bytes of a .png (200 dpi), .svg or .pdf file. `UsageError` for another suffix."""
    if suffix not in _NO_DATE:
        raise UsageError(f"figures cannot be written as {suffix or 'a file without suffix'}", mend=f"Use one of: {', '.join(_NO_DATE)}")
    buffer = io.BytesIO()
    with looks():
        fig.savefig(buffer, format=suffix[1:], dpi=DPI, metadata=_NO_DATE[suffix])
    return buffer.getvalue()


def save(fig: Figure, path: Path) -> None:
    """Write the figure to `path`, in the format that its suffix names, whole or not at all; its folder is made where it is missing."""
    data = render(fig, path.suffix.lower())
    create_folder(path.parent)
    atomic_write(path, data)
