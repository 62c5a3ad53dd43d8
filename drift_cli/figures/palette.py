"""How conditions look in every figure: the same condition, by its place in the run, has the same colour, marker and dashes.

Colours are Okabe and Ito's (2008, "Color Universal Design"), told apart with every common colour blindness, without their yellow, which is too pale for a
line on white; the seventh is the wine of Tol's "muted" scheme (2021). Black is left to the reference line. Markers differ too, for grey prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", ":", "-.")
"""One per round through the colours; "--" is the reference line's."""


@dataclass(frozen=True)
class LineStyle:
    """A line's looks, in matplotlib's words."""

    color: str
    marker: str
    linestyle: str


REFERENCE = LineStyle(color="#222222", marker="", linestyle="--")
NEUTRAL = "#888888"
"""For what belongs to no condition, such as the legend's entry for all bands."""


def style_of(index: int) -> LineStyle:
    """The style of the condition at `index` (0 for the first). It repeats after 21."""
    round_, place = divmod(index, len(COLORS))
    return LineStyle(COLORS[place], MARKERS[place], DASHES[round_ % len(DASHES)])


def styles(conditions: Sequence[str]) -> dict[str, LineStyle]:
    """The style of each condition, by their order."""
    return {name: style_of(index) for index, name in enumerate(conditions)}
