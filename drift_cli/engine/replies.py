"""What the host knows of the replies that rows are in the middle of: read from logs, which arrive behind the steps that write them.

Where kernels run ahead, step n + 1 is queued before the log of step n is read, so that the device never waits for the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drift_cli.engine.contract import not_finite
from drift_cli.engine.device import Copy
from drift_cli.engine.plan import Draw
from drift_cli.engine.steps import ACTIVE, BAD, COUNT, IDS


@dataclass(frozen=True)
class _Log:
    """On its way to the host: what rows had said after step `number`."""

    number: int
    copy: Copy


@dataclass
class _Reply:
    """One that has begun."""

    draw: Draw
    since: int
    """Steps that were queued before it began: what earlier logs say is of another reply."""
    count: int = 1
    """Ids of it, as far as is known."""
    ids: list[int] = field(default_factory=list)
    """Those that somebody asked for."""


@dataclass
class Replies:
    """Of all rows. `ahead` is the number of steps that may be queued and not looked at."""

    ahead: int
    queued: int = 0
    """Steps queued so far."""
    _begun: dict[int, _Reply] = field(default_factory=dict)
    _logs: deque[_Log] = field(default_factory=deque)
    _seen: tuple[int, NDArray[np.int32]] = (-1, np.zeros((0, 0), dtype=np.int32))
    """The number of the newest step whose log was read, and the log."""

    def begin(self, row: int, draw: Draw) -> None:
        """A row begins a reply; its first token is drawn."""
        self._begun[row] = _Reply(draw, self.queued)

    def forget(self, row: int) -> None:
        """A row's reply is of no more interest."""
        self._begun.pop(row, None)

    def stepped(self, row: int) -> bool:
        """Whether a step was queued since the row began a reply that it is still in."""
        return row in self._begun and self._begun[row].since < self.queued

    def reach(self) -> Iterator[tuple[int, int]]:
        """Of every row that has begun: the position behind the last token that it may have after the next step."""
        for row, it in self._begun.items():
            # Each step that nobody has looked at yet may have moved the row on by a token.
            behind = self.queued - max(self._seen[0], it.since) + 2 * self.ahead
            yield row, it.draw.place + min(it.count + behind, it.draw.limit)

    def queue(self, log: Copy) -> None:
        """A step was queued, and a copy of its log behind it."""
        self.queued += 1
        self._logs.append(_Log(self.queued, log))

    def ended(self) -> list[int]:
        """Rows whose reply has ended, as far as is known. Reads the logs of all steps but `ahead`, and waits for them if need be.

        Raises:
            DriftError: a row's logits were not finite.
        """
        while len(self._logs) > self.ahead:
            log = self._logs.popleft()
            self._seen = log.number, log.copy.numpy()
        known = [row for row in self._begun if self._known(row)]
        for row in known:
            it = self._begun[row]
            it.count = int(self._seen[1][row, COUNT])
            if self._seen[1][row, BAD]:
                raise not_finite(it.draw.rollout, it.draw.turn)
        return [row for row in known if not self._seen[1][row, ACTIVE]]

    def ids(self, row: int) -> list[int]:
        """The ids of a row's reply so far, as far as is known."""
        it = self._begun[row]
        if self._known(row):
            it.ids.extend(self._seen[1][row, IDS + len(it.ids) : IDS + it.count].tolist())
        return it.ids

    def _known(self, row: int) -> bool:
        return self._seen[0] > self._begun[row].since
