"""What happens while a run is made: what `runner.run_events` yields. Frozen; nothing here knows a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drift_cli.engine.contract import Incident
from drift_cli.errors import StoreError
from drift_cli.spec import Finish, Rollout, Turn


@dataclass(frozen=True)
class Began:
    """Work begins. How many turns there are, and how many of them are on disk: of the whole run, or, for one of many workers (`whole` is false), of what it
    has taken so far, which is nothing yet.
    """

    total: int
    done: int
    whole: bool = True


@dataclass(frozen=True)
class Taken:
    """Rollouts were taken on: `turns` were left of all that were taken so far."""

    turns: int


@dataclass(frozen=True)
class TurnCommitted:
    """A turn is on disk."""

    rollout: Rollout
    turn: Turn
    """As it was committed, with its residual means."""
    user: str
    """The user's text, without the condition's prompt."""


@dataclass(frozen=True)
class RolloutEnded:
    """A rollout has ended, and its file says so: every turn is answered (`COMPLETE`), or `turn` could not be made (`CONTEXT`, `TEMPLATE`)."""

    rollout: Rollout
    finish: Finish
    turn: int
    left: int
    """Turns that will not be made."""
    why: str | None = None
    """Where it ended early, a sentence."""


@dataclass(frozen=True)
class GivenUp:
    """A rollout is left to another process, which writes it or has claimed it."""

    rollout: Rollout


@dataclass(frozen=True)
class Notice:
    """Something that a person should know, in a sentence."""

    text: str


@dataclass(frozen=True)
class Outcome:
    """What one call of `run_rollouts` did."""

    turns: int
    seconds: float
    interrupted: bool
    others: Mapping[str, int] = field(default_factory=dict)
    """Who holds what is left: workers' ids ("" for a process without a claim), and how many rollouts."""
    problems: tuple[StoreError, ...] = ()
    """Damaged rollouts that were left alone."""


@dataclass(frozen=True)
class Finished:
    """The last event."""

    outcome: Outcome


Event = Began | Taken | TurnCommitted | RolloutEnded | GivenUp | Incident | Notice | Finished
