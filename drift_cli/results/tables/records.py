"""A study as flat records, for CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from drift_cli.analysis.power import Power
from drift_cli.analysis.results import Measure, Provenance, Role
from drift_cli.analysis.study import Study


def records(study: Study, flagged: str, found: Sequence[Power] = ()) -> list[dict[str, Any]]:
    """Every number of a study as flat records, each with the method and provenance it came from. `flagged`: whether suspect replies are in."""
    source = _source(study.provenance)
    return [{"table": table, "flagged": flagged, **record, **source} for table, record in _records(study, found)]


def _records(study: Study, found: Sequence[Power]) -> Iterator[tuple[str, dict[str, Any]]]:
    summary = study.summary
    common = {"level": summary.level, "method": summary.method, "scope": summary.scope}
    for cell in summary.cells:
        fields = asdict(cell)
        turns, counts = fields.pop("turns"), fields.pop("flagged")
        named = {key: fields[key] for key in ("transcript", "condition", "temperature")}
        yield "cells", {**fields, **{f"flagged_{kind}": count for kind, count in counts.items()}, **common}
        yield from (("cell_turns", {**named, **turn, **common}) for turn in turns)
    yield from (("cell_drift", {**_plain(asdict(row)), "level": summary.level, "scope": study.scope}) for row in study.cell_drift)
    for table, rows in (("comparisons", study.comparisons), ("drift", study.drift), ("added", study.added), ("across", study.across)):
        yield from ((table, {**_plain(asdict(row)), "scope": study.scope}) for row in rows)
    for pair in study.turns:
        named = {
            "a": pair.a,
            "b": pair.b,
            "transcript": pair.transcript,
            "temperature": pair.temperature,
            "level": pair.level,
            "method": pair.method,
        }
        yield from (("turns", {**named, **asdict(turn), "scope": study.scope}) for turn in pair.turns)
    yield from _power_records(found, study.scope)


def _power_records(found: Sequence[Power], scope: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for power in found:
        fields = _plain(asdict(power))
        sizes, needed = fields.pop("sizes"), fields.pop("needed")
        common = {**fields, "method": "two-sample t test", "scope": scope}
        yield from (("power", {**common, **size}) for size in sizes)
        yield from (("needed", {**common, **need}) for need in needed)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    worst = record.pop("worst", None)
    made = {key: str(value) if isinstance(value, Measure | Role) else value for key, value in record.items()}
    return made if worst is None else {**made, **{f"worst_{key}": value for key, value in worst.items()}}


def _source(provenance: Provenance) -> dict[str, Any]:
    fields = asdict(provenance)
    versions = fields.pop("versions")
    return {**fields, "versions": "; ".join(f"{name} {number}" for name, number in versions.items())}
