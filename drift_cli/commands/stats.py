"""`drift stats`: means, intervals and differences between conditions. The unit is the rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from drift_cli.commands.options import DisplayOption, JsonOption, MeasuredAxisOption, RunArgument, StoreOption, make_display, open_run
from drift_cli.display import Mode, Table
from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drift_cli.analysis.summary import Summary
    from drift_cli.analysis.tests import Comparison


def stats(
    run: RunArgument = None,
    test: Annotated[str, typer.Option(help="How conditions are compared: welch or bootstrap.")] = "welch",
    against: Annotated[str | None, typer.Option(help="Compare with this condition only (default: all pairs).")] = None,
    axis: MeasuredAxisOption = None,
    ddof: Annotated[int, typer.Option(help="1: sample standard deviation; 0: the population formula.", min=0, max=1)] = 1,
    level: Annotated[float, typer.Option(help="Level of the intervals.", min=0.5, max=0.9999)] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    turns: Annotated[bool, typer.Option("--turns/--no-turns", help="Show the table of every turn.")] = True,
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Show means, intervals and differences between conditions.

    The unit is the rollout: every number is over rollouts, and one transcript supports claims about sampling noise only.
    """
    from drift_cli.analysis.summary import summarize
    from drift_cli.analysis.table import load
    from drift_cli.analysis.tests import compare, compare_turns

    table = load(open_run(store, run), axis)
    summary = summarize(table, ddof=ddof, level=level)
    pairs = _against(compare(table, test, level=level, seed=seed), against, table.conditions)
    by_turn = _against(compare_turns(table, level=level), against, table.conditions)
    document = {"run": table.run_id, "test": test, "seed": seed, "summary": summary, "comparisons": pairs, "turns": by_turn}
    shown = [summary_table(summary), _pairs_table(pairs), *([_turns_table(summary)] if turns else [])]
    make_display(display, as_json).result(document, *shown)


C = TypeVar("C", bound="Comparison")


def _against(found: Sequence[C], name: str | None, known: Sequence[str]) -> list[C]:
    if name is None:
        return list(found)
    if name not in known:
        raise UsageError(f"condition {name!r} is not in this run", mend=f"It has: {', '.join(known)}.")
    return [comparison for comparison in found if name in (comparison.a, comparison.b)]


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """A number for a table; an em dash where there is none."""
    if value is None:
        return "—"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def p_value(value: float | None) -> str:
    """A p value for a table: `< .0001` where it is smaller."""
    if value is None:
        return "—"
    return "< .0001" if value < 1e-4 else f"{value:.4f}"


def _interval(low: float | None, high: float | None, digits: int = 3) -> str:
    return "—" if low is None or high is None else f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def summary_table(summary: Summary) -> Table:
    """Per cell: rollouts, mean of rollout means, spread, interval, flagged replies."""
    rows = []
    for cell in summary.cells:
        counts = cell.flagged
        kinds = {"empty": counts.empty, "repeated": counts.repeated, "reciting": counts.reciting, "context": counts.context}
        flagged = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        rows.append(
            [
                f"{cell.transcript}/{cell.condition}/T{cell.temperature:g}",
                f"{cell.n}/{cell.planned}",
                number(cell.mean, sign=True),
                number(cell.sd),
                number(cell.sem),
                _interval(cell.low, cell.high),
                flagged or "—",
            ]
        )
    layer = "" if summary.layer is None else f", layer {summary.layer}"
    level = f"{summary.level:.0%}".replace("%", " %")
    heads = ["cell", "rollouts>", "mean>", "SD>", "SEM>", f"{level} interval>", "flagged replies"]
    notes = [summary.method, summary.scope, *(f"{c.condition}: {c.note}" for c in summary.cells if c.note)]
    return Table(f"Run {summary.run_id}: projection on {summary.axis}{layer}", heads, rows, notes)


def _pairs_table(pairs: Sequence[Comparison]) -> Table:
    rows = []
    for pair in pairs:
        where = f"{pair.transcript}, T{pair.temperature:g}" if pair.transcript is not None and pair.temperature is not None else "—"
        statistic = "—" if pair.statistic is None else f"{pair.statistic:.4f}" + ("" if pair.df is None else f" ({pair.df:.2f})")
        rows.append(
            [
                f"{pair.a} − {pair.b}",
                where,
                f"{pair.n_a}, {pair.n_b}",
                number(pair.difference, sign=True),
                _interval(pair.low, pair.high, 4),
                statistic,
                p_value(pair.p),
                number(pair.hedges_g, 2, sign=True),
            ]
        )
    heads = ["difference", "where", "n>", "estimate>", "interval>", "statistic (df)>", "p>", "Hedges' g>"]
    notes = [*dict.fromkeys(pair.method for pair in pairs), *dict.fromkeys(f"{p.a} − {p.b}: {p.note}" for p in pairs if p.note)]
    return Table("Differences of rollout means", heads, rows, notes)


def _turns_table(summary: Summary) -> Table:
    """Mean ± SEM of every turn, a column per cell."""
    heads = ["turn>", *(f"{c.condition}{_where(summary, c.transcript, c.temperature)}>" for c in summary.cells)]
    longest = max((len(cell.turns) for cell in summary.cells), default=0)
    rows = []
    for turn in range(longest):
        at = [cell.turns[turn] if turn < len(cell.turns) else None for cell in summary.cells]
        rows.append([str(turn + 1), *("—" if t is None or t.mean is None else f"{t.mean:+.4f} ± {number(t.sem)}" for t in at)])
    return Table("Every turn: mean ± SEM over rollouts", heads, rows)


def _where(summary: Summary, transcript: str, temperature: float) -> str:
    several = len({(c.transcript, c.temperature) for c in summary.cells}) > 1
    return f" ({transcript}, T{temperature:g})" if several else ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(stats)
