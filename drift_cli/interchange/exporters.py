"""Formats that a run can be written in: drift's own, those of installed packages (entry point group `drift.exporters`), and those registered from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift_cli import plugins
from drift_cli.errors import DriftError, UsageError, did_you_mean

OWN = {
    "seed-json": "one JSON per cell: projections (rollouts, turns) and conversations",
    "assistant-axis": "one JSON per rollout: model, turns, conversation",
    "csv": "one row to a turn",
    "parquet": "one row to a turn, with types and the run's identity; with --residuals the residual means too",
}
"""Drift's own formats, in words."""


@dataclass(frozen=True)
class Exporter:
    """A format of one's own."""

    name: str
    words: str
    """What it writes, for lists of formats."""
    write: Callable[[Any, Path], Path | str | Iterable[Path | str] | None] = field(repr=False)
    """Takes a run (`drift_cli.Run`) and the path to write; returns what it has written (None: that path)."""
    suffix: str = ""
    """Of the file that it writes, such as `.jsonl`; empty where it writes a folder."""


_registered: dict[str, Exporter] = {}


def register(made: Exporter) -> Exporter:
    """Add a format for this process, in place of one of the same name that was added before. `UsageError` where the name is one of drift's own."""
    if made.name in OWN:
        raise UsageError(f"format {made.name} is drift's own", mend="Give yours another name.")
    _registered[made.name] = made
    return made


def exporter(name: str, words: str, suffix: str = "") -> Callable[[Callable[[Any, Path], Any]], Exporter]:
    """A decorator that makes a function of a run and a path a registered format.

    >>> @drift_cli.exporter("jsonl", "one JSON object to a turn", ".jsonl")
    ... def jsonl(run, path):
    ...     run.turns().to_json(path, orient="records", lines=True)
    """
    return lambda function: register(Exporter(name, words, function, suffix))


def exporters() -> dict[str, Exporter]:
    """Those that are not drift's own, by name."""
    installed, _ = _installed()
    return {**installed, **_registered}


def find(name: str) -> Exporter:
    """A format that is not drift's own, by name. `UsageError` lists all formats, and says which package could not be loaded."""
    known = exporters()
    if name in known:
        return known[name]
    failed = plugins.added(plugins.EXPORTERS).problems
    if name in failed:
        raise UsageError(f"format {failed[name]}", mend="Mend or uninstall that package.")
    names = [*OWN, *known]
    raise UsageError(f"there is no format {name!r}", mend=f"{did_you_mean(name, names)}There are: {', '.join(names)}.")


def problems() -> tuple[str, ...]:
    """What installed packages add and cannot be used, a sentence each."""
    return (*plugins.added(plugins.EXPORTERS).problems.values(), *_installed()[1])


def written_by(made: Exporter, run: Any, path: Path) -> list[Path]:
    """Write a run with an exporter; returns what it has written. `DriftError` where it fails, or leaves nothing there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = made.write(run, path)
    except DriftError:
        raise
    except Exception as error:
        raise DriftError(f"format {made.name} failed: {type(error).__name__}: {error}") from error
    paths = [path] if found is None else [Path(found)] if isinstance(found, str | Path) else [Path(one) for one in found]
    missing = [one for one in paths if not one.exists()]
    if missing:
        raise DriftError(f"format {made.name} says that it has written {missing[0]}, which is not there")
    return paths


def _installed() -> tuple[dict[str, Exporter], tuple[str, ...]]:
    found: dict[str, Exporter] = {}
    said = []
    for entry, made in plugins.added(plugins.EXPORTERS).found.items():
        if not isinstance(made, Exporter):
            said.append(f"{entry} ({plugins.EXPORTERS}) is left out: {type(made).__name__} is no Exporter")
        elif made.name in OWN or made.name in found:
            said.append(f"format {made.name} of {entry} ({plugins.EXPORTERS}) is left out: there is another of that name")
        else:
            found[made.name] = made
    return found, tuple(said)
