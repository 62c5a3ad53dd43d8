"""Sets damage aside: what can no longer be trusted of a rollout moves into a file of its own under `quarantine/`, and what stands before it stays.

Nothing is deleted: bytes are copied, synced and named before they are cut off, so a repair that is killed is repeated by the next. A rollout that was cut
short is an unfinished one; going on with the run makes the turns again, the same ones. Manifest and axes have no part that could be set aside: they are
restored from a copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from drift_cli.errors import StoreError
from drift_cli.files import atomic_write_parts, is_there
from drift_cli.spec import Rollout
from drift_cli.store import residuals as residual_file
from drift_cli.store.files import create_inside, digest_from, open_inside, parts_from, size_of, sync_folders
from drift_cli.store.growing import GrowingFile
from drift_cli.store.line import TurnLine, first_link
from drift_cli.store.lock import lock_rollout, unlock_rollout
from drift_cli.store.paths import RunPaths
from drift_cli.store.reader import raw_lines, scan_prefix


@dataclass(frozen=True)
class Repair:
    """What was set aside of one rollout."""

    rollout: Rollout
    problem: str
    """What was wrong, with file, line and byte."""
    kept: int
    """Turns before it: they stay."""
    lines: int
    """Lines set aside."""
    files: tuple[Path, ...]
    """Where the bytes are now."""

    def __str__(self) -> str:
        after = "nothing" if not self.kept else "turn 1" if self.kept == 1 else f"turns 1 to {self.kept}"
        lost = "no line" if not self.lines else "1 line" if self.lines == 1 else f"{self.lines} lines"
        return f"{self.rollout}: {after} kept; {lost} and all residual means behind set aside in {', '.join(map(str, self.files))}"


def repair_rollout(paths: RunPaths, rollout: Rollout, *, layers: int, width: int) -> Repair | None:
    """Set aside what is damaged of a rollout; None where nothing is.

    Args:
        paths: the run's.
        rollout: which one.
        layers: the number of residual layers its lines must have, 0 for any.
        width: their width, 0 for any.

    Raises:
        InUse: another process writes it.
        StoreError: it cannot be read, or the damaged part cannot be written elsewhere; nothing was cut off then.
    """
    missing = not is_there(paths.rollout(rollout))
    with _locked(paths, rollout) as lines, _existing(paths, paths.residuals(rollout)) as means:
        if lines is None:
            return None
        found = _damage(paths, rollout, lines, means, (layers, width))
        if found is None and not (missing and means is not None and size_of(means.fd, means.path)):
            return None
        good, cut, counts, problem = found or (0, 0, 0, f"{lines.path}: missing, though there are residual means of its turns")
        number = sum(1 for _ in raw_lines(lines.fd, lines.path)) - good
        # Means first: killed in between, lines speak of means that are not there, and the next repair sets those aside too.
        files = [
            None if means is None else _set_aside(paths, rollout, means, counts, "f32"),
            _set_aside(paths, rollout, lines, cut, "jsonl"),
        ]
        return Repair(rollout, problem, good, number, tuple(file for file in files if file is not None))


def _damage(
    paths: RunPaths, rollout: Rollout, lines: GrowingFile, means: GrowingFile | None, shape: tuple[int, int]
) -> tuple[int, int, int, str] | None:
    """Turns before the first damage, bytes of their lines and of their means, and what is wrong there; None where nothing is."""
    layers, width = shape
    scan, damage = scan_prefix(lines.fd, lines.path, first_link(paths.run_id, rollout), layers=layers, width=width)
    good, problem = _readable(means, paths.residuals(rollout), scan.lines, paths.run_id)
    if problem is None and damage is None:
        return None
    cut = scan.size if good == len(scan.lines) else _start(lines, good)
    return good, cut, residual_file.committed_size(scan.lines[:good]), problem or str(damage and damage.what)


@contextmanager
def _locked(paths: RunPaths, rollout: Rollout) -> Iterator[GrowingFile | None]:
    """A rollout's lines, this process being the one writer. They are made where only residual means are there; None where neither are."""
    path, note = paths.rollout(rollout), paths.owner(rollout)
    with _existing(paths, paths.residuals(rollout)) as means:
        create = os.O_CREAT if means is not None and size_of(means.fd, means.path) else 0
    try:
        file = GrowingFile(open_inside(paths.root, path, os.O_RDWR | os.O_APPEND | create), path, 0)
    except FileNotFoundError:
        yield None
        return
    try:
        lock_rollout(file.fd, path, paths.root, note)
        try:
            yield file
        finally:
            unlock_rollout(file.fd, note)
    finally:
        file.close()


@contextmanager
def _existing(paths: RunPaths, path: Path) -> Iterator[GrowingFile | None]:
    """An existing file, open for cutting; None where there is none."""
    try:
        file = GrowingFile(open_inside(paths.root, path, os.O_RDWR | os.O_APPEND), path, 0)
    except FileNotFoundError:
        yield None
        return
    try:
        yield file
    finally:
        file.close()


def _readable(means: GrowingFile | None, path: Path, lines: Sequence[TurnLine], run_id: str) -> tuple[int, str | None]:
    """How many turns, from the first on, have whole residual means (or none to have), and what is wrong with the next."""
    for place, line in enumerate(lines):
        if not line.blocks:
            continue
        if means is None:
            return place, f"{path} is missing, though turns are committed whose residual means it holds"
        try:
            residual_file.check_all(means.fd, path, [line], run_id)
        except StoreError as error:
            return place, error.what
    return len(lines), None


def _start(lines: GrowingFile, number: int) -> int:
    """The byte at which the line behind `number` lines begins."""
    return sum(map(len, islice(raw_lines(lines.fd, lines.path), number)))


def _set_aside(paths: RunPaths, rollout: Rollout, file: GrowingFile, offset: int, suffix: str) -> Path | None:
    """Move a file's bytes from `offset` on into quarantine; where they are then, None where there are none."""
    if size_of(file.fd, file.path) <= offset:
        return None
    target = paths.quarantined(rollout, offset, digest_from(file.fd, file.path, offset), suffix)
    create_inside(paths.root, target.parent)
    atomic_write_parts(target, parts_from(file.fd, file.path, offset))
    sync_folders(paths.root, target.parent)
    file.cut(offset)
    file.sync()
    return target
