"""The report's tables: numbers of `analysis/` as rows of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drift_cli.analysis.summary import Summary


@dataclass(frozen=True)
class Sheet:
    """A table: heads (a trailing `>` aligns right), rows of text, notes below."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number, with a true minus; an em dash where there is none."""
    if value is None:
        return "—"
    said = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return said.replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """ "[low, high]"."""
    return "—" if low is None or high is None else f"[{number(low, sign=True)}, {number(high, sign=True)}]"


def p_value(value: float | None) -> str:
    """A p value; "< .0001" where it is smaller."""
    if value is None:
        return "—"
    return "< .0001" if value < 1e-4 else f"{value:.4f}".removeprefix("0")


def summary_sheet(summary: Summary) -> Sheet:
    """A row per cell: rollouts, mean, spread, interval, flagged replies."""
    rows = []
    for cell in summary.cells:
        counts = cell.flagged
        kinds = {"empty": counts.empty, "repeated": counts.repeated, "reciting": counts.reciting, "out of context": counts.context, "cut": counts.length}
        flagged = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "—"
        numbers = [number(cell.mean, sign=True), number(cell.sd), number(cell.sem), interval(cell.low, cell.high)]
        rows.append([cell.condition, cell.transcript, f"{cell.temperature:g}", f"{cell.n} of {cell.planned}", str(cell.replies), *numbers, flagged])
    heads = ["condition", "script", "T>", "rollouts>", "replies>", "mean>", "SD>", "SEM>", f"{100 * summary.level:g} % interval>", "flagged replies"]
    notes = [summary.method, summary.scope, *(f"{cell.condition}: {cell.note}" for cell in summary.cells if cell.note)]
    return Sheet("Means of rollouts", heads, rows, notes)


def turns_sheets(summary: Summary) -> list[Sheet]:
    """For each script and temperature, mean and interval of every turn."""
    sheets = []
    for group in dict.fromkeys((cell.transcript, cell.temperature) for cell in summary.cells):
        cells = [cell for cell in summary.cells if (cell.transcript, cell.temperature) == group]
        rows = [
            [str(turn + 1), *(f"{number(c.turns[turn].mean, sign=True)} {interval(c.turns[turn].low, c.turns[turn].high)}" for c in cells)]
            for turn in range(max(len(cell.turns) for cell in cells))
        ]
        sheets.append(Sheet(f"Every turn: {group[0]}, T {group[1]:g}", ["turn>", *(f"{cell.condition}>" for cell in cells)], rows, []))
    return sheets
