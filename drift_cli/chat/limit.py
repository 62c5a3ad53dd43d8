"""A time limit for code that came with a model: a chat template can loop for longer than anybody lives.

A thread cannot be ended from outside, so the one that is given up goes on in the background until the process ends; whoever waits is told at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from drift_cli.errors import DriftError

T = TypeVar("T")

SECONDS = 20.0
"""The slowest templates known take milliseconds for a conversation that fills the context."""


def within_limit(work: Callable[[], T]) -> T:
    """What `work` returns or raises. Raises `DriftError` where it takes longer than `SECONDS`."""
    made: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:  # noqa: BLE001 (raised again by whoever waits)
            failures.append(error)

    thread = threading.Thread(target=run, name="chat template", daemon=True)
    thread.start()
    thread.join(SECONDS)
    if failures:
        raise failures[0]
    if not made:
        raise DriftError(
            f"the model's chat template takes longer than {SECONDS:g} seconds for one conversation",
            mend="It loops, or nearly so: save the tokenizer with another template, or use --chat raw.",
        )
    return made[0]
