"""The one writer of a rollout's file: locks it, recovers it, appends turns.

A turn counts once its line and newline are on disk: its residual means are written and synced before the line. What a killed process left half done is cut
off when the next one opens the file. Two descriptors are held open per log.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from drift_cli.errors import StoreError, mend_damage
from drift_cli.files import release
from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store import residuals
from drift_cli.store.decode import Malformed
from drift_cli.store.files import create_inside, open_inside, size_of, sync_folders
from drift_cli.store.growing import GrowingFile
from drift_cli.store.line import End, EndLine, Line, TurnLine, encode, first_link, link, plain
from drift_cli.store.lock import InUse, lock_rollout, unlock_rollout
from drift_cli.store.paths import RunPaths
from drift_cli.store.reader import Damaged, RolloutRecord, Scan, read_residual_layer, read_rollout, scan_lines
from drift_cli.store.tails import tail_state

__all__ = ["Damaged", "End", "InUse", "RolloutLog", "RolloutRecord", "read_residual_layer", "read_rollout", "tail_state"]

_OPEN = os.O_RDWR | os.O_APPEND | os.O_CREAT


class RolloutLog:
    """A rollout open for writing. Use `open`, as a context manager or with `close`. Threads may share one; forked processes may not."""

    record: RolloutRecord
    """What was committed when it was opened."""

    def __init__(
        self,
        paths: RunPaths,
        rollout: Rollout,
        lines: GrowingFile,
        *,
        epoch: int,
        layers: int,
        width: int,
        segments: bool = False,
        format: int = 1,
    ) -> None:
        self._paths, self._rollout, self._epoch, self._layers, self._width = paths, rollout, epoch, layers, width
        self._segments, self._format = segments, format
        self._lines = lines
        self._residuals: GrowingFile | None = None
        self._mutex = threading.Lock()
        self._prev = first_link(paths.run_id, rollout)
        self._done = 0
        self._end: End | None = None

    @classmethod
    def open(
        cls, paths: RunPaths, rollout: Rollout, *, epoch: int, layers: int, width: int, segments: bool = False, format: int = 1
    ) -> RolloutLog:
        """Lock a rollout's file, made if need be, and bring it to its last whole line.

        Args:
            paths: the run's.
            rollout: which one.
            epoch: index of the versions that the turns to come are made with.
            layers: the number of residual layers stored, 0 where none are.
            width: their width, 0 where it is not known.
            segments: whether replies may have segments.
            format: of its lines, see `line`: from 2 on they hold the user's text.

        Raises:
            InUse: another process writes it.
            StoreError: it is damaged, or cannot be opened.
        """
        path = paths.rollout(rollout)
        create_inside(paths.root, path.parent)
        lines = GrowingFile(_open_lines(paths, rollout), path, 0)
        try:
            notice = lock_rollout(lines.fd, path, paths.root, paths.owner(rollout))
        except BaseException:
            lines.close()
            raise
        log = cls(paths, rollout, lines, epoch=epoch, layers=layers, width=width, segments=segments, format=format)
        try:
            log._recover(() if notice is None else (notice,))
        except BaseException:
            log.close()
            raise
        return log

    def append(self, turn: Turn) -> None:
        """Commit the next turn: when this returns, it survives a power cut.

        Raises:
            StoreError: the turn is not what can be stored here (nothing is written), the file cannot be written (the turn is not committed), or
                something went wrong earlier after which nothing more may be written.
        """
        with self._mutex:
            self._check_next(turn.index)
            place = f"{self._rollout} turn {turn.index}"
            try:
                content, data = self._checked(turn)
                line = encode(content, self._prev)
            except (TypeError, ValueError) as error:
                raise StoreError(f"{place} cannot be stored: {error}", mend="Nothing of it was written.") from error
            self._lines.check()
            self._commit(line, data)
            self._done += 1

    def end(self, end: End) -> None:
        """Commit the rollout's end. Raises as `append`."""
        with self._mutex:
            self._check_next(self._done + 1)
            line = _encode_end(end, self._done, self._epoch, self._prev, self._rollout)
            self._commit(line, b"")
            self._end = end

    def close(self) -> None:
        """Give the rollout up for others. What was committed stays; calling it again does nothing."""
        with self._mutex:
            if self._lines.fd >= 0:  # a forked child has none
                unlock_rollout(self._lines.fd, self._paths.owner(self._rollout))
            self._lines.close()
            if self._residuals is not None:
                self._residuals.close()

    def __enter__(self) -> RolloutLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_next(self, index: int) -> None:
        if self._end is not None:
            raise StoreError(f"{self._rollout} has ended ({self._end.finish}, turn {self._end.turn}): nothing can follow")
        if index != self._done + 1:
            raise StoreError(f"{self._rollout} has {self._done} turns: turn {index} cannot be the next")

    def _checked(self, turn: Turn) -> tuple[TurnLine, bytes]:
        """What a turn's line says, and the bytes of its residual means. Raises `Malformed`."""
        clean = plain(turn)
        bad = [name for name, value in clean.projections.items() if value - value != 0.0]  # infinite or NaN
        if bad:
            raise Malformed(f"its projection on {bad[0]} is {clean.projections[bad[0]]}")
        if (turn.user is not None) != (self._format > 1):
            raise Malformed(
                f"the run's lines are of format {self._format}, which {'needs' if turn.user is None else 'does not hold'} the user's text"
            )
        if turn.segments and not self._segments:
            raise Malformed("its reply has segments, and the run was made with a chat format that has none")
        if turn.residual is None and not turn.means:
            return TurnLine(clean, None, self._epoch), b""
        if self._residuals is None:
            raise Malformed("it has residual means, but the run stores no layers")
        data, stored, means = residuals.pack_all(turn, self._residuals.size, self._layers, self._width)
        content = TurnLine(clean, stored, self._epoch, means)
        self._width = content.blocks[0][1].shape[1]
        return content, data

    def _commit(self, line: bytes, data: bytes) -> None:
        """Residual means first, then the line that speaks of them."""
        means = self._residuals
        before = (self._lines.size, 0 if means is None else means.size)
        if means is not None and data:
            means.append(data)
        try:
            if means is not None:
                means.check()
            self._lines.append(line + b"\n")
        except StoreError:
            if means is not None and data:
                self._take_back(means, *before)
            raise
        self._prev = link(line)

    def _take_back(self, means: GrowingFile, lines_size: int, means_size: int) -> None:
        """Cut off residual means whose line was not committed, but only where that line is known not to be there: it would be damage without them."""
        with suppress(StoreError):
            if size_of(self._lines.fd, self._lines.path) == lines_size:
                means.cut(means_size)
                return
        self._lines.poison("an earlier write to it failed half-way")

    def _recover(self, notices: tuple[str, ...]) -> None:
        """Read what is there, cut off what does not count, and make durable what does."""
        path = self._paths.rollout(self._rollout)
        scan = scan_lines(self._lines.fd, path, self._prev, layers=self._layers, width=self._width)
        self._lines.size = scan.size + scan.tail
        self._lines.check()
        surplus = self._open_residuals(scan)
        if scan.tail:
            self._lines.cut(scan.size)
        # A killed process may have written a whole line without syncing it: from here on it counts, so it must be on disk.
        self._lines.sync()
        if not scan.size or (self._residuals is not None and not self._residuals.size):
            # Nobody has committed anything to a file yet, so nobody may have made its name durable either.
            sync_folders(self._paths.root, path.parent)
        self._prev, self._done, self._end = scan.prev, len(scan.lines), scan.end
        record = scan.record(self._rollout, path)
        self.record = RolloutRecord(record.rollout, record.turns, record.end, record.epochs, (*notices, *record.notices, *surplus))

    def _open_residuals(self, scan: Scan) -> tuple[str, ...]:
        """Open the residual means, check those that lines speak of, and cut off the rest. Returns notices."""
        if not self._layers:
            return ()
        path = self._paths.residuals(self._rollout)
        counts = residuals.committed_size(scan.lines)
        file = self._residuals = GrowingFile(_open_or_create(self._paths.root, path, exists=counts > 0), path, counts)
        residuals.check_all(file.fd, path, scan.lines, self._paths.run_id)
        surplus = size_of(file.fd, path) - counts
        if surplus:
            file.cut(counts)
        file.sync()
        return (f"{path}: {surplus} bytes of a turn that was not committed were cut off",) if surplus else ()


