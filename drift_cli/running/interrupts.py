"""Signals as a question the engine asks once a token: has somebody asked us to stop?

SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 (what schedulers send before they take a machine back) ask for a stop. Whoever asks `stop()` ends in order:
the turn in progress is given up, everything before it is on disk. Where nobody asks (weights are being read, say), or not soon enough for a scheduler that
gives two seconds, the process leaves at once, as it does on a second SIGINT. None of these loses a committed turn. What was ignored when drift began
(SIGHUP under nohup) stays ignored.

A thread reads the signals from a pipe that Python's C handler writes to (`signal.set_wakeup_fd`). A Python handler would run only when the main thread is
between two bytecodes, and one long call (weights read from a slow disk, a compiler) can last longer than a scheduler waits.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import sys
import time
from threading import Thread
from types import TracebackType
from typing import Any

from drift_cli.errors import EXIT_INTERRUPTED

GRACE = 1.5
"""Seconds from a signal to leaving at once, unless somebody asks before: below the two seconds after which some schedulers kill."""

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SHOW_CURSOR = b"\x1b[?25h"
_CLOSE = 0
"""No signal has this number: the thread ends."""


class Stop:
    """A context manager that catches the signals. Call it to ask whether to stop; `signal_name` says why. For the main thread."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[int, Any] = {}
        self._asking = False
        self._deadline: float | None = None
        """When the process leaves at once (`time.monotonic`); None where no signal has come or somebody has asked since."""

    def __call__(self) -> bool:
        """True once a signal has asked for a stop."""
        self._asking = True
        if self.signal_name is None:
            return False
        self._deadline = None
        return True

    def __enter__(self) -> Stop:
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        self._pipe_before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        for number in (getattr(signal, name) for name in _NAMES):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda number, frame: None)
        self._thread = Thread(target=self._watch, name="drift-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._pipe_before)
        os.write(self._writes, bytes([_CLOSE]))
        self._thread.join()
        os.close(self._reads)
        os.close(self._writes)

    def _watch(self) -> None:
        while True:
            deadline = self._deadline
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._reads], [], [], left)[0]:
                if self._deadline is not None:
                    self._leave()
                continue
            for number in os.read(self._reads, 64):
                if number == _CLOSE:
                    return
                if number in self._before:  # others have handlers of their own
                    self._ask(number)

    def _ask(self, number: int) -> None:
        first, again = self.signal_name is None, number == signal.SIGINT and self.signal_name == "SIGINT"
        if first:
            self._deadline = time.monotonic() + GRACE  # before the name, whose being there makes `__call__` take it away
        if first or number == signal.SIGINT:
            self.signal_name = signal.Signals(number).name
        if again or not self._asking:
            self._leave()

    def _leave(self) -> None:
        """End the process here and now. os.write, not the display: the main thread may be in the middle of a line."""
        command = shlex.join(["drift", *sys.argv[1:]])
        text = f"\ndrift: stopped at once by {self.signal_name}; committed turns are on disk. Go on with: {command}\n"
        try:
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + text.encode(errors="replace"))
        finally:  # the terminal may be gone
            os._exit(EXIT_INTERRUPTED)
