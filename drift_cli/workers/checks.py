"""Checking and repairing a run with what workers keep beside it: their files, claims and hints, none of which is part of what makes a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from drift_cli.files import is_temporary
from drift_cli.spec import Cell
from drift_cli.store.paths import RunPaths
from drift_cli.store.repair import Repair
from drift_cli.store.run import Finding, Run
from drift_cli.workers.claims import forget_ended, read_holder
from drift_cli.workers.leases import read_worker


def verify(run: Run) -> list[Finding]:
    """`Run.verify`, and what is wrong with the files of workers. The latter is not fatal."""
    planned = {plan.cell: plan.samples for plan in run.manifest.cells}
    return [*run.verify(), *_of_workers(run.paths, planned)]


def repair(run: Run) -> tuple[list[Repair], list[str]]:
    """`Run.repair`; hints that say of a repaired rollout that it has ended are taken away."""
    made, problems = run.repair()
    for cell in {one.rollout.cell for one in made}:
        forget_ended(run.paths, cell)
    return made, problems


def _of_workers(paths: RunPaths, planned: Mapping[Cell, int]) -> Iterator[Finding]:
    for root in (paths.claims_root, paths.workers_root):
        for folder, folders, names in os.walk(root, followlinks=False):
            folders.sort()
            for path in (Path(folder, name) for name in sorted(names) if not is_temporary(name)):
                problem = None if path.is_symlink() else _problem(paths, path, planned)
                if problem is not None:
                    yield Finding(path, problem, fatal=False)


def _problem(paths: RunPaths, path: Path, planned: Mapping[Cell, int]) -> str | None:
    """What is wrong with a worker's file or with a claim."""
    worker, claim = paths.worker_of(path), paths.claim_of(path)
    if worker is not None:
        silent = path == paths.worker(worker) and read_worker(paths, worker) is None
        return "says nothing of a worker: it may be deleted" if silent else None
    if path in {paths.ended(cell) for cell in planned}:
        return None
    if claim is None or claim.sample >= planned.get(claim.cell, 0):
        return "not part of the run"
    if not read_holder(paths, claim):
        return "a claim that names no worker: it may be deleted, and keeps others away for a minute or two only"
    return None
