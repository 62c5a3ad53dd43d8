"""Making a run from Python: `generate`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drift_cli.api.run import Run
from drift_cli.chat import Ask
from drift_cli.errors import UsageError
from drift_cli.running.events import Event, Finished, Outcome
from drift_cli.running.making import Made, make
from drift_cli.settings.config import resolve, store_folder
from drift_cli.settings.settings import Settings
from drift_cli.spec import Condition, Transcript
from drift_cli.store.paths import Store


@dataclass(frozen=True)
class Opened:
    """The first event: the run is there, with its plan."""

    run: Run


@dataclass(frozen=True)
class Done:
    """The last event: everything that this call could make is on disk."""

    run: Run
    outcome: Outcome
    """How many turns were made, in how many seconds; who holds what is left, where other processes are at the run."""


def generate(
    conditions: str | Condition | Iterable[str | Condition] = (),
    *,
    transcripts: str | Transcript | Iterable[str | Transcript] = (),
    users: Mapping[str, Ask] | None = None,
    store: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Iterator[Opened | Event | Done]:
    """Make a run, or go on with it, as `drift generate` does: yields what happens, prints nothing.

    The same call goes on where the last one stopped; a longer one adds to the run. Who stops iterating stops the run: every turn told of is on disk.

    Args:
        conditions: names (of drift.toml or the preset) or `Condition`s; none for all that are defined.
        transcripts: files or names, or `Transcript`s.
        users: by transcript, the Python code that asks, for transcripts whose user turns come from no script (docs/extending.md).
        store: the folder that holds the runs, as `open` takes it.
        config: a drift.toml other than that at home.
        settings: those of `drift generate`, by name: model, samples, turns, temperatures, max_new_tokens, axis, layer, layers, seed, engine, preset, name …

    Returns:
        An iterator of events: `Opened` first; `Began`, `TurnCommitted` (with the turn's residual means), `RolloutEnded`, `Notice` and others; `Done` last.

    Raises:
        UsageError: a setting or condition that does not exist, at once.
        DriftError: the model, axis or transcript cannot be used; with the first event.

    Example:
        >>> for event in drift_cli.generate(["baseline", "simple"], samples=2, turns=3):
        ...     if isinstance(event, drift_cli.TurnCommitted):
        ...         print(event.rollout, event.turn.text)
        >>> event.run.compare("simple", "baseline").verdict
    """
    named, scripts = _split(transcripts, Transcript)
    if named and scripts:
        raise UsageError("transcripts are given both by name and as they are", mend="Load the others: drift_cli.transcripts.load(NAME).")
    flags = {**settings, **({"transcripts": tuple(named)} if named else {})}
    asked = _with_conditions(flags, conditions, None if config is None else Path(config))
    return _events(Store(store_folder(None if store is None else Path(store))), asked, scripts or None, users)


def _events(
    store: Store, settings: Settings, scripts: Sequence[Transcript] | None, users: Mapping[str, Ask] | None
) -> Iterator[Opened | Event | Done]:
    run: Run | None = None
    for event in make(store, settings, scripts, users):
        if isinstance(event, Made):
            run = Run(event.run)
            yield Opened(run)
        elif isinstance(event, Finished):
            assert run is not None
            yield Done(run, event.outcome)
        else:
            yield event


def _with_conditions(flags: Mapping[str, Any], conditions: str | Condition | Iterable[str | Condition], config: Path | None) -> Settings:
    names, given = _split(conditions, Condition)
    settings = resolve(flags, chosen=names, config=config)
    if not given:
        return settings
    by_name = {one.name: one for one in (*(settings.conditions if names else ()), *given)}
    wanted = [one if isinstance(one, str) else one.name for one in _listed(conditions)]
    return replace(settings, conditions=tuple(by_name[name] for name in dict.fromkeys(wanted)))


def _split(given: Any, kind: type[Any]) -> tuple[list[str], list[Any]]:
    """Names and things of a kind. `UsageError` for anything else."""
    listed = _listed(given)
    for one in listed:
        if not isinstance(one, str | os.PathLike | kind):
            raise UsageError(f"{one!r} is neither a name nor a {kind.__name__}")
    return [os.fspath(one) for one in listed if isinstance(one, str | os.PathLike)], [one for one in listed if isinstance(one, kind)]


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, str | os.PathLike | Condition | Transcript) else list(given)
