"""Checks everything that is stored of a run, from the bytes up, and goes on after each problem.

Every line of every rollout (checksum, chain, order), residual means (length, checksums, projections equal to their dot products), token traces, the
manifest, and that nothing else lies in the run's folder. Nothing is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drift_cli.axis import Axis
from drift_cli.errors import StoreError
from drift_cli.files import is_temporary, is_there, release
from drift_cli.spec import Cell, Finish, Part, Rollout, spans
from drift_cli.store import residuals as residual_file
from drift_cli.store.axes import read_axis
from drift_cli.store.events import read_events
from drift_cli.store.files import open_inside, size_of
from drift_cli.store.line import TurnLine
from drift_cli.store.looks import read_looks
from drift_cli.store.manifest import AxisEntry, Manifest, read_manifest
from drift_cli.store.paths import RunPaths
from drift_cli.store.reader import Scan, scan_rollout
from drift_cli.store.swapped import read_swapped
from drift_cli.store.traces import read_traces

_TOLERANCE = 1e-5
"""Of the residual mean's norm: far above what the order of a sum in float64 or float32 changes, far below any other axis's projection."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written or planned. Not fatal: nothing that was committed is affected."""

    file: Path
    problem: str
    fatal: bool


@dataclass(frozen=True)
class _Direction:
    """A run's axis, and the row of its layer among the stored ones."""

    entry: AxisEntry
    row: int
    axis: Axis


def verify(paths: RunPaths, manifest: Manifest) -> list[Finding]:
    """Check a run against `manifest`, as it was read when the run was opened; the file is read again."""
    found = [*_manifest(paths)]
    directions = []
    # An imported run has projections, but neither residual means nor the axis they were made with.
    for entry in (*manifest.axes, *manifest.measured) if manifest.layers else ():
        try:
            direction = _direction(paths, entry, manifest.layers)
        except StoreError as error:
            found.append(Finding(paths.axis(entry.name), error.what, fatal=True))
        else:
            directions += [direction] if entry in manifest.axes else []
    for rollout in _planned(manifest):
        found += _rollout(paths, manifest, rollout, directions)
    return [*found, *_traces(paths, manifest), *_swapped(paths, manifest), *_folder(paths, manifest)]


def _traces(paths: RunPaths, manifest: Manifest) -> Iterator[Finding]:
    """Token traces that cannot be read. Not fatal: they can be measured again."""
    for rollout in _planned(manifest):
        for entry in (*manifest.axes, *manifest.measured):
            path = paths.traces(rollout, entry.name)
            if path.exists():
                try:
                    read_traces(paths, rollout, entry, [line.turn for line in scan_rollout(paths, rollout).lines])
                except StoreError as error:
                    yield Finding(path, _said(error, path), fatal=False)


def _swapped(paths: RunPaths, manifest: Manifest) -> Iterator[Finding]:
    """Replies read under another prompt that cannot be read back. Not fatal: they can be measured again."""
    for rollout in _planned(manifest) if paths.swapped_root.exists() else ():
        for prompt in manifest.conditions:
            path = paths.swapped(rollout, prompt)
            if path.exists():
                try:
                    read_swapped(paths, manifest, rollout, prompt, [line.turn for line in scan_rollout(paths, rollout).lines])
                except StoreError as error:
                    yield Finding(path, _said(error, path), fatal=False)


def _planned(manifest: Manifest) -> Iterator[Rollout]:
    for plan in manifest.cells:
        yield from (Rollout(plan.cell, sample) for sample in range(plan.samples))


def _manifest(paths: RunPaths) -> Iterator[Finding]:
    try:
        read_manifest(paths)
    except FileNotFoundError:
        yield Finding(paths.manifest, "missing", fatal=True)
    except StoreError as error:
        yield Finding(paths.manifest, _said(error, paths.manifest), fatal=True)


def _direction(paths: RunPaths, entry: AxisEntry, stored: tuple[int, ...]) -> _Direction:
    """An axis at the entry's layer, which is one of the `stored` ones. Raises `StoreError`."""
    axis = read_axis(paths, entry)
    if entry.layer not in stored:
        raise StoreError(f"axis {entry.name} is at layer {entry.layer}, whose residual means are not stored")
    return _Direction(entry, stored.index(entry.layer), axis)


