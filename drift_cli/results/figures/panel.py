"""What panels with turns across have in common: title, ticks and labels."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from drift_cli.analysis.table import Group, RunTable
from drift_cli.errors import StoreError
from drift_cli.results.figures.layout import inches_of
from drift_cli.results.figures.lettering import wrapped
from drift_cli.results.figures.palette import Style


def check_drawable(table: RunTable) -> None:
    """Raise `StoreError` for a table without a turn."""
    if not np.isfinite(table.projections).any():
        raise StoreError(f"run {table.run_id} has no committed turn to draw", mend=f"drift resume {table.run_id}")


def dress(
    ax: Axes,
    table: RunTable,
    group: Group,
    style: Style,
    *,
    note: str = "",
    label: str | None = None,
    bare: bool = False,
    untitled: bool = False,
) -> None:
    """Title, turns and labels of a panel of a group; without the turns' labels where it is `bare`, as another panel stands below it."""
    turns, size = table.length(group.transcript), inches_of(ax)
    if not untitled:
        ax.set_title(wrapped(f"{group}{note}", style.characters(size.width, 9)), loc="left")
    ax.set_xlim(0.5, turns + 0.5)
    ax.set_xticks(turn_ticks(turns, most=style.characters(size.width, 22)))
    if bare:
        ax.tick_params(labelbottom=False)
    else:
        ax.set_xlabel("turn")
    if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        ax.set_ylabel(wrapped(label or axis_label(table), style.characters(size.height, 9)))
    cells = [cell for cell in table.cells if (cell.transcript, cell.temperature) == group]
    if not any(np.isfinite(table.projections[table.rows(cell)]).any() for cell in cells):
        ax.text(0.5, 0.5, "no turn yet", transform=ax.transAxes, ha="center", va="center", color=style.neutral)


def turn_ticks(turns: int, most: int = 20) -> list[int]:
    """Turns to label on an axis of 1 … `turns`, at most about `most` of them: every one, every other, or 1 and the multiples of 5, 10, 20, …"""
    steps = (step * 10**power for power in range(10) for step in (1, 2, 5))
    step = next(step for step in steps if turns <= step * most)
    return list(range(1, turns + 1, step)) if step <= 2 else [1, *range(step, turns + 1, step)]


def axis_label(table: RunTable) -> str:
    """ "projection on <axis> (layer <l>)"; "projection of the answer on …" where replies have segments."""
    return table.quantity + ("" if table.layer is None else f" (layer\u00a0{table.layer})")
