"""What a scheduler and slots say to each other about a row. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from drift_cli.probe import Means
from drift_cli.spec import Rollout


class NoRoom(Exception):
    """The slots' memory is used up: the row asked for cannot grow now."""


@dataclass(frozen=True)
class Draw:
    """How the replies of a rollout's turn are drawn."""

    rollout: Rollout
    turn: int
    key: int
    """The rollout's generator key."""
    place: int
    """Length of the prompt: the position of the reply's first token."""
    limit: int
    """Tokens at which the reply ends."""
    forced: bool
    """True where nothing else ends it."""


class Residual(Protocol):
    """Residual means on their way from the device."""

    def ready(self) -> bool:
        """Whether `value` would not wait."""

    def value(self) -> Means:
        """A (layers, width) float32 mean for each part of the reply that has tokens."""
