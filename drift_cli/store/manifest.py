"""What a run is: its manifest, as frozen dataclasses and as run.json. `merge` says how a run may grow."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from drift_cli.errors import StoreError
from drift_cli.pool import Pool
from drift_cli.spec import Cell, Condition, RunSpec, Transcript, at_layer
from drift_cli.store.decode import OPTIONAL, Malformed, decode, parse, plain
from drift_cli.store.epoch import Epoch
from drift_cli.store.files import read_inside
from drift_cli.store.line import LINES
from drift_cli.store.paths import RunPaths
from drift_cli.store.plan import SealedPlan

FORMAT = 1
"""Metadata of a field that came after the first runs: it is left out of run.json where it has its default, so that those stay what they are."""
_SEAL = re.compile(rb'\{\n  "digest": "([^"\n]*)",\n')
_LIMIT = 256 << 20
"""Bytes: a manifest holds the transcripts' texts, not more."""


@dataclass(frozen=True)
class ModelFacts:
    """What the store needs to know of the model beyond its name and revision."""

    architecture: str
    layers: int
    """Blocks."""
    width: int
    """Of the residual stream."""
    context: int
    """Tokens."""
    parameters: int
    end_ids: tuple[int, ...]
    """Tokens that end a reply."""
    note: str | None
    quantization: str | None = field(default=None, metadata=OPTIONAL)
    """How its weights were stored: `GGUF Q4_1, unpacked`, `GPTQ, 4 bits`. Part of the run's identity as part of the model's files."""
    adapter: str | None = field(default=None, metadata=OPTIONAL)
    """The name of the folder of the LoRA adapter that was merged into them; its digest is in the spec."""


@dataclass(frozen=True)
class CellPlan:
    """A cell, and how many rollouts of it are wanted: samples 0 … samples - 1."""

    cell: Cell
    samples: int


@dataclass(frozen=True)
class AxisEntry:
    """An axis at one layer (`hidden_states` index)."""

    name: str
    """The axis's; where the run has the axis at another layer already, `axis@layer`."""
    layer: int
    digest: str
    """SHA-256 of its layers and vectors."""
    note: str | None = None
    foreign: str | None = field(default=None, metadata=OPTIONAL)
    """The model it was built on, where that is another than the run's and this was asked for."""

    @property
    def axis(self) -> str:
        """The name of the axis, whatever the layer."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Setting:
    """A setting's value (JSON), and in words where it came from: `flag --samples`, `default`."""

    value: Any
    source: str


