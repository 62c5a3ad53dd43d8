"""The only place that knows file names.

Every name that comes from outside is checked before it becomes part of a path, so none can leave the store.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drift_cli.errors import UsageError
from drift_cli.files import failed
from drift_cli.names import at_layer, checked_name, split_layer
from drift_cli.spec import Cell, Rollout

# A run's name (80 at most), a hyphen and 8 hex digits.
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,88}")
_SAMPLE = re.compile(r"([0-9]{4,9})\.(jsonl|f32|lock)")
_CLAIM = re.compile(r"([0-9]{4,9})\.claim")


@dataclass(frozen=True)
class Store:
    """The folder that holds the runs."""

    root: Path

    def run(self, run_id: str) -> RunPaths:
        """Paths of a run, whether it exists or not. `UsageError` where the id cannot be one."""
        if not _RUN_ID.fullmatch(run_id):
            raise UsageError(f"{run_id!r} is not the id of a run", mend="`drift runs ls` lists the runs.")
        return RunPaths(self.root / run_id)

    def logs(self, run_id: str) -> Path:
        """What batch jobs of a run said, and their scripts. Beside the runs, not in them: whatever runs batch jobs puts links and files of its own there."""
        return self.root / "logs" / self.run(run_id).run_id

    def run_ids(self) -> list[str]:
        """Folders that hold a manifest, the newest manifest first."""
        found = []
        try:
            names = os.listdir(self.root)  # noqa: PTH208 (names, not paths, are wanted)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise failed("read", self.root, error) from error
        for name in filter(_RUN_ID.fullmatch, names):
            try:
                facts = RunPaths(self.root / name).manifest.lstat()
            except OSError:
                continue
            if stat.S_ISREG(facts.st_mode):
                found.append((-facts.st_mtime_ns, name))
        return [name for _, name in sorted(found)]


@dataclass(frozen=True)
class RunPaths:
    """Where everything of one run is."""

    root: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.root.name

    @property
    def manifest(self) -> Path:
        """What the run is: replaced as a whole, never changed in place."""
        return self.root / "run.json"

    @property
    def manifest_lock(self) -> Path:
        """An empty file; whoever replaces the manifest holds a lock on it."""
        return self.root / "run.lock"

    @property
    def events(self) -> Path:
        """What happened, a line each, append only."""
        return self.root / "events.jsonl"

    @property
    def looks(self) -> Path:
        """When results were looked at, a line each, append only."""
        return self.root / "looks.jsonl"

    def axis(self, name: str) -> Path:
        """The run's own copy of an axis, which has all its layers: `demo@3` is in the same file as `demo`."""
        return self.root / "axes" / f"{checked_name('axis', split_layer(name)[0])}.safetensors"

    def controls(self, axis: str) -> Path:
        """The control axes of one of its axes."""
        return self.root / "controls" / f"{_entry(axis)}.safetensors"

    def reference(self, transcript: str, axis: str) -> Path:
        """The reference line: projections of somebody else's replies."""
        return self.root / "reference" / f"{checked_name('transcript', transcript)}.{_entry(axis)}.json"

    @property
    def traces_root(self) -> Path:
        """The folder that holds token traces; whatever is in it can be measured again."""
        return self.root / "traces"

    def traces(self, rollout: Rollout, axis: str) -> Path:
        """A rollout's token traces on an axis."""
        cell = self.cell(rollout.cell).relative_to(self.rollouts_root)
        return self.traces_root / _entry(axis) / cell / sample_name(rollout.sample, "safetensors")

    @property
    def swapped_root(self) -> Path:
        """The folder that holds replies read under another condition's prompt; whatever is in it can be measured again."""
        return self.root / "swapped"

    def swapped(self, rollout: Rollout, prompt: str) -> Path:
        """Residual means of a rollout's replies, read under the prompt of another condition."""
        cell = self.cell(rollout.cell).relative_to(self.rollouts_root)
        return self.swapped_root / checked_name("condition", prompt) / cell / sample_name(rollout.sample, "means")

    @property
    def quarantine(self) -> Path:
        """Where a repair puts what is damaged."""
        return self.root / "quarantine"

    def quarantined(self, rollout: Rollout, offset: int, digest: str, suffix: str) -> Path:
        """Bytes from `offset` on that were taken out of one of a rollout's files; `digest` (hex) is theirs, so the same bytes have the same name."""
        folder = self.quarantine / self.cell(rollout.cell).relative_to(self.rollouts_root)
        return folder / sample_name(rollout.sample, f"{offset}-{digest[:12]}.{suffix}")

    @property
    def rollouts_root(self) -> Path:
        """The folder that holds all rollouts."""
        return self.root / "rollouts"

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell's rollouts."""
        return self.rollouts_root / cell.transcript / cell.condition / temperature_name(cell.temperature)

    def rollout(self, rollout: Rollout) -> Path:
        """A rollout's lines."""
        return self.cell(rollout.cell) / sample_name(rollout.sample, "jsonl")

    def residuals(self, rollout: Rollout) -> Path:
        """A rollout's residual means: raw little-endian float32."""
        return self.cell(rollout.cell) / sample_name(rollout.sample, "f32")

    def owner(self, rollout: Rollout) -> Path:
        """Who is writing a rollout. Only to be read by people: the lock itself is on the rollout's lines."""
        return self.cell(rollout.cell) / sample_name(rollout.sample, "lock")

    @property
    def workers_root(self) -> Path:
        """The folder in which every worker of the run has a file of its own."""
        return self.root / "workers"

    def worker(self, worker: str) -> Path:
        """What a worker says of itself, replaced as a whole at every heartbeat."""
        return self.workers_root / f"{checked_name('worker', worker)}.json"

    def worker_log(self, worker: str) -> Path:
        """What a worker said to a terminal it did not have."""
        return self.workers_root / f"{checked_name('worker', worker)}.log"

    def worker_of(self, path: Path) -> str | None:
        """The worker whose file or log this is; None where the path is neither."""
        name = path.stem
        try:
            return name if path in (self.worker(name), self.worker_log(name)) else None
        except UsageError:
            return None

    @property
    def claims_root(self) -> Path:
        """The folder that holds claims: which worker is at which rollout."""
        return self.root / "claims"

    def claims(self, cell: Cell) -> Path:
        """The folder of the claims on a cell's rollouts."""
        return self.claims_root / self.cell(cell).relative_to(self.rollouts_root)

    def claim(self, rollout: Rollout) -> Path:
        """The claim on a rollout: made by whoever works on it, and gone when nobody does."""
        return self.claims(rollout.cell) / sample_name(rollout.sample, "claim")

    def ended(self, cell: Cell) -> Path:
        """Samples of a cell that workers have seen end, a line each: a hint that spares others to read their files."""
        return self.claims(cell) / "ended"

    def claim_of(self, path: Path) -> Rollout | None:
        """The rollout that a claim is on; None where the path is no claim."""
        match = _CLAIM.fullmatch(path.name)
        rollout = None if match is None else self._rollout_at(path, int(match[1]))
        return rollout if rollout is not None and self.claim(rollout) == path else None

    def rollouts(self) -> Iterator[Rollout]:
        """Rollouts that have a file of lines, sorted. Whatever else lies there is passed over (`verify` names it)."""
        found = []
        for folder, folders, names in os.walk(self.rollouts_root, followlinks=False):
            folders.sort()
            paths = (Path(folder, name) for name in names if name.endswith(".jsonl"))
            found += [rollout for path in paths if (rollout := self.rollout_of(path)) is not None]
        yield from sorted(found)

    def rollout_of(self, path: Path) -> Rollout | None:
        """The rollout that a file of lines, residuals or an owner belongs to; None where the path is none of these."""
        match = _SAMPLE.fullmatch(path.name)
        rollout = None if match is None else self._rollout_at(path, int(match[1]))
        # Only the one spelling that we write: T0.50 or 00007 would be a second file of the same rollout.
        return rollout if match and rollout and self.cell(rollout.cell) / sample_name(rollout.sample, match[2]) == path else None

    def _rollout_at(self, path: Path, sample: int) -> Rollout | None:
        """The rollout of a file in a cell's folder, whatever that folder is in; None where its folders do not name a cell."""
        parts = path.relative_to(self.root).parts
        try:
            return Rollout(Cell(parts[1], parts[2], float(parts[3].removeprefix("T"))), sample) if len(parts) == 5 else None
        except (UsageError, ValueError):
            return None


def _entry(name: str) -> str:
    """The name of one of a run's axes, `demo` or `demo@3`, if it can stand in a file name; `UsageError` otherwise."""
    axis, layer = split_layer(name)
    checked_name("axis", axis)
    return axis if layer is None else at_layer(axis, layer)


def sample_name(sample: int, suffix: str) -> str:
    """The name of one of a rollout's files."""
    if sample < 0:
        raise ValueError(f"sample {sample} is negative")
    return f"{sample:04d}.{suffix}"


def temperature_name(temperature: float) -> str:
    """`T0.5`: the shortest spelling that gives this very number, so that no two temperatures share a folder."""
    value = float(temperature) + 0.0  # -0.0 is 0.0
    short = f"{value:g}"
    return f"T{short if float(short) == value else repr(value)}"