def _rollout(paths: RunPaths, manifest: Manifest, rollout: Rollout, directions: Sequence[_Direction]) -> Iterator[Finding]:
    """What is wrong with one rollout's files."""
    path = paths.rollout(rollout)
    width = manifest.model.width if manifest.model is not None else 0
    try:
        scan = scan_rollout(paths, rollout, layers=len(manifest.layers), width=width)
    except StoreError as error:
        yield Finding(path, _said(error, path), fatal=True)
        return
    if scan.tail:
        yield Finding(path, f"{scan.tail} bytes of an unfinished line at byte {scan.size} do not count", fatal=False)
    total = manifest.transcripts[rollout.cell.transcript].total
    for problem in (
        *_plan_problems(scan, total, len(manifest.epochs)),
        *_segment_problems(scan, manifest),
        *_user_problems(scan, manifest, rollout),
    ):
        yield Finding(path, problem, fatal=True)
    yield from _residuals(paths, rollout, scan, directions)


def _plan_problems(scan: Scan, total: int, epochs: int) -> Iterator[str]:
    """Where a rollout's lines contradict the manifest."""
    done = len(scan.lines)
    if done > total:
        yield f"has {done} turns, but its transcript has {total}"
    if scan.end is not None and scan.end.finish is Finish.COMPLETE and done != total:
        yield f"ends as complete after {done} of {total} turns"
    if scan.end is not None and scan.end.turn > total:
        yield f"ends at turn {scan.end.turn}, but its transcript has {total}"
    for line in scan.lines:
        if epochs and line.epoch >= epochs:
            yield f"turn {line.turn.index} was made in epoch {line.epoch}, but the manifest has {epochs}"


def _segment_problems(scan: Scan, manifest: Manifest) -> Iterator[str]:
    """Where replies have segments that the run cannot have, or lack the residual mean of a part that has tokens."""
    for line in scan.lines:
        turn = line.turn
        if turn.segments and not manifest.segments:
            yield f"turn {turn.index} has segments, but the run was made with a chat format that has none"
        if turn.segments and manifest.layers:
            lacking = [part for part in Part if line.of(part) is None and (part is Part.ALL or spans(turn.segments, part))]
            yield from (f"turn {turn.index} has no residual mean of {part.words}" for part in lacking)


def _user_problems(scan: Scan, manifest: Manifest, rollout: Rollout) -> Iterator[str]:
    """Where lines are of another format than the run's, or have another user's text than the script."""
    script = manifest.transcripts[rollout.cell.transcript].users
    for turn in (line.turn for line in scan.lines):
        if (turn.user is not None) != (manifest.lines > 1):
            yield f"turn {turn.index} is a line of another format than the run's lines (format {manifest.lines})"
        elif turn.user is not None and script and turn.index <= len(script) and turn.user != script[turn.index - 1]:
            yield f"turn {turn.index} answers another user's text than the transcript's"


def _residuals(paths: RunPaths, rollout: Rollout, scan: Scan, directions: Sequence[_Direction]) -> Iterator[Finding]:
    """What is wrong with a rollout's residual means, and with projections that do not follow from them."""
    path, counts = paths.residuals(rollout), residual_file.committed_size(scan.lines)
    try:
        fd = open_inside(paths.root, path, os.O_RDONLY)
    except FileNotFoundError:
        if counts:
            yield Finding(path, "missing, though turns are committed whose residual means it holds", fatal=True)
        return
    except StoreError as error:
        yield Finding(path, error.what, fatal=True)
        return
    try:
        surplus = size_of(fd, path) - counts
        if surplus > 0:
            yield Finding(path, f"{surplus} bytes at byte {counts} belong to no committed turn and do not count", fatal=False)
        for line in scan.lines:
            yield from _turn(paths, rollout, fd, line, directions)
    finally:
        release(fd)


