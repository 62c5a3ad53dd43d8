"""The only writer to the terminal. Progress and notes go to stderr, results to stdout.

`rich` draws a progress bar on a terminal; `plain` writes whole flushed lines without escape codes, progress at most once every few seconds; `json`
writes one JSON object a line to stderr; `none` writes only errors. With `as_json`, a command's result is one JSON document on stdout and nothing else is.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO, cast

import orjson

from drift_cli.streams import PipeSafe, inert

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

EVERY_SECONDS = 2.0
"""How often a plain progress line may be written."""

PIPE_WIDTH = 200
"""Columns of a table that is not written to a terminal; longer cells are folded."""


class Mode(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    RICH = "rich"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


@dataclass(frozen=True)
class Table:
    """A table of a result: a title, column heads (a trailing `>` aligns right), rows of text, and notes that stand below it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """A picture in characters, with the escape codes of its own colours: names in it are names that `spec` has checked, no text of a model or a file."""

    text: str


@dataclass
class Display:
    """One command's output."""

    mode: Mode = Mode.AUTO
    as_json: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)

    def __post_init__(self) -> None:
        self.out, self.err = cast(TextIO, PipeSafe(self.out)), cast(TextIO, PipeSafe(self.err))
        if self.mode is Mode.AUTO:
            self.mode = Mode.RICH if self.err.isatty() else Mode.PLAIN

    def note(self, text: str, *, kind: str = "note") -> None:
        """One line of what is going on, for stderr."""
        if self.mode is Mode.JSON:
            self._line(self.err, orjson.dumps({"kind": kind, "text": text}).decode())
        elif self.mode is not Mode.NONE:
            self._line(self.err, inert(text))

    def error(self, text: str) -> None:
        """An error; shown in every mode."""
        if self.mode is Mode.JSON:
            self._line(self.err, orjson.dumps({"kind": "error", "text": text}).decode())
        else:
            self._line(self.err, f"drift: {inert(text)}")

    def result(self, document: Any, *shown: Table | Drawing | str) -> None:
        """A command's result: `document` as JSON on stdout with `as_json`, else the tables, drawings and lines of `shown`."""
        if self.as_json:
            self._line(self.out, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
            return
        for item in shown:
            if isinstance(item, Table):
                self._table(item)
            elif isinstance(item, Drawing):
                self._line(self.out, item.text)
            else:
                self._line(self.out, inert(item))

    def line(self, text: str) -> None:
        """One line of a result that comes in many, for stdout."""
        self._line(self.out, inert(text))

    @property
    def width(self) -> int:
        """Columns of a result that is wrapped: the terminal's, or COLUMNS, or 100 through a pipe."""
        return (
            int(os.environ["COLUMNS"])
            if os.environ.get("COLUMNS", "").isdigit()
            else self.console(self.out).width
            if self.out.isatty()
            else 100
        )

    @property
    def unread(self) -> bool:
        """Whether nobody reads results any more."""
        return cast(PipeSafe, self.out).lost

    def progress(self, total: int, done: int, unit: str = "turns") -> Progress:
        """A progress display over `total` units, `done` of them already."""
        return Progress(self, total, done, unit)

    def _line(self, stream: TextIO, text: str) -> None:
        self._write(stream, text + "\n")

    def _write(self, stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()

    def console(self, stream: TextIO) -> Console:
        """A stream as rich writes to it: no markup, nothing highlighted."""
        from rich.console import Console

        return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False)

    def _table(self, table: Table) -> None:
        """Title, rows and notes as text, without escape codes in a pipe; a table that is too wide goes on below in its other columns."""
        from rich.text import Text

        console = self.console(self.out)
        if not console.is_terminal:
            console.width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else PIPE_WIDTH
        with console.capture() as captured:
            console.print(Text(inert(table.title), style="bold"), soft_wrap=True)
            if table.rows:
                for columns in _parts(table, console.width):
                    console.print(_grid(table, columns))
        lines = captured.get().splitlines()
        lines += [f"  {inert(line)}" for line in table.notes]
        self._write(self.out, "\n".join(line.rstrip() for line in lines) + "\n\n")


_FOLDED = 16
"""Characters that a column of names keeps at least; numbers are never folded."""


def _least(table: Table, place: int) -> int:
    """Columns that a table's column needs: its longest number in whole; of names, `_FOLDED` characters."""
    cells = [table.heads[place].rstrip(">"), *(row[place] for row in table.rows)]
    words = max((len(word) for cell in cells for word in inert(cell).split()), default=1)
    return words if table.heads[place].endswith(">") else min(words, _FOLDED)


def _parts(table: Table, width: int) -> list[list[int]]:
    """The columns by place, in as many grids as it takes to fit the width; the first column stands in each."""
    least = [_least(table, place) + 2 for place in range(len(table.heads))]
    parts = [[0]]
    for place in range(1, len(least)):
        if len(parts[-1]) > 1 and sum(least[one] for one in parts[-1]) + least[place] > width:
            parts.append([0])
        parts[-1].append(place)
    return parts


def _grid(table: Table, columns: Sequence[int]) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    headed = any(table.heads)
    made = RichTable(box=box.SIMPLE_HEAD if headed else None, show_header=headed, pad_edge=headed)
    for place in columns:
        head, right = table.heads[place].rstrip(">"), table.heads[place].endswith(">")
        made.add_column(
            Text(head), justify="right" if right else "left", overflow="fold", min_width=_least(table, place) if right else None
        )
    for row in table.rows:
        made.add_row(*(Text(inert(row[place])) for place in columns))
    return made


class Progress:
    """Shows how far a run is. A context manager; `step` is called once per finished unit."""

    def __init__(self, display: Display, total: int, done: int, unit: str) -> None:
        self.display, self.total, self.done, self.unit = display, total, done, unit
        self._start_done = done
        self._started = self._shown = time.monotonic()
        self._shown_done = done
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self.display.mode is Mode.RICH:
            self._bar = self._make_bar()
            self._bar.start()
        else:
            self._show("")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown_done != self.done:
            self._show("")

    def step(self, what: str) -> None:
        """One more unit is done; `what` names it."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, what=inert(what))
        elif time.monotonic() - self._shown >= EVERY_SECONDS:
            self._show(what)

    def reach(self, done: int) -> None:
        """So many units are done by now, others' included."""
        if done > self.done:
            self.done = done - 1
            self.step("")

    def skip(self, units: int) -> None:
        """Units that will not be done after all count as dealt with."""
        self.done += units

    def grow(self, total: int) -> None:
        """There is more to do than was known: `total` units."""
        if total != self.total:
            self.total = total
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], total=total)

    def tick(self) -> None:
        """Called while one unit takes long: keeps plain progress alive although nothing has finished."""
        if self._bar is None and time.monotonic() - self._shown >= EVERY_SECONDS:
            self._show("")

    def _make_bar(self) -> Bar:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn(self.unit), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        console = self.display.console(self.display.err)
        bar = Bar(*columns, TextColumn("{task.fields[what]}", markup=False), console=console, transient=False)
        bar.add_task("", total=self.total, completed=self.done, what="")
        return bar

    def _show(self, what: str) -> None:
        self._shown, self._shown_done = time.monotonic(), self.done
        left = self._seconds_left()
        if self.display.mode is Mode.JSON:
            line = {"kind": "progress", "done": self.done, "total": self.total, "unit": self.unit, "what": what, "seconds_left": left}
            self.display._line(self.display.err, orjson.dumps(line).decode())
        elif self.display.mode is not Mode.NONE:
            rest = "" if left is None else f", about {duration(left)} left"
            self.display._line(self.display.err, f"{self.done}/{self.total} {self.unit}{rest}{'  ' + inert(what) if what else ''}")

    def _seconds_left(self) -> float | None:
        made = self.done - self._start_done
        if not made or self.done >= self.total:
            return None
        return (time.monotonic() - self._started) / made * (self.total - self.done)


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
