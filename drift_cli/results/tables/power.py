"""What more rollouts would show, as tables to read."""

from __future__ import annotations

from collections.abc import Sequence

from drift_cli.analysis.power import Power
from drift_cli.analysis.summary import percent
from drift_cli.display import Table
from drift_cli.results.tables.words import measure_name, number


def power_tables(found: Sequence[Power], scope: str, first: int) -> list[Table]:
    """What more rollouts would show, and how many an interval needs."""
    sizes, needed = [], []
    for p in found:
        named = [f"{p.a} − {p.b}", measure_name(p.measure, first), f"{p.transcript}, T{p.temperature:g}"]
        sd = "—" if p.sd is None else f"{number(p.sd)} {_bounds(p.sd_low, p.sd_high)}"
        for at in p.sizes:
            detectable = f"{number(at.detectable)} {_bounds(at.detectable_low, at.detectable_high)}"
            sizes.append([*named, sd, str(at.n), detectable, number(at.half_width)])
        for need in p.needed:
            needed.append([*named, f"{p.n_a}, {p.n_b}", number(need.half_width), "more than 10 million" if need.n is None else str(need.n)])
    said = [*dict.fromkeys(f"{p.a} − {p.b}: {p.note}" for p in found if p.note)]
    if not found:
        return []
    level, goal = percent(found[0].level), percent(found[0].power)
    method = (
        f"two-sided two-sample t test at {percent(1 - found[0].level)}, power {goal}; SD: root mean square of both conditions, with its own {level} interval, "
        "carried through to the detectable difference"
    )
    heads = ["difference", "of", "where"]
    tables = [
        Table(
            "What more rollouts would show",
            [*heads, "SD>", "n per condition>", "detectable difference>", "half-width>"],
            sizes,
            [method, scope, *said],
        ),
        Table("Rollouts needed", [*heads, "n now>", f"half of the {level} interval>", "n per condition>"], needed, [method, scope]),
    ]
    return [table for table in tables if table.rows or table.notes]


def _bounds(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"
