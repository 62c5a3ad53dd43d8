"""Which of a run's axes is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drift_cli.analysis.missing import commands_for
from drift_cli.axis import elsewhere
from drift_cli.errors import StoreError, did_you_mean

if TYPE_CHECKING:
    from drift_cli.store.manifest import AxisEntry, Manifest


def choose_axis(manifest: Manifest, name: str | None, run_id: str) -> AxisEntry:
    """The run's axis of that name; for None its only one, at the layer that the run had it at first. `StoreError` names the choices and how to add one."""
    entries = {entry.name: entry for entry in (*manifest.axes, *manifest.measured)}
    add = f"drift measure {run_id} --axis FILE"
    if not entries:
        raise StoreError(
            f"run {run_id} has no axis, so there are no projections",
            mend=f"Its residual means are stored, and this projects them: {commands_for(manifest)}",
        )
    names = ", ".join(entries)
    if name is None:
        if len({entry.axis for entry in entries.values()}) > 1:
            raise StoreError(f"run {run_id} has {len(entries)} axes: {names}", mend=f"Say which, with --axis NAME (add another: {add})")
        return next(iter(entries.values()))
    if name not in entries:
        raise StoreError(f"run {run_id} has no axis {name!r}", mend=f"{did_you_mean(name, entries)}It has: {names}. Add another: {add}")
    return entries[name]


def unnamed(manifest: Manifest, axis: str) -> str | None:
    """Which of several layers of its axis a run was shown at where none was named, in words; None where it has but one axis at one layer."""
    others = [entry.name for entry in (*manifest.axes, *manifest.measured) if entry.name != axis]
    return f"on {axis}, the run's first; it was also measured on {', '.join(others)}: --axis NAME" if others else None


def caution(manifest: Manifest, entry: AxisEntry) -> str | None:
    """That an entry's axis is another model's, in a sentence; None where it is the run's own."""
    if entry.foreign is None:
        return None
    said = elsewhere(entry.axis, entry.foreign, manifest.spec.model)
    return f"{said[0].upper()}{said[1:]}: projections of different models on it are comparable only as far as their residual spaces are."
