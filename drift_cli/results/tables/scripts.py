"""What differences can be generalized to, as a table to read."""

from __future__ import annotations

from collections.abc import Sequence

from drift_cli.analysis.scripts import Reach
from drift_cli.analysis.summary import percent
from drift_cli.display import Table
from drift_cli.results.tables.words import MOST_ROWS, interval, number, p_value


def reach_table(found: Sequence[Reach], level: float, baseline: str) -> Table:
    """A line per prompt and population."""
    rows = [
        [
            one.condition if len(one.wordings) == 1 else f"{one.condition} ({len(one.wordings)} wordings)",
            f"T{one.temperature:g}",
            row.population,
            number(one.difference, 2, sign=True),
            interval(row.low, row.high, 2),
            p_value(row.p),
            number(row.df, 1),
        ]
        for one in found
        for row in one.inferences
    ]
    heads = ["condition", "at", "population", f"less {baseline}>", f"{percent(level)} interval>", "p>", "df>"]
    return Table("What the differences can be generalized to", heads, rows[:MOST_ROWS], [*(_said(one) for one in found), _NOTE])


_NOTE = "These: transcripts and wordings as they are, sampling noise only. Like these: transcripts or wordings as a random factor. p not adjusted; secondary."


def _said(one: Reach) -> str:
    """Variance components, what is not known, and the advice."""
    parts = {
        "transcripts": one.between_scripts,
        "wordings": one.between_wordings,
        "both together": one.interaction,
        "a rollout's sampling": one.sampling,
    }
    known = ", ".join(f"{name} {number(value**0.5, 2)}" for name, value in parts.items() if value is not None)
    said = f"{one.condition}: SD of the difference between {known}"
    if one.unknown:
        said += f"; of {' and '.join(one.unknown)} nothing is known"
    if one.advice:
        said += f". The next GPU hour is best spent on {one.advice}"
    return f"{said}."
