"""Rollouts that break, as a table to read."""

from __future__ import annotations

from collections.abc import Sequence

from drift_cli.analysis.breaks import LEAST_STAY, MOST_EXACT, Breaks
from drift_cli.analysis.summary import percent
from drift_cli.display import Table
from drift_cli.results.tables.words import MOST_ROWS, interval, number, p_value


def breaks_table(found: Sequence[Breaks], level: float, scope: str) -> Table:
    """A line per condition."""
    rows = [
        [
            row.condition,
            f"{row.transcript}, T{row.temperature:g}",
            f"{row.broken} of {row.n}",
            str(row.recovered),
            number(row.median, 1),
            number(row.difference, 2, sign=True),
            interval(row.low, row.high, 2),
            p_value(row.p),
            p_value(row.p_adjusted),
            p_value(row.p_logrank),
        ]
        for row in found[:MOST_ROWS]
    ]
    heads = ["condition", "where", "broke>", "recovered>", "median turn>", "difference of shares>", f"{percent(level)} interval>"]
    heads += ["p>", "p Holm>", "p log-rank>"]
    threshold = number(found[0].threshold) if found else "—"
    notes = [
        f"broken: below {threshold} from some turn on to the end, for {LEAST_STAY} replies or more. recovered: so for as many in a row, and back.",
        "Differences from the baseline: Newcombe's interval, Boschloo's test; time to break: Kaplan-Meier median, log-rank test.",
        "Secondary: not part of the verdict.",
        *([f"More than {MOST_EXACT} conditions: Boschloo's test is left out."] if len(found) > MOST_EXACT + 1 else []),
        scope,
    ]
    return Table("Rollouts that break", heads, rows, notes)
