"""A line that goes on with a run that exists: what the run has already, and the line does not ask to be otherwise, stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from drift_cli.running.existing import find_run
from drift_cli.running.experiment import Experiment, prepare, with_layer
from drift_cli.settings.settings import Settings
from drift_cli.spec import Transcript
from drift_cli.store.manifest import Manifest

if TYPE_CHECKING:
    from drift_cli.models.identity import Say
    from drift_cli.store.paths import Store
    from drift_cli.store.run import Run


def prepare_for(
    store: Store, settings: Settings, scripts: Sequence[Transcript] | None = None, say: Say | None = None
) -> tuple[Experiment, Run | None]:
    """`prepare`, and the run that it goes on with, if there is one.

    A run that has an axis keeps it, and its layer, unless another one is asked for: a line that adds samples need not name it again, and a run that was begun
    when its axis was used at another layer than the one chosen now goes on there.
    """
    settings = with_layer(settings)
    made, run = find_run(store, prepare(settings, scripts, say), settings)
    if run is None:
        return made, None
    kept = _kept(settings, made.manifest, run)
    if kept is None:
        return made, run
    changes, said = kept
    settings = settings.changed(f"run {run.paths.run_id}", **changes)
    again, run = find_run(store, prepare(settings, scripts, say), settings)
    return replace(again, notices=(*again.notices, said)), run


def _kept(settings: Settings, made: Manifest, run: Run) -> tuple[dict[str, Any], str] | None:
    """What a stored run has already where nothing else is asked for, as settings and in words: its axis, and the axis's layer."""
    if not run.manifest.axes:
        return None
    old, run_id = run.manifest.axes[0], run.paths.run_id
    changes: dict[str, Any] = {"layer": old.layer} if settings.layer is None else {}
    if not made.axes:
        changes |= {"axis": str(run.paths.axis(old.name)), "foreign_axis": settings.foreign_axis or old.foreign is not None}
        return changes, f"projecting on axis {old.name} at layer {old.layer}, as run {run_id} does already"
    new = made.axes[0]
    if not changes or (old.name, old.digest) != (new.name, new.digest) or old.layer == new.layer:
        return None
    return changes, f"run {run_id} has axis {old.name} at layer {old.layer} and keeps it (now it would be layer {new.layer})"