def _turn(paths: RunPaths, rollout: Rollout, fd: int, line: TurnLine, directions: Sequence[_Direction]) -> Iterator[Finding]:
    path, lines = paths.residuals(rollout), paths.rollout(rollout)
    found = {}
    for part, _ in line.blocks:
        try:
            found[part] = residual_file.unpack(fd, path, line, paths.run_id, part)
        except StoreError as error:
            yield Finding(path, _said(error, path), fatal=True)
    means = found.get(Part.ANSWER)
    if means is None:
        return
    for direction in directions:
        written = line.turn.projections.get(direction.entry.name)
        if written is None:
            yield Finding(lines, f"turn {line.turn.index} has no projection on axis {direction.entry.name}", fatal=True)
            continue
        mean = means[direction.row]
        if len(mean) != direction.axis.width:
            problem = f"width {direction.axis.width}, residual means have {len(mean)}"
            yield Finding(paths.axis(direction.entry.name), problem, fatal=True)
            continue
        projected = float(direction.axis.project(mean, direction.entry.layer))
        if not abs(projected - written) <= _TOLERANCE * float(np.linalg.norm(mean.astype(np.float64))):
            problem = f"turn {line.turn.index}: projection on axis {direction.entry.name} is {written}, its residual mean gives {projected}"
            yield Finding(lines, problem, fatal=True)


def _folder(paths: RunPaths, manifest: Manifest) -> Iterator[Finding]:
    """What lies in the run's folder and does not belong there, or is without what it belongs to."""
    planned = {plan.cell: plan.samples for plan in manifest.cells}
    for folder, folders, names in os.walk(paths.root, followlinks=False):
        for name in sorted((*folders, *names)):
            path = Path(folder, name)
            if path.is_symlink():
                yield Finding(path, "a symbolic link: nothing inside a run may be one, and drift does not follow it", fatal=True)
            elif name in names:
                yield from _file(paths, path, planned)
        folders.sort()
    yield from _looks(paths)
    for problem in _event_problems(paths):
        yield Finding(paths.events, problem, fatal=False)


def _looks(paths: RunPaths) -> Iterator[Finding]:
    try:
        read_looks(paths)
    except StoreError as error:
        yield Finding(paths.looks, _said(error, paths.looks), fatal=True)


def _file(paths: RunPaths, path: Path, planned: Mapping[Cell, int]) -> Iterator[Finding]:
    folder = path.relative_to(paths.root).parts[0]
    rollout = paths.rollout_of(path)
    if is_temporary(path.name):
        yield Finding(path, "left by a write that was interrupted: it may be deleted", fatal=False)
    elif rollout is not None:
        if rollout.sample >= planned.get(rollout.cell, 0):
            yield Finding(path, f"{rollout} is not in the run's plan", fatal=False)
        elif path == paths.residuals(rollout) and path.stat().st_size and not is_there(paths.rollout(rollout)):
            yield Finding(paths.rollout(rollout), "missing, though there are residual means of its turns", fatal=True)
    elif folder in (paths.workers_root.name, paths.claims_root.name):
        return  # news, no part of what makes a run: `workers.checks`
    elif folder == paths.quarantine.name:
        yield Finding(path, "set aside by a repair: no part of the run any more, it may be moved away", fatal=False)
    elif folder == paths.traces_root.name and path.suffix == ".traces":
        yield Finding(path, "token traces of an earlier version, which are not read: delete them and measure again", fatal=False)
    elif (
        path not in (paths.manifest, paths.manifest_lock, paths.events, paths.looks)
        and folder not in ("axes", "controls", "reference")
        and not (folder == "traces" and path.suffix == ".safetensors")
        and not (folder == "swapped" and path.suffix == ".means")
    ):
        yield Finding(path, "not part of the run", fatal=False)


def _event_problems(paths: RunPaths) -> list[str]:
    try:
        return read_events(paths)[1]
    except StoreError as error:
        return [error.what]


def _said(error: StoreError, path: Path) -> str:
    """An error's words without the file's name, which a finding has already."""
    return error.what.removeprefix(f"{path}: ")
