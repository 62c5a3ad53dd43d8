"""Text from people and models on its way into a picture: in one line, and only in characters that the font has.

matplotlib shapes right-to-left text itself. Control and direction characters would let a text rearrange what stands beside it: they are spelled out.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font

_UNKNOWN = "\u25a1"
_SPACES = re.compile(r"[^\S\u00a0]+")
"""Everything white but the no-break space, at which lines are not broken."""
_LEFT_TO_RIGHT = "\u200e"


@cache
def _known() -> frozenset[int]:
    """Code points that DejaVu Sans, which comes with matplotlib, has a glyph for."""
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def drawable(text: str) -> str:
    """The text in one line; what cannot be drawn is a box, what would steer the drawing is spelled out."""
    return "".join(map(_drawable, _SPACES.sub(" ", text).strip()))


def _drawable(character: str) -> str:
    if unicodedata.category(character) in {"Cc", "Cf", "Cs"} and character not in "\u200c\u200d":
        return f"\\u{ord(character):04x}"
    return character if ord(character) in _known() else _UNKNOWN


def shortened(text: str, length: int) -> str:
    """The drawable text in at most `length` characters."""
    found = drawable(text)
    return found if len(found) <= length else found[: max(0, length - 1)].rstrip() + "…"


def wrapped(text: str, width: int, lines: int | None = None) -> str:
    """The drawable text in lines of at most `width` characters; beyond `lines` it ends in an ellipsis."""
    made = textwrap.wrap(drawable(text), max(width, 8), max_lines=lines, placeholder=" …")
    # A line that happens to begin with right-to-left letters would otherwise be laid out from the right.
    return "\n".join(_LEFT_TO_RIGHT + line if _has_right_to_left(line) else line for line in made)


def _has_right_to_left(line: str) -> bool:
    return any(unicodedata.bidirectional(character) in {"R", "AL"} for character in line)
