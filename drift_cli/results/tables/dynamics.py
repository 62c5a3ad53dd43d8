"""How rollouts move after a pull, as a table to read."""

from __future__ import annotations

from collections.abc import Sequence

from drift_cli.analysis.dynamics import Dynamic, Movement
from drift_cli.analysis.summary import percent
from drift_cli.display import Table
from drift_cli.results.tables.words import MOST_ROWS, interval, number, p_value

_NAMES = {Dynamic.AFTER_PULLS: "level after pulls", Dynamic.EQUILIBRIUM: "equilibrium", Dynamic.PHI: "persistence φ"}


def dynamics_table(found: Sequence[Movement], level: float, scope: str) -> Table:
    """A line per measure and condition."""
    rows = [
        [
            _NAMES[row.measure],
            row.condition,
            f"{row.transcript}, T{row.temperature:g}",
            str(row.n),
            number(row.value, 2, sign=True),
            interval(row.low, row.high, 2),
            "" if row.measure is not Dynamic.PHI else number(row.half_life, 1),
            "" if row.difference is None else number(row.difference.difference, 2, sign=True),
            "" if row.difference is None else interval(row.difference.low, row.difference.high, 2),
            "" if row.difference is None else p_value(row.difference.p),
            "" if row.difference is None else p_value(row.p_adjusted),
        ]
        for row in found[:MOST_ROWS]
    ]
    heads = ["measure", "condition", "where", "n>", "value>", f"{percent(level)} interval>", "half-life in turns>", "difference>"]
    heads += [f"its {percent(level)} interval>", "p>", "p Holm>"]
    pulls = {row.transcript: (row.pulls, row.marked) for row in found}
    said = [
        f"{name}: " + (f"pulls at turns {', '.join(map(str, turns))}" + ("" if marked else " (none is marked: the largest drop)"))
        for name, (turns, marked) in pulls.items()
        if turns
    ]
    notes = [
        "after pulls: mean of the turns behind a pull. equilibrium: where the level would settle, a rollout's own start forgotten. φ: what of a deviation "
        "from the turn's mean is left one turn later; half-life: turns until half of it is gone.",
        "; ".join(said),
        "Secondary, complete rollouts only, a family of their own; not part of the verdict.",
        scope,
    ]
    return Table("How rollouts move", heads, rows, [note for note in notes if note])
