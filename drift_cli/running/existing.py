"""Which run of a store is meant: the one with these settings, whatever its model's folder is called now, or a new one; and then which it is not.

The same settings name the same run. What makes this more than a look-up: a model's folder may have been moved or renamed since, and runs of earlier
versions called models by other digests. And one name stands for one run: settings that differ under a name that was given are refused, with the
difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from drift_cli.errors import DriftError, StoreError
from drift_cli.models import ModelCard, sampled_digest
from drift_cli.names import brief
from drift_cli.spec import RunSpec
from drift_cli.store.manifest import Manifest
from drift_cli.store.merge import spec_differences

if TYPE_CHECKING:
    from drift_cli.running.experiment import Experiment
    from drift_cli.settings.settings import Settings
    from drift_cli.store.paths import Store
    from drift_cli.store.run import Run

_SAMPLED = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_GIVEN = ("flag --name", "environment DRIFT_NAME", "drift.toml")
"""Where a name comes from that the user chose."""
_LOOKED_AT = 50
"""Runs of one name that are compared at most, the newest first."""


def as_recorded(card: ModelCard, spec: RunSpec) -> tuple[ModelCard, str | None]:
    """A model that was found, called what a run called it if it is the same, and a sentence where that is less than certain."""
    if card.revision == spec.revision:
        return replace(card, name=spec.model), None
    if card.folder is not None and _SAMPLED.fullmatch(spec.revision):
        sampled = sampled_digest(card.folder) if card.folder.is_dir() else "none"
        if sampled != spec.revision:
            return replace(card, revision=sampled), None
        said = "this run was begun by an earlier version, which looked at samples of large weight files only: only those are known to be the same"
        return replace(card, name=spec.model, revision=spec.revision), said
    if card.folder is None and card.name == spec.model and not _COMMIT.fullmatch(spec.revision):
        said = f"this run recorded no commit of {card.name}: what its revision {spec.revision} is now is used ({brief(card.revision)})"
        return replace(card, revision=spec.revision), said
    return card, None


def check_places(run_id: str, settings: Settings) -> None:
    """Refuse to look elsewhere for a folder that a run recorded and that is not there any more."""
    for key in ("model", "adapter"):
        place = getattr(settings, key)
        if place is not None and Path(place).is_absolute() and not Path(place).exists():
            raise DriftError(
                f"the {key} of run {run_id} is not at {place} any more",
                mend=f"Say where it is now: drift resume {run_id} --{key} FOLDER. (What is in it counts, not what it is called.)",
            )


def relocate(run: Run, experiment: Experiment) -> None:
    """Record where model and adapter are now, where the run knows a place that is gone."""
    for key in ("model", "adapter"):
        known, now = run.manifest.settings.get(key), experiment.manifest.settings.get(key)
        if known is None or now is None or known == now:
            continue
        place = Path(str(known.value))
        if place.is_absolute() and not place.exists():
            run.place(**{key: now})


def find_run(store: Store, experiment: Experiment, settings: Settings) -> tuple[Experiment, Run | None]:
    """The run that an experiment is, and the experiment as that run calls it; None and what is to be said where it is a new one.

    Raises:
        StoreError: the name was given, and a run of that name has other settings.
    """
    from drift_cli.store.run import Run

    spec = experiment.manifest.spec
    if spec.id in store.run_ids():
        return experiment, Run.open(store, spec.id)
    if settings.origin("name") not in _GIVEN and (renamed := _under_another_name(store, spec)) is not None:
        said = f"this model was called {renamed.manifest.spec.model} when run {renamed.paths.run_id} was begun; its content is the same, so that run goes on"
        return _as(experiment, renamed.manifest.spec, said), renamed
    same_name = list(_named(store, spec.name))
    for run in same_name:
        card, doubt = as_recorded(experiment.card, run.manifest.spec)
        called = replace(spec, model=card.name, revision=card.revision)
        if doubt is not None and called.digest == run.manifest.spec.digest:
            return _as(experiment, run.manifest.spec, doubt), run
    if same_name:
        experiment = _beside(experiment, same_name, given=settings.origin("name") in _GIVEN)
    return experiment, None


def _named(store: Store, name: str) -> Iterator[Run]:
    """Runs made here under a name, the newest first; damaged ones are passed over."""
    for run_id in [found for found in store.run_ids() if found.rpartition("-")[0] == name][:_LOOKED_AT]:
        if (run := _opened(store, run_id)) is not None and run.manifest.imported is None:
            yield run


def _under_another_name(store: Store, spec: RunSpec) -> Run | None:
    """A run with the same digest whose name was made from what the model's folder was called then."""
    for run_id in store.run_ids() if spec.by_content else ():
        if run_id.endswith(f"-{spec.digest[:8]}") and (run := _opened(store, run_id)) is not None:
            manifest = run.manifest
            if manifest.spec.digest == spec.digest and manifest.spec.model != spec.model and _was_derived(manifest):
                return run
    return None


def _was_derived(manifest: Manifest) -> bool:
    setting = manifest.settings.get("name")
    return setting is None or setting.value is None


def _opened(store: Store, run_id: str) -> Run | None:
    from drift_cli.store.run import Run

    try:
        return Run.open(store, run_id)
    except StoreError:
        return None


def _as(experiment: Experiment, spec: RunSpec, said: str) -> Experiment:
    return replace(experiment, manifest=replace(experiment.manifest, spec=spec), notices=(said, *experiment.notices))


def _beside(experiment: Experiment, others: list[Run], *, given: bool) -> Experiment:
    """A new run beside others of its name: refused where the name was given, else said, with what differs from the one that is most like it."""
    spec = experiment.manifest.spec
    differences = {run.paths.run_id: list(spec_differences(run.manifest.spec, spec)) for run in others}
    nearest = min(differences, key=lambda run_id: len(differences[run_id]))
    if given:
        lines = "".join(f"\n  {field}: stored {stored}, asked {asked}" for field, stored, asked in differences[nearest])
        more = f" (nor are {len(others) - 1} others of that name)" if len(others) > 1 else ""
        raise StoreError(
            f"the name {spec.name} is taken: run {nearest} is not what is asked for{more}:{lines}",
            mend="Use another --name for a new run, or put it back as stored.",
        )
    parts = "; ".join(f"{field} was {stored} there and is {asked} here" for field, stored, asked in differences[nearest])
    said = f"this is a new run, {spec.id}, and not {nearest}: {parts}"
    return replace(experiment, notices=(said, *experiment.notices))
