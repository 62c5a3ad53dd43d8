"""Numbers and names as tables write them."""

from __future__ import annotations

from collections.abc import Sequence

from drift_cli.analysis.measure import find_rollout_measure
from drift_cli.analysis.results import Comparison, Measure

MOST_ROWS = 60
"""Pairs that a table for reading shows; CSV and JSON have all."""


def measure_name(measure: str, first: int) -> str:
    """A measure as a table names it; `first` is the first turn that counts."""
    if measure in (Measure.CHANGE, Measure.AREA):
        return f"{measure} from turn {first}"
    return find_rollout_measure(measure).words


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """A number for a table, smaller ones with as many significant digits; an em dash where there is none."""
    if value is None:
        return "—"
    if value and abs(value) < 10.0 ** (1 - digits):
        return f"{value:{'+' if sign else ''}.{max(digits - 2, 1)}g}"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def p_value(value: float | None) -> str:
    """A p value for a table: `< .0001` where it is smaller."""
    if value is None:
        return "—"
    return "< .0001" if value < 1e-4 else f"{value:.4f}".lstrip("0") if value < 1 else "1"


def with_error(p: float | None, error: float | None) -> str:
    """A p value with its Monte Carlo standard error, where it is resampled and the error can be seen."""
    shown = p_value(p)
    return shown if error is None or p is None or error < 1e-4 else f"{shown} ± {p_value(error)}"


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """`[+0.1000, +0.2000]`, or an em dash."""
    return "—" if low is None or high is None else f"[{number(low, digits, sign=True)}, {number(high, digits, sign=True)}]"


def ranges(numbers: Sequence[int]) -> str:
    """`2-5, 9` for 2, 3, 4, 5, 9."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def where(c: Comparison) -> str:
    """Transcript and temperature of a comparison."""
    return "—" if c.transcript is None or c.temperature is None else f"{c.transcript}, T{c.temperature:g}"
