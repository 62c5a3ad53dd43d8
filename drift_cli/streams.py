"""Streams that survive a closed pipe, and text that cannot steer a terminal."""

from __future__ import annotations

import errno
import io
import os
import unicodedata
from contextlib import suppress
from typing import Any, TextIO


def inert(text: str) -> str:
    """Text from models or files with everything that could steer a terminal made visible: control, bidi and other format characters."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} else f"\\u{ord(c):04x}" for c in text)


class PipeSafe:
    """A broken-pipe-safe stream: where nobody reads any more (`| head`, a terminal that was closed), what is written is thrown away.

    The work goes on then: its results are on disk. (A full disk behind `>` is another matter, and an error.)
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.lost = stream is None  # it was closed before we began (`>&-`)
        self._stream: TextIO = io.StringIO() if stream is None else stream

    def write(self, text: str) -> int:
        """Write `text`."""
        try:
            return len(text) if self.lost else self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            if not self.lost:
                self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Point the stream at nothing, so that Python's own flush at exit does not fail either. A terminal that is gone says EIO."""
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EIO:
            raise error
        self.lost = True
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
