"""The trajectory as text, for terminals without pictures: mean projection against turn, a letter per condition where there are no colours."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import numpy as np

from drift_cli.analysis.summary import moments
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.results.figures.palette import PAPER
from drift_cli.results.figures.panel import axis_label, check_drawable
from drift_cli.results.figures.trajectory import Reference, references

SYMBOLS = "ox+*#@%"
"""One per condition, in turn, where there are no colours."""
WIDTH, HEIGHT = 72, 18
_MARGIN = 16
"""Columns that the axis's numbers may take."""


def terminal(table: RunTable, *, reference: Reference | None = None, color: bool = False, width: int | None = None) -> str:
    """Draw the table as lines of text, at most `width` columns wide (default: the terminal's).

    `color` is for a terminal that shows colours; without, each condition has a character of its own. Raises `StoreError` for a table without a turn.
    """
    check_drawable(table)
    lines = references(table, reference)
    columns = max(40, min(width or shutil.get_terminal_size((WIDTH + _MARGIN, 24)).columns, 120))
    return "\n\n".join(_group(table, group, lines, color, columns - _MARGIN) for group in table.groups)


def _group(table: RunTable, group: Group, lines: Mapping[str, FloatArray], color: bool, width: int) -> str:
    from uniplot import plot_to_string

    turns = table.length(group.transcript)
    names, ys, symbols, colors = _curves(table, group, turns)
    heading = f"{axis_label(table)} by turn: {group}".replace("\u00a0", " ")
    if not names:
        return f"{heading}\n  no turn yet"
    line = lines.get(group.transcript)
    if line is not None:
        names.append("reference")
        symbols.append("-")
        ys.append(line)
        colors.append((150, 150, 150))
    xs = [np.arange(1.0, len(y) + 1) for y in ys]
    drawn = plot_to_string(
        xs=xs,
        ys=ys,
        lines=turns > 1,
        width=width,
        height=HEIGHT,
        x_min=0.5,
        x_max=turns + 0.5,
        color=colors if color else False,
        character_set="braille" if color else "ascii",
        force_ascii_characters=symbols,
        legend_labels=names if color else None,
        y_gridlines=[],
        x_labels=turns > 1,
    )
    key = "" if color else "\n" + "   ".join(f"{symbol} {name}" for symbol, name in zip(symbols, names, strict=True))
    return f"{heading}\n{drawn.rstrip()}{key}"


def _curves(table: RunTable, group: Group, turns: int) -> tuple[list[str], list[FloatArray], list[str], list[tuple[int, int, int]]]:
    """Name, mean by turn (turns,), symbol and colour of each condition that has a turn."""
    looks = PAPER.each(table.conditions)
    names, ys, symbols, colors = [], [], [], []
    for place, name in enumerate(table.conditions):
        rows = [table.rows(cell) for cell in table.cells if cell.condition == name and (cell.transcript, cell.temperature) == group]
        values = table.projections[rows[0]][:, :turns] if rows else np.full((1, turns), np.nan)
        if np.isfinite(values).any():
            names.append(name)
            symbols.append(SYMBOLS[place % len(SYMBOLS)])
            ys.append(moments(values).mean)
            colors.append(_rgb(looks[name].color))
    return names, ys, symbols, colors


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
