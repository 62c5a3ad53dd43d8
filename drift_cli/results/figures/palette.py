"""How conditions look in every figure and in the report: the same condition, by its place in the run, has the same colour, marker and dashes.

On white, colours are Okabe and Ito's (2008, "Color Universal Design"), told apart with every common colour blindness, without their yellow, which is too
pale for a line on white; the seventh is the wine of Tol's "muted" scheme (2021). On dark ground each keeps its hue and is made light enough for a contrast
of 4 : 1; with simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009) any two of them stay at least 15 CIELAB units apart, as on white.
Black (white on dark ground) is left to the reference line. Markers differ too, for grey prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drift_cli.errors import UsageError

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
DARK_COLORS = ("#4A8FE7", "#FF7F32", "#00B386", "#F2A6D0", "#FFD23F", "#9FE3FF", "#C2569B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", ":", "-.")
"""One per round through the colours; "--" is the reference line's."""


@dataclass(frozen=True)
class LineStyle:
    """A line's looks, in matplotlib's words."""

    color: str
    marker: str
    linestyle: str


@dataclass(frozen=True)
class Style:
    """What a figure is made for. Colours are `#rrggbb`; sizes are relative to `paper`."""

    name: str
    ground: str
    ink: str
    soft: str
    """Titles of panels, notes."""
    grid: str
    neutral: str
    """For what belongs to no condition, such as the legend's entry for all bands."""
    colors: tuple[str, ...] = COLORS
    text: float = 1.0
    """Of letters and lines."""
    size: float = 1.0
    """Of the figure."""

    @property
    def diverging(self) -> str:
        """A colour map for values around a middle that is like the ground; both are made for colour-blind eyes."""
        return "PuOr" if self.ground == "#ffffff" else "managua"

    @property
    def reference(self) -> LineStyle:
        """Of the reference line."""
        return LineStyle(self.ink, "", "--")

    def points(self, size: float) -> float:
        """A size of letters, lines or markers on paper (points), in this style."""
        return size * self.text

    def inches(self, size: float) -> float:
        """A length on paper (inches), in this style."""
        return size * self.size

    def characters(self, inches: float, points: float = 8.0) -> int:
        """Average characters of DejaVu Sans, of a size on paper, that fit into a width of this style's figure (inches)."""
        return max(8, int(inches / (0.0075 * self.points(points))))

    def of(self, index: int) -> LineStyle:
        """The looks of the condition at `index` (0 for the first). They repeat after 21."""
        round_, place = divmod(index, len(self.colors))
        return LineStyle(self.colors[place], MARKERS[place], DASHES[round_ % len(DASHES)])

    def each(self, conditions: Sequence[str]) -> dict[str, LineStyle]:
        """The looks of each condition, by their order."""
        return {name: self.of(index) for index, name in enumerate(conditions)}


PAPER = Style("paper", ground="#ffffff", ink="#222222", soft="#444444", grid="#e5e5e5", neutral="#888888")
TALK = Style("talk", ground="#ffffff", ink="#222222", soft="#444444", grid="#e5e5e5", neutral="#888888", text=1.75, size=1.45)
DARK = Style("dark", ground="#15181d", ink="#e8eaed", soft="#c3c8cf", grid="#30353d", neutral="#8d949e", colors=DARK_COLORS)
TALK_DARK = Style(
    "talk-dark",
    ground="#15181d",
    ink="#e8eaed",
    soft="#c3c8cf",
    grid="#30353d",
    neutral="#8d949e",
    colors=DARK_COLORS,
    text=1.75,
    size=1.45,
)
STYLES = {style.name: style for style in (PAPER, TALK, DARK, TALK_DARK)}


def style_named(name: str) -> Style:
    """One of `STYLES`; `UsageError` for another name."""
    if name not in STYLES:
        raise UsageError(f"there is no style {name!r}", mend=f"Use one of: {', '.join(STYLES)}")
    return STYLES[name]
