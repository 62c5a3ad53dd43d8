"""A run: the door to everything that is stored of it.

Status is always derived from the rollouts' files, never from a flag. The manifest changes only under the run's lock: read, merge, replace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from drift_cli.errors import StoreError, UsageError
from drift_cli.files import atomic_write, create_folder
from drift_cli.spec import Finish, Rollout
from drift_cli.store.epoch import Epoch
from drift_cli.store.events import append_event, read_events
from drift_cli.store.line import End
from drift_cli.store.lock import hold
from drift_cli.store.log import RolloutLog
from drift_cli.store.manifest import Manifest, Setting, read_manifest
from drift_cli.store.merge import merge
from drift_cli.store.paths import RunPaths, Store
from drift_cli.store.reader import RolloutRecord, read_rollout
from drift_cli.store.repair import Repair, repair_rollout
from drift_cli.store.tails import cell_states
from drift_cli.store.verify import Finding, verify

__all__ = ["Finding", "Repair", "RolloutState", "Run"]


@dataclass(frozen=True)
class RolloutState:
    """How far a planned rollout is."""

    rollout: Rollout
    done: int
    """Committed turns."""
    total: int
    """Its user turns."""
    end: End | None

    @property
    def complete(self) -> bool:
        """Every user turn is answered, and the file says so."""
        return self.end is not None and self.end.finish is Finish.COMPLETE

    @property
    def ended(self) -> bool:
        """Nothing is left to do: complete, out of context, or without a prompt from the chat template."""
        return self.end is not None


@dataclass
class Run:
    """A run in a store. `manifest` is as this process last read or wrote it."""

    paths: RunPaths
    manifest: Manifest
    at: int | None = None
    """Index of the epoch that this process began."""

    @classmethod
    def open(cls, store: Store, run_id: str) -> Run:
        """The run with this id, or the only one whose id begins so. Raises `UsageError` where there is none or several, `StoreError` if damaged."""
        known = store.run_ids()
        found = [run_id] if run_id in known else sorted(name for name in known if name.startswith(run_id))
        if not found:
            raise UsageError(f"there is no run {run_id!r} in {store.root}", mend="`drift runs ls` lists the runs.")
        if len(found) > 1:
            raise UsageError(f"{run_id!r} is the beginning of {len(found)} runs: {', '.join(found)}", mend="Give more of the id.")
        paths = store.run(found[0])
        return cls(paths, read_manifest(paths))

    @classmethod
    def newest(cls, store: Store) -> Run:
        """The run whose manifest was written last. Raises `StoreError` where there is none."""
        known = store.run_ids()
        if not known:
            raise StoreError(f"there is no run in {store.root}", mend="Make one: drift generate")
        return cls.open(store, known[0])

    @classmethod
    def create(cls, store: Store, manifest: Manifest) -> Run:
        """Make the run that the manifest names, or merge the manifest into it. Raises `StoreError` where they contradict each other."""
        paths = store.run(manifest.spec.id)
        create_folder(paths.root)
        return cls(paths, _replace_manifest(paths, manifest))

    def update(self, manifest: Manifest) -> None:
        """Merge a manifest that was made from this run's into the one on disk. Raises `StoreError` where they contradict each other."""
        known = self.manifest.epochs
        # Another process may have added epochs meanwhile: only what is new here is added.
        added = manifest.epochs[len(known) :] if manifest.epochs[: len(known)] == known else manifest.epochs
        self.manifest = _replace_manifest(self.paths, replace(manifest, epochs=added))

    def place(self, **settings: Setting) -> None:
        """Record anew where something is that has moved: settings that are no part of what the run is. Raises `StoreError`."""
        with hold(self.paths.root, self.paths.manifest_lock):
            stored = read_manifest(self.paths)
            self.manifest = replace(stored, settings={**stored.settings, **settings})
            atomic_write(self.paths.manifest, self.manifest.to_json())

    def begin(self, epoch: Epoch) -> None:
        """Make what is written from now on part of `epoch`, recorded in the manifest unless it is known. Raises as `update`."""
        if epoch not in self.manifest.epochs:
            self.update(replace(self.manifest, epochs=(epoch,)))
        self.at = self.manifest.epochs.index(epoch)

    def epoch(self) -> int:
        """Index of the epoch that was begun, else of the last one; 0 where none was recorded."""
        return max(0, len(self.manifest.epochs) - 1) if self.at is None else self.at

    def states(self) -> list[RolloutState]:
        """Every planned rollout, cells in the manifest's order, samples ascending. Reads only the ends of files; `StoreError` if one is damaged."""
        found = []
        for plan in self.manifest.cells:
            total = self.manifest.transcripts[plan.cell.transcript].total
            for sample, (done, end) in enumerate(cell_states(self.paths, plan.cell, plan.samples)):
                found.append(RolloutState(Rollout(plan.cell, sample), done, total, end))
        return found

    def record(self, rollout: Rollout, residuals: bool = False) -> RolloutRecord:
        """A rollout, every line checked, with its residual means if asked for. Raises `StoreError` where it is damaged."""
        return read_rollout(self.paths, rollout, layers=len(self.manifest.layers), width=self._width, residuals=residuals)

    def writer(self, rollout: Rollout) -> RolloutLog:
        """The one writer of a planned rollout. Raises `InUse` where another process has it, `StoreError` where it is damaged or not planned."""
        samples = {plan.cell: plan.samples for plan in self.manifest.cells}.get(rollout.cell, 0)
        if rollout.sample >= samples:
            raise StoreError(
                f"{rollout} is not planned in run {self.paths.run_id}", mend="Add it: drift generate with more --samples, say."
            )
        manifest = self.manifest
        return RolloutLog.open(
            self.paths,
            rollout,
            epoch=self.epoch(),
            layers=len(manifest.layers),
            width=self._width,
            segments=manifest.segments,
            format=manifest.lines,
        )

    def event(self, kind: str, **fields: Any) -> None:
        """Record that something happened, with time, host and process. Raises `StoreError`."""
        append_event(self.paths, kind, fields)

    def events(self) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        return read_events(self.paths)[0]

    def verify(self) -> list[Finding]:
        """Check everything that is stored; an empty list says that all of it is as it was written."""
        return verify(self.paths, self.manifest)

    def repair(self) -> tuple[list[Repair], list[str]]:
        """Set aside what is damaged in rollouts (see `store.repair`). Returns what was, and in words what could not be."""
        planned = [Rollout(plan.cell, sample) for plan in self.manifest.cells for sample in range(plan.samples)]
        made, problems = [], []
        for rollout in dict.fromkeys((*planned, *self.paths.rollouts())):
            try:
                repair = repair_rollout(self.paths, rollout, layers=len(self.manifest.layers), width=self._width)
            except StoreError as error:
                problems.append(f"{rollout} was not repaired: {error}")
                continue
            if repair is not None:
                made.append(repair)
                files = [str(file.relative_to(self.paths.root)) for file in repair.files]
                self.event("repaired", rollout=str(rollout), problem=repair.problem, kept=repair.kept, lines=repair.lines, files=files)
        return made, problems

    @property
    def _width(self) -> int:
        return self.manifest.model.width if self.manifest.model is not None else 0


def _replace_manifest(paths: RunPaths, asked: Manifest) -> Manifest:
    """Read, merge, replace, under the run's lock. Returns what is on disk then."""
    with hold(paths.root, paths.manifest_lock):
        try:
            stored = read_manifest(paths)
        except FileNotFoundError:
            merged, old = asked, b""
        else:
            merged, old = merge(stored, asked), stored.to_json()
        data = merged.to_json()
        # Read back before it is written: a manifest that could not be read again never replaces one that can.
        manifest = Manifest.from_json(data, paths.manifest)
        if data != old:
            atomic_write(paths.manifest, data)
        return manifest
