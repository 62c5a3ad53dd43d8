"""A step of the slots engine as data: what the scheduler asks for (`Plan`), and what came of it (`Done`, `DoesNotFit`). No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from drift_cli.engine.pooling import Means
from drift_cli.spec import Rollout, Segment


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


@dataclass(frozen=True)
class Chunk:
    """Tokens to encode behind a row's first `start` tokens. See `slots.Slots.encode`."""

    ids: Sequence[int]
    start: int
    counted: int = 0
    """How many of its first tokens are a reply's, whose residual means are wanted."""
    hold: int | None = None
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class Encode:
    """Chunks of one row, one behind the other, and the draw of the reply that follows them, if one does."""

    row: int
    chunks: tuple[Chunk, ...]
    draw: Draw | None


@dataclass(frozen=True)
class Step:
    """One token for every row in the middle of a reply."""

    rows: tuple[int, ...]
    watched: tuple[int, ...]
    """Rows whose ids are wanted after every token: a stop string may end them."""


@dataclass(frozen=True)
class Free:
    """A row is forgotten."""

    row: int


Plan = Encode | Step | Free


class Residual(Protocol):
    """Residual means on their way from the device."""

    def ready(self) -> bool:
        """Whether `value` would not wait."""

    def value(self) -> Means:
        """A (layers, width) float32 mean for each part of the reply that has tokens."""


@dataclass(frozen=True)
class Done:
    """A plan was carried out."""

    residual: Residual | None = None
    """Of an `Encode`: the means of the chunk that has counted tokens, of the last one where there are several."""
    ended: Sequence[int] = ()
    """Of a `Step`: rows whose reply has ended, as far as is known."""
    said: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """The reply's ids so far, of rows that ended or are watched."""


@dataclass(frozen=True)
class DoesNotFit:
    """The slots' memory is used up: nothing has moved in a `Step`; of an `Encode`, its row is in no state to go on from."""

    said: Mapping[int, int] = field(default_factory=dict)
    """Of a `Step`: how many ids each row's reply has so far."""


@dataclass(frozen=True)
class Limits:
    """What the model and the run allow."""

    max_new_tokens: int
    context: int
    end_ids: frozenset[int]
    rewound: Callable[[int, int], int]
    """See `slots.Layout.rewound`."""
    bounded: bool = False
    """The network has no positions beyond the context."""