def _open_lines(paths: RunPaths, rollout: Rollout) -> int:
    """Descriptor of a rollout's lines, made if need be. They are made before any residual means are written: means without lines are damage."""
    path, means = paths.rollout(rollout), paths.residuals(rollout)
    with suppress(FileNotFoundError):
        return open_inside(paths.root, path, _OPEN & ~os.O_CREAT)
    with suppress(FileNotFoundError):
        fd = open_inside(paths.root, means, os.O_RDONLY)
        try:
            size = size_of(fd, means)
        finally:
            release(fd)
        if size:
            raise StoreError(f"{path} is missing, though there are residual means of its turns", mend=mend_damage(paths.run_id))
    return open_inside(paths.root, path, _OPEN)


def _open_or_create(root: Path, path: Path, *, exists: bool) -> int:
    """Descriptor of a file to append to; a missing one is made, unless it must exist. Raises `StoreError`."""
    try:
        return open_inside(root, path, _OPEN & ~os.O_CREAT if exists else _OPEN)
    except FileNotFoundError:
        raise StoreError(
            f"{path} is missing, though turns are committed whose residual means it holds", mend=mend_damage(root.name)
        ) from None


def _encode_end(end: End, done: int, epoch: int, prev: str, rollout: Rollout) -> bytes:
    """The line of an end that can follow `done` turns. Raises `StoreError`."""
    content: Line = EndLine(end, epoch)
    try:
        if end.turn != (done if end.finish is Finish.COMPLETE else done + 1):
            raise Malformed(f"turn {end.turn} is not where a rollout of {done} turns can end as {end.finish}")
        return encode(content, prev)
    except Malformed as error:
        raise StoreError(f"{rollout} cannot be ended: {error}") from error
