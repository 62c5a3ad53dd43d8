"""Signals as a question the engine asks once a token: has somebody asked us to stop?

SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 (what schedulers send before they take a machine back) ask for a stop; a second SIGINT ends the process at
once. Neither loses a committed turn.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from drift_cli.errors import EXIT_INTERRUPTED

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class Stop:
    """A context manager that catches the signals. Call it to ask whether to stop; `signal_name` says why."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """True once a signal has asked for a stop."""
        return self.signal_name is not None

    def __enter__(self) -> Stop:
        for name in _NAMES:
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            # os.write, not the display: a handler may interrupt the display in the middle of a line.
            os.write(2, b"\ndrift: stopped at once; committed turns are on disk\n")
            os._exit(EXIT_INTERRUPTED)
        self.signal_name = self.signal_name or signal.Signals(number).name
        if number == signal.SIGINT:
            self.signal_name = "SIGINT"
