"""What a chat template would take from the moment at which it is rendered: today's date is pinned, chance is refused.

A run renders its prompts again whenever it is resumed, on any day and machine, and has to get the same ones.
"""

from __future__ import annotations

import datetime
import re

from drift_cli.errors import UsageError

_CALL = re.compile(r"strftime_now\s*\(\s*(?:'([^']*)'|\"([^\"]*)\")\s*\)")
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")


def asks_for_date(template: str) -> bool:
    """Whether a template asks for today's date."""
    return "strftime_now" in template


def with_date(template: str, date: str) -> str:
    """The template with `strftime_now` replaced by a macro that answers from a date (ISO)."""
    if not asks_for_date(template):
        return template
    formats = {a or b for a, b in _CALL.findall(template)}
    day = datetime.datetime.fromisoformat(date)
    answers = "".join(f"{{%- if format == {layout!r} -%}}{day.strftime(layout)}{{%- endif -%}}" for layout in sorted(formats))
    return "{%- macro strftime_now(format) -%}" + answers + "{%- endmacro -%}" + template


def check_repeatable(template: str) -> None:
    """Every question for the date must name its format outright, or an answer could not be pinned beforehand; and nothing may be left to chance."""
    calls = len(re.findall(r"strftime_now\s*\(", template))
    if calls != len(_CALL.findall(template)):
        raise UsageError(
            "this model's chat template asks for today's date in a form that cannot be pinned, so a resumed run would not be the same",
            mend="Save the tokenizer with a template that does not ask, or use --chat raw.",
        )
    if _CHANCE.search(template):
        raise UsageError(
            "this model's chat template writes something else each time it is rendered, so a resumed run would not be the same",
            mend="Save the tokenizer with a template that leaves nothing to chance, or use --chat raw.",
        )
