"""`drift runs watch`: cells, rates and workers of a run, live, from the store alone.

On a terminal the newest state is shown in place; elsewhere a line is written per look, and with --json an object per line.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from drift_cli.commands.flags import grouped
from drift_cli.commands.options import Common, RunArgument
from drift_cli.display import Display, Mode, Table, duration

if TYPE_CHECKING:
    from drift_cli.workers.cells import CellStatus
    from drift_cli.workers.progress import Status, Watch, WorkerStatus

_REST = 4.0
"""Times as long as a look took, at least, until the next: whoever watches leaves a busy file server to those who work."""
_EVERY = (2.0, 10.0)
"""Seconds between looks on a terminal, and elsewhere."""
_WIDE = 100
"""Columns from which on there is room for bars."""
_BAR = 12
_HOST = 20
"""Letters of a host's name that are shown; --json has all."""


@grouped
def watch(
    run: RunArgument = None,
    every: Annotated[
        float | None, typer.Option("--every", min=0.1, help="Seconds between looks (default: 2 on a terminal, 10 elsewhere).")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
    *,
    common: Common,
) -> None:
    """Watch a run: how far each cell is, how fast, for how long still, and who works on it. From any machine that sees the store; nothing is written.

    Ends when nothing is left to do, or with Ctrl-C. With --json, one object per look, a line each.

    Example: drift runs watch demo-1a2b3c4d --every 5
    """
    from drift_cli.screen import Leave
    from drift_cli.workers.progress import Watch

    shown = common.show()
    watched = Watch(common.open(run).paths)
    live = not once and not shown.as_json and common.display in (Mode.AUTO, Mode.RICH) and shown.out.isatty()
    with Leave():
        if once:
            status = watched.look()
            shown.result(document(status), *(item for item in tables(status, _WIDE) if item))
        elif live:
            _on_screen(shown, watched, every or _EVERY[0])
        else:
            _in_lines(shown, watched, every or _EVERY[1])


def _looks(watched: Watch) -> Iterator[tuple[Status, float]]:
    """A status, and how many seconds to wait at least, until nothing is left to do."""
    while True:
        started = time.monotonic()
        status = watched.look()
        yield status, _REST * (time.monotonic() - started)
        if status.ended:
            return


def _on_screen(display: Display, watched: Watch, every: float) -> None:
    from drift_cli.screen import Screen

    with Screen(display) as screen:
        for status, rest in _looks(watched):
            screen.show(partial(tables, status))
            if display.unread:
                return
            if not status.ended:
                screen.wait(max(every, rest))


def _in_lines(display: Display, watched: Watch, every: float) -> None:
    for status, rest in _looks(watched):
        display.line(orjson.dumps(document(status)).decode() if display.as_json else f"{datetime.now():%H:%M:%S}  {summary(status)}")
        if display.unread:
            return
        if not status.ended:
            time.sleep(max(every, rest))


def summary(status: Status) -> str:
    """One line."""
    parts = [f"{status.settled}/{status.total} turns"]
    if status.ended:
        parts.append("complete")
    else:
        parts += [rate_of(status.rate)] if status.rate else []
        parts += [f"about {duration(status.left)} left"] if status.left is not None else []
        lost = sum(worker.lost for worker in status.workers)
        parts.append((_number(status.working, "worker") if status.working else "nobody works on it") + (f" ({lost} lost)" if lost else ""))
        parts += [f"last turn {duration(status.quiet)} ago"] if status.quiet is not None else []
    damaged = sum(cell.damaged for cell in status.cells)
    return ", ".join([*parts, *([f"{_number(damaged, 'rollout')} damaged"] if damaged else [])])


def tables(status: Status, columns: int, lines: int | None = None) -> Sequence[Table | str]:
    """What a terminal of this size shows; with `lines` None, everything."""
    problems = _problems(status)
    # Two lines and an empty one of the whole run; each table has a title, heads, and a line below them, the second one an empty line before it.
    room = None if lines is None else max(2, lines - 10 - len(problems))
    workers = _workers(status, None if room is None else max(1, room // 2))
    cells = _cells(status, columns, None if room is None else max(1, room - len(workers.rows) - len(workers.notes)))
    share = status.settled / status.total if status.total else 1.0
    whole = f"{status.run_id}  {_bar(share)}  {_percent(share)}"
    shown: list[Table | str] = [whole, summary(status), "", cells]
    if workers.rows:
        shown += ["", workers]
    return [*shown, *problems]


def _cells(status: Status, columns: int, room: int | None) -> Table:
    wide = columns >= _WIDE
    heads = ["cell", *(["done"] if wide else []), ">", "turns>", "rollouts>", "rate>", "left>"]
    chosen = status.cells if room is None or len(status.cells) <= room else _foremost(status.cells, room - 1)
    rows = [_cell(cell, wide) for cell in chosen]
    hidden = [cell for cell in status.cells if cell not in chosen]
    return Table("Cells", heads, rows, [_hidden(hidden)] if hidden else [])


def _foremost(cells: Sequence[CellStatus], room: int) -> list[CellStatus]:
    """Cells in progress before those that wait, those before the ones that are done; shown in the run's order."""

    def rank(place: int) -> tuple[int, int]:
        count = cells[place]
        return (2 if count.ended == count.planned else 0 if count.begun else 1), place

    return [cells[place] for place in sorted(sorted(range(len(cells)), key=rank)[: max(0, room)])]


def _hidden(cells: Sequence[CellStatus]) -> str:
    done = sum(cell.ended == cell.planned for cell in cells)
    fresh = sum(not cell.begun for cell in cells)
    kinds = [(done, "done"), (len(cells) - done - fresh, "in progress"), (fresh, "not begun")]
    return f"and {_number(len(cells), 'cell')} more: " + ", ".join(f"{number} {kind}" for number, kind in kinds if number)


def _cell(cell: CellStatus, wide: bool) -> list[str]:
    share = cell.settled / cell.total if cell.total else 1.0
    left = "done" if cell.ended == cell.planned else "" if cell.left is None else duration(cell.left)
    shown = [str(cell.cell), *([_bar(share)] if wide else []), _percent(share), f"{cell.settled}/{cell.total}"]
    return [*shown, f"{cell.ended}/{cell.planned}", rate_of(cell.rate), left]


def _bar(share: float) -> str:
    full = int(share * _BAR)
    return "█" * full + "░" * (_BAR - full)


def _percent(share: float) -> str:
    """Rounded down: 100 % is when nothing is left."""
    return f"{int(100 * share)} %"


def _workers(status: Status, room: int | None) -> Table:
    """Those at work first, then those that were lost, then those that left."""
    order = sorted(status.workers, key=lambda worker: (worker.left, worker.lost))
    shown = order if room is None or len(order) <= room else order[: room - 1]
    more = len(order) - len(shown)
    notes = [f"and {_number(more, 'worker')} more"] if more else []
    return Table(
        "Workers", ["worker", "host", "state", "heartbeat>", "turns>", "rate>", "rollouts>"], [_worker(worker) for worker in shown], notes
    )


def _worker(worker: WorkerStatus) -> list[str]:
    heard = "" if worker.heartbeat is None else f"{duration(worker.heartbeat)} ago"
    turns = "" if worker.turns is None else str(worker.turns)
    return [worker.name, worker.host[:_HOST], worker.state, heard, turns, rate_of(worker.rate), str(worker.held)]


def _problems(status: Status) -> list[str]:
    hint = f"`drift runs verify {status.run_id}` lists all damage"
    return [*status.problems[:3], hint] if status.problems else []


def rate_of(rate: float | None) -> str:
    """`7.7 turns/s`, `12 turns/min`, `3.1 turns/h`: whichever has a digit before the point."""
    if not rate:
        return ""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if rate * seconds >= 1 or unit == "h":
            return f"{rate * seconds:.{0 if rate * seconds >= 10 else 1}f} turns/{unit}"
    raise AssertionError


def _number(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def document(status: Status) -> dict[str, Any]:
    """The status as a JSON document: rates in turns a second, times in seconds."""
    names = ("begun", "ended", "complete", "damaged", "turns", "settled", "total", "rate")
    cells = [
        {"cell": str(cell.cell), "rollouts": cell.planned, **{name: getattr(cell, name) for name in names}, "seconds_left": cell.left}
        for cell in status.cells
    ]
    return {
        "run": status.run_id,
        **{name: getattr(status, name) for name in ("ended", "turns", "settled", "total", "rate")},
        "seconds_left": status.left,
        "seconds_since_turn": status.quiet,
        "cells": cells,
        "workers": [_worker_document(worker) for worker in status.workers],
        "problems": list(status.problems),
    }


def _worker_document(worker: WorkerStatus) -> dict[str, Any]:
    return {
        "worker": worker.name,
        **{name: getattr(worker, name) for name in ("host", "state", "lost", "left")},
        "seconds_since_heartbeat": worker.heartbeat,
        "turns": worker.turns,
        "rate": worker.rate,
        "rollouts": worker.held,
    }
