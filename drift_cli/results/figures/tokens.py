"""The tokens figure: one reply, each token on the colour of its projection.

Colours diverge from a middle that the caller names (the mean over the run's replies, say), so the same colour means the same in every reply. The text is set
in fixed pitch; where it runs from right to left, tokens do too. A reply longer than a page is cut, and says so.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from drift_cli.analysis.table import FloatArray
from drift_cli.results.figures.canvas import looks
from drift_cli.results.figures.layout import Panel, blank, color_bar, compose
from drift_cli.results.figures.lettering import drawable
from drift_cli.results.figures.palette import PAPER, Style

LINE = 78
"""Characters."""
LINES = 70
_SHARE = 0.8
"""Of the colour in a token's ground; the rest is the page, so that letters stay readable."""
_WIDTH, _HEIGHT = 0.0625, 0.155
"""Inches on paper of a character, and of a line, of 7.5-point DejaVu Sans Mono."""


@dataclass(frozen=True)
class _Piece:
    """Part of a token on one line: column and line are in characters."""

    token: int
    text: str
    line: int
    column: int


def tokens(
    pieces: Sequence[str], values: FloatArray, *, label: str, middle: float, half: float, title: str | None = None, style: Style = PAPER
) -> Figure:
    """Draw a reply.

    Args:
        pieces: its tokens' texts.
        values: (len(pieces),) projections.
        label: what the colours mean.
        middle: the value of the palest colour.
        half: the distance from it at which colours end, above 0.
        title: a heading.
        style: for paper, a talk, or dark ground.
    """
    scale = CenteredNorm(vcenter=middle, halfrange=half)
    line_length = int(LINE / style.text * style.size)
    placed = list(_place(pieces, line_length))
    shown = [piece for piece in placed if piece.line < LINES]
    lines = max((piece.line for piece in shown), default=0) + 1
    width, height = LINE * _WIDTH + 0.2, lines * _HEIGHT * style.text / style.size + 0.1
    with looks(style):
        fig, axes = blank(1, 1, Panel(width, height + 0.75), style)
        ax = axes[0, 0]
        ax.set_axis_off()
        ax.set_xlim(0, line_length)
        ax.set_ylim(lines, 0)
        _draw(ax, shown, values, scale, line_length, style, right_to_left=_runs_from_right("".join(pieces)))
        color_bar(fig, ScalarMappable(scale, colormaps[style.diverging]), [ax], label, style, extend="both")
        left_out = len(pieces) - len({piece.token for piece in shown})
        notes = [f"{len(pieces)} tokens." + (f" The last {left_out} are not shown." if left_out else "")]
        compose(fig, style, heading=title, notes=notes)
    return fig


def _place(pieces: Sequence[str], length: int) -> Iterator[_Piece]:
    """Where each token stands: lines break at newlines, before words that do not fit, and within what is longer than a line."""
    line = column = 0
    for token, piece in enumerate(pieces):
        for part, text in enumerate(piece.split("\n")):
            if part:
                line, column = line + 1, 0
            shown = " " * (len(text) - len(text.lstrip(" "))) + drawable(text) if text else ""
            if column and column + len(shown.rstrip()) > length and len(shown) <= length:
                line, column, shown = line + 1, 0, shown.lstrip(" ")
            for start in range(0, len(shown), length):
                chunk = shown[start : start + length]
                if column + len(chunk) > length:
                    line, column = line + 1, 0
                yield _Piece(token, chunk, line, column)
                column += len(chunk)


def _draw(
    ax: Axes, placed: Sequence[_Piece], values: FloatArray, scale: CenteredNorm, length: int, style: Style, *, right_to_left: bool
) -> None:
    colors = colormaps[style.diverging]
    ground = np.array(to_rgb(style.ground))
    for piece in placed:
        column = length - piece.column - len(piece.text) if right_to_left else piece.column
        color = _SHARE * np.array(colors(float(scale(values[piece.token])))[:3]) + (1 - _SHARE) * ground
        ax.add_patch(Rectangle((column, piece.line), len(piece.text), 0.94, color=tuple(color), lw=0, gid=f"token-{piece.token}"))
        ink = "#111111" if float(color @ [0.299, 0.587, 0.114]) > 0.45 else "#f4f4f4"
        ax.text(column + len(piece.text) / 2, piece.line + 0.74, piece.text, color=ink, **_letters(style), ha="center")


def _letters(style: Style) -> dict[str, Any]:
    return {"family": ["DejaVu Sans Mono", "DejaVu Sans"], "fontsize": style.points(7.5), "va": "baseline"}


def _runs_from_right(text: str) -> bool:
    """The direction of the first letter that has one."""
    found = (unicodedata.bidirectional(character) for character in text)
    return next((kind in {"R", "AL"} for kind in found if kind in {"L", "R", "AL"}), False)
