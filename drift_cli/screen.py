"""A terminal that shows the newest state of something, in place, until it is left; what was there before comes back, and the last state stays below it.

It uses the terminal's second screen, so that windows may be resized while it is shown. Tables that are too high or too wide are cut, never wrapped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from drift_cli.display import Display, Table
from drift_cli.streams import inert

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

_STEP = 0.2
"""Seconds between looks at the window's size."""

_NAME = 8
"""Columns that a name keeps at least."""
_BETWEEN = 3
"""Columns between two columns of a table."""

View = Callable[[int, int], Sequence[Table | str]]
"""Columns and lines of the terminal → what to show there."""


class Screen:
    """A context manager around the terminal that `display` writes results to."""

    def __init__(self, display: Display) -> None:
        self._console = display.console(display.out)
        self._live: Live
        self._view: View | None = None

    def __enter__(self) -> Screen:
        from rich.live import Live

        self._live = Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        if self._view is not None:
            self._console.print(self._drawn())

    def show(self, view: View) -> None:
        """Show this instead of what is shown."""
        self._view = view
        self._live.update(self._drawn(), refresh=True)

    def wait(self, seconds: float) -> None:
        """Let time pass; where the window changes its size meanwhile, what is shown is drawn anew."""
        until, size = time.monotonic() + seconds, self._console.size
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _STEP))
            if self._console.size != size:
                size = self._console.size
                self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        size = self._console.size
        shown = () if self._view is None else self._view(size.width, size.height)
        lines = [
            Text(inert(item), no_wrap=True, overflow="ellipsis") if isinstance(item, str) else _grid(item, size.width) for item in shown
        ]
        return Group(*lines)


def _grid(table: Table, columns: int) -> Group:
    """A table whose first column gives way where there is no room: names are cut at their beginning, since what tells them apart is mostly behind it."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    heads = [head.rstrip(">") for head in table.heads]
    rows = [[inert(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, (head, *(row[place] for row in rows)))) for place, head in enumerate(heads)]
    widths[0] = max(_NAME, min(widths[0], columns - sum(widths[1:]) - _BETWEEN * (len(heads) - 1)))
    for head, said, width in zip(heads, table.heads, widths, strict=True):
        right = said.endswith(">")
        made.add_column(Text(head), justify="right" if right else "left", no_wrap=True, min_width=width, max_width=width)
    for name, *row in rows:
        cut = name if len(name) <= widths[0] else "…" + name[len(name) - widths[0] + 1 :]
        made.add_row(*(Text(cell) for cell in (cut, *row)))
    notes = [Text(inert(line), no_wrap=True, overflow="ellipsis") for line in table.notes]
    return Group(*([Text(inert(table.title), style="bold")] if table.title else []), made, *notes)


class Leave:
    """A context manager: signals that ask to stop become a `KeyboardInterrupt`, so that whoever only looks can leave in order."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self) -> Leave:
        self._before = {number: signal.signal(number, self._ask) for number in self._SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is KeyboardInterrupt

    @staticmethod
    def _ask(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt
