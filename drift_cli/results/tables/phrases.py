"""Numbers and names as sentences of the answer write them. A space inside a number is a `HARD` one: no line may end there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from drift_cli.analysis.results import Comparison
from drift_cli.analysis.verdict import Judgement
from drift_cli.results.tables.words import number, p_value

HARD = "\u00a0"
Namer = Callable[[Judgement], str]


def namer(several: bool) -> Namer:
    """How conditions are named: with transcript and temperature where there are several."""
    return lambda one: f"{one.condition} ({one.transcript}, T{HARD}{one.temperature:g})" if several else one.condition


def why(row: Comparison | None) -> str:
    """A comparison's note in brackets."""
    return f" ({row.note.rstrip('.')})" if row is not None and row.note else ""


def evidence(row: Comparison) -> str:
    """`+1.13 ± 0.09, p < .0001` of a comparison."""
    half = None if row.low is None or row.high is None else (row.high - row.low) / 2
    interval = "" if half is None else f"{HARD}±{HARD}{half_width(half)}"
    p = why(row) if row.p is None else f", p{HARD}{p_words(row.p_adjusted)}"
    return f"{signed(row.difference)}{interval}{p}"


def turned(row: Comparison) -> Comparison:
    """The same comparison as b minus a: its difference and interval."""
    negative = {name: None if (value := getattr(row, name)) is None else -value for name in ("difference", "low", "high")}
    return replace(row, a=row.b, b=row.a, difference=negative["difference"], low=negative["high"], high=negative["low"])


def p_words(value: float | None) -> str:
    """`= .0123` or `< .0001`."""
    shown = p_value(value).replace(" ", HARD)
    return shown if shown.startswith(("<", "—")) else f"={HARD}{shown}"


def signed(value: float | None) -> str:
    """Two decimals and a sign."""
    return number(value, 2, sign=True).replace("-", "−")


def half_width(value: float) -> str:
    """Half a width, with the decimals of what it stands beside."""
    return f"{value:.2f}" if value >= 0.0095 else number(value, 2)


def joined(found: Sequence[str]) -> str:
    """The first six, and how many more."""
    shown = [one.replace(" ", HARD) if len(one) < 40 else one for one in found[:6]]
    return ", ".join(shown) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