@dataclass(frozen=True)
class Imported:
    """Where a run comes from that was not made here."""

    source: str
    """The format: `seed-json`."""
    labels: Mapping[str, str]
    """Condition here → its label in the file."""
    transcript_source: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a run that is not a turn or an event."""

    spec: RunSpec
    layers: tuple[int, ...]
    """Stored residual layers, in the order of the rows of `Turn.residual`; () where none are."""
    conditions: Mapping[str, Condition]
    transcripts: Mapping[str, Transcript]
    cells: tuple[CellPlan, ...]
    axes: tuple[AxisEntry, ...] = ()
    """Projected on while generating; part of every turn's line."""
    measured: tuple[AxisEntry, ...] = ()
    """Added later: projected from stored residual means when read."""
    model: ModelFacts | None = None
    template_adds: Mapping[str, str] = field(default_factory=dict)
    """Condition → text that the chat template adds of its own."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    epochs: tuple[Epoch, ...] = ()
    imported: Imported | None = None
    lines: int = field(default=1, metadata=OPTIONAL)
    """The format of its rollouts' lines, see `line`: that in which the run was begun, also where it is extended."""
    pool: str = field(default="mean", metadata=OPTIONAL)
    """Which tokens of a reply's part stand for it, see `pool.Pool`."""
    segments: bool = field(default=False, metadata=OPTIONAL)
    """Whether replies may have reasoning apart from their answer. In run.json only where they may."""
    plan: SealedPlan | None = field(default=None, metadata=OPTIONAL)
    """What was declared before there was data. In run.json only where something was."""
    format: int = FORMAT

    @property
    def threads(self) -> int | None:
        """Of the CPU that this run was last computed on, None where it never was on one."""
        return next((epoch.threads for epoch in reversed(self.epochs) if epoch.threads is not None), None)

    def to_json(self) -> bytes:
        """The content of run.json, sealed. Raises `StoreError` where a text or value cannot be JSON."""
        try:
            body = orjson.dumps(plain(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError as error:
            raise StoreError(f"the manifest of run {self.spec.id} cannot be written as JSON: {error}") from error
        return b'{\n  "digest": "%s",\n' % hashlib.sha256(body).hexdigest().encode() + body[2:]

    @classmethod
    def from_json(cls, data: bytes, where: Path) -> Manifest:
        """Read run.json. Raises `StoreError` naming file and field."""
        try:
            value = parse(_unsealed(data))
            if isinstance(value, dict) and type(value.get("format")) is int and value["format"] != FORMAT:
                raise StoreError(
                    f"{where}: the run is in format {value['format']}; this drift reads format {FORMAT}",
                    mend="Use the version of drift that made it.",
                )
            return checked(decode(cls, value))
        except Malformed as error:
            raise StoreError(
                f"{where}: {error}",
                mend="Restore run.json from a copy, or undo the edit that damaged it. (An edit on purpose takes the digest's line out.)",
            ) from error


def _unsealed(data: bytes) -> bytes:
    """The manifest's JSON without the digest of all its other bytes; one without a digest is taken as it is. Raises `Malformed`."""
    seal = _SEAL.match(data)
    if seal is None:
        return data
    body = b"{\n" + data[seal.end() :]
    if hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise Malformed("its digest does not match its content: a byte changed since drift wrote it")
    return body


def read_manifest(paths: RunPaths) -> Manifest:
    """A run's manifest from its folder. Raises `StoreError` where it is damaged or another run's, `FileNotFoundError` where there is none."""
    manifest = Manifest.from_json(read_inside(paths.root, paths.manifest, _LIMIT), paths.manifest)
    if manifest.spec.id != paths.run_id:
        raise StoreError(
            f"{paths.manifest}: this is the manifest of run {manifest.spec.id}, not of {paths.run_id}",
            mend="Rename the folder back, or undo the edit of run.json.",
        )
    return manifest


def checked(manifest: Manifest) -> Manifest:
    """The same manifest, if it hangs together. Raises `Malformed` naming the field."""
    for kind, named in (("conditions", manifest.conditions), ("transcripts", manifest.transcripts)):
        for name, thing in named.items():
            if thing.name != name:
                raise Malformed(f"holds {thing.name!r}", f"{kind}.{name}")
        _refuse_twins((name.casefold() for name in named), kind)
    for place, plan in enumerate(manifest.cells):
        if plan.samples < 1:
            raise Malformed(f"{plan.samples} is not a number of rollouts", f"cells[{place}].samples")
        if plan.cell.condition not in manifest.conditions:
            raise Malformed(f"condition {plan.cell.condition!r} is not in the run", f"cells[{place}]")
        if plan.cell.transcript not in manifest.transcripts:
            raise Malformed(f"transcript {plan.cell.transcript!r} is not in the run", f"cells[{place}]")
    _check_known(manifest)
    _refuse_twins((plan.cell for plan in manifest.cells), "cells")
    _refuse_twins((entry.name for entry in (*manifest.axes, *manifest.measured)), "axes")
    _refuse_twins(manifest.layers, "layers")
    for entry in (*manifest.axes, *manifest.measured):
        if "@" in entry.name and entry.name != at_layer(entry.axis, entry.layer):
            raise Malformed(f"{entry.name!r} is at layer {entry.layer}", "axes")
    _check_plan(manifest)
    for place, entry in enumerate(manifest.axes):
        if manifest.layers and entry.layer not in manifest.layers:
            raise Malformed(f"layer {entry.layer} is not among the stored layers", f"axes[{place}].layer")
    return manifest


def _check_known(manifest: Manifest) -> None:
    """Refuse what a later version may have written."""
    if not 1 <= manifest.lines <= LINES:
        raise Malformed(f"lines of format {manifest.lines} are not known to this drift, which knows formats 1 to {LINES}", "lines")
    try:
        Pool.of(manifest.pool)
    except ValueError as error:
        raise Malformed(f"{manifest.pool!r}: {error}", "pool") from None


def _check_plan(manifest: Manifest) -> None:
    if manifest.plan is not None and not manifest.plan.intact:
        raise Malformed("its digest is not that of what it says: a plan does not change once it is written", "plan")


def _refuse_twins(names: Iterable[Any], kind: str) -> None:
    twins = [str(name) for name, number in Counter(names).items() if number > 1]
    if twins:
        raise Malformed(
            f"{twins[0]} stands there twice (names that differ only in upper and lower case are the same in some file systems)", kind
        )
