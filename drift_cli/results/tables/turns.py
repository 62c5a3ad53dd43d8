"""Turns as tables to read: which differ, every turn of a pair, every turn of the conditions."""

from __future__ import annotations

from drift_cli.analysis.results import Correction, PairTurns
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import Summary, percent
from drift_cli.display import Table
from drift_cli.results.tables.words import MOST_ROWS, interval, number, p_value, ranges, with_error


def all_turns(study: Study) -> list[Table]:
    """Which turns differ, every turn of the conditions, and every turn of each pair."""
    return [turn_pairs_table(study), turns_table(study.summary), *(pair_turns_table(pair, study.scope) for pair in study.turns[:MOST_ROWS])]


def turn_pairs_table(study: Study, which: str = "") -> Table:
    """Which turns differ, a line per pair."""
    rows = []
    for pair in study.turns[:MOST_ROWS]:
        tested = [turn for turn in pair.turns if turn.p_adjusted is not None]
        largest = max(tested, key=lambda t: abs(t.statistic or 0.0), default=None)
        biggest = (
            "—"
            if largest is None
            else f"{number(largest.difference, sign=True)} at {largest.turn}, {with_error(largest.p_adjusted, largest.p_error)}"
        )
        where = f"{pair.transcript}, T{pair.temperature:g}"
        rows.append([f"{pair.a} − {pair.b}", where, f"{len(pair.significant)} of {len(tested)}", ranges(pair.significant) or "—", biggest])
    alpha = f"{1 - study.options.level:g}".lstrip("0")
    heads = ["difference", "where", f"turns with p ≤ {alpha}>", "which", "clearest, p"]
    said = [f"{p.a} − {p.b}: {p.note}" for p in study.turns[:MOST_ROWS] if p.note]
    warned = ["With p not adjusted, some turn of 18 differs between equal conditions in nearly half of all experiments."]
    if study.closed:
        said = ["No primary difference is shown, so no turn is either, whatever its p.", *said]
    notes = [*dict.fromkeys(p.method for p in study.turns), study.scope, *study.notes, *dict.fromkeys(said)]
    return Table(f"Turn by turn{which}", heads, rows, notes + (warned if study.options.correction is Correction.NONE else []))


def pair_turns_table(pair: PairTurns, scope: str, which: str = "") -> Table:
    """One pair at every turn."""
    rows = [
        [
            str(turn.turn),
            f"{turn.n_a}, {turn.n_b}",
            number(turn.difference, sign=True),
            interval(turn.low, turn.high),
            interval(turn.band_low, turn.band_high),
            p_value(turn.p),
            with_error(turn.p_adjusted, turn.p_error),
        ]
        for turn in pair.turns
    ]
    level = percent(pair.level)
    heads = ["turn>", "n>", "difference>", f"{level} interval>", f"{level} band, all turns>", "p>", "p adjusted>"]
    said = [f"turn {turn.turn}: {turn.note}" for turn in pair.turns if turn.note]
    notes = [
        pair.method,
        scope,
        *([pair.note] if pair.note else []),
        *said[:3],
        *([f"… and {len(said) - 3} more"] if len(said) > 3 else []),
    ]
    return Table(f"{pair.a} − {pair.b} ({pair.transcript}, T{pair.temperature:g}){which}", heads, rows, notes)


def turns_table(summary: Summary, which: str = "") -> Table:
    """Mean and half its interval at every turn, a column per cell."""
    several = len({(c.transcript, c.temperature) for c in summary.cells}) > 1
    where = [f" ({c.transcript}, T{c.temperature:g})" if several else "" for c in summary.cells]
    heads = ["turn>", *(f"{cell.condition}{at}>" for cell, at in zip(summary.cells, where, strict=True))]
    numbers = sorted({turn.turn for cell in summary.cells for turn in cell.turns})
    by_turn = [{turn.turn: turn for turn in cell.turns} for cell in summary.cells]
    rows = []
    for at in numbers:
        row = [str(at)]
        for turns in by_turn:
            turn = turns.get(at)
            half = None if turn is None or turn.low is None or turn.mean is None else turn.mean - turn.low
            row.append("—" if turn is None or turn.mean is None else f"{number(turn.mean, sign=True)} ± {number(half)}")
        rows.append(row)
    notes = [f"± half the {percent(summary.level)} t interval over rollouts, pointwise per turn", summary.scope]
    return Table(f"Every turn: mean ± half-width{which}", heads, rows, notes)
