"""Signals as a question the engine asks once a token: has somebody asked us to stop?

SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 (what schedulers send before they take a machine back) ask for a stop. Whoever asks `stop()` ends in order:
the turn in progress is given up, everything before it is on disk. Where nobody asks (weights are being read, say), or not soon enough for a scheduler that
gives two seconds, the process leaves at once, as it does on a second SIGINT. None of these loses a committed turn. What was ignored when drift began
(SIGHUP under nohup) stays ignored.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from drift_cli.errors import EXIT_INTERRUPTED

GRACE = 1.5
"""Seconds from a signal to leaving at once, unless somebody asks before: below the two seconds after which some schedulers kill."""

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SHOW_CURSOR = b"\x1b[?25h"


class Stop:
    """A context manager that catches the signals. Call it to ask whether to stop; `signal_name` says why."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[int, Any] = {}
        self._asking = False

    def __call__(self) -> bool:
        """True once a signal has asked for a stop."""
        self._asking = True
        if self.signal_name is None:
            return False
        signal.setitimer(signal.ITIMER_REAL, 0)
        return True

    def __enter__(self) -> Stop:
        for number in (getattr(signal, name) for name in _NAMES):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda number, frame: self._leave())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and self.signal_name == "SIGINT"
        first, self.signal_name = self.signal_name is None, self.signal_name or signal.Signals(number).name
        if number == signal.SIGINT:
            self.signal_name = "SIGINT"
        if again or not self._asking:
            self._leave()
        if first:
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    def _leave(self) -> None:
        """End the process here and now. os.write, not the display: a handler may interrupt the display in the middle of a line."""
        command = shlex.join(["drift", *sys.argv[1:]])
        text = f"\ndrift: stopped at once by {self.signal_name}; committed turns are on disk. Go on with: {command}\n"
        try:
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + text.encode(errors="replace"))
        finally:  # the terminal may be gone
            os._exit(EXIT_INTERRUPTED)
