"""A run's events on the terminal: notes and a progress display."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from drift_cli.display import Display, Progress
from drift_cli.engine.contract import Incident
from drift_cli.running.events import Began, Event, GivenUp, Notice, RolloutEnded, Taken, TurnCommitted
from drift_cli.spec import Finish


class Shown:
    """Shows the events of one call of `run_rollouts`. A context manager."""

    def __init__(self, display: Display) -> None:
        self.display, self._stack = display, ExitStack()
        self._progress: Progress | None = None
        self._whole = True

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def ticking(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """`stop`, which is asked once a token, with a display that stays alive while nothing finishes."""

        def asked() -> bool:
            if self._progress is not None:
                self._progress.tick()
            return stop()

        return asked

    def tell(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Began):
            self._begin(event)
        elif isinstance(event, Incident):
            self.display.note(event.detail)
        elif isinstance(event, Notice):
            self.display.note(event.text)
        elif isinstance(event, GivenUp):
            self.display.note(f"{event.rollout} is given up: another process writes it or has claimed it")
        elif self._progress is not None:
            self._count(event, self._progress)

    def _begin(self, event: Began) -> None:
        self._whole = event.whole
        shown = self.display.progress(event.total, event.done) if event.whole else self.display.progress(0, 0, "turns taken on")
        self._progress = self._stack.enter_context(shown)

    def _count(self, event: Event, progress: Progress) -> None:
        """What changes the number of turns done, or to do."""
        if isinstance(event, TurnCommitted):
            progress.step(f"{event.rollout} turn {event.turn.index}")
        elif isinstance(event, RolloutEnded) and event.finish is not Finish.COMPLETE:
            self.display.note(f"{event.rollout} ends before turn {event.turn}: {event.why}")
            progress.skip(event.left)
        elif isinstance(event, Taken) and not self._whole:
            progress.grow(event.turns)
