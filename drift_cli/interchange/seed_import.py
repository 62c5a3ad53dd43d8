"""The seed experiment's JSON files become one run, a cell to each file.

The files do not say which revision, dtype, chat template, sampling filters, token limit or layer they were made with, nor why a reply ended. The manifest
says so: such values stand in its settings with the source "assumed". Importing the same files again changes nothing; files that say something else about
a rollout that is already there are refused before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from drift_cli.errors import StoreError, UsageError
from drift_cli.interchange.seed_json import Conversation, SeedFile, read_seed
from drift_cli.names import checked_name
from drift_cli.spec import Cell, ChatFormat, Condition, Finish, Rollout, RunSpec, Sampling, Transcript, Turn
from drift_cli.store.epoch import Epoch
from drift_cli.store.log import End
from drift_cli.store.manifest import AxisEntry, CellPlan, Imported, Manifest, Setting
from drift_cli.store.paths import Store
from drift_cli.store.run import RolloutState, Run
from drift_cli.transcripts.formats import clean_name

UNKNOWN = "unknown"
UNKNOWN_LAYER = -1
"""What stands for a layer that the source does not name: `hidden_states` has no such index, so it can never be measured against by mistake."""
MAX_NEW_TOKENS = 512
"""What the seed's own notes give; its files do not say."""

_PREFIX = re.compile(r"\d+[a-z]?_")
_Turns = Mapping[Rollout, tuple[Turn, ...]]


def import_seed(
    files: Sequence[Path],
    store: Store,
    *,
    name: str | None = None,
    axis_name: str = "seed",
    layer: int | None = None,
    max_new_tokens: int | None = None,
) -> Run:
    """Bring files of the seed's into the store as one run.

    Args:
        files: at least one; all of the same model, seed and transcript, each with another condition or temperature.
        store: where the run goes.
        name: the run's; without one, the experiment's number that all conditions begin with (`003b_`), else `imported`.
        axis_name: what the projections are called.
        layer: the axis's layer (`hidden_states` index), where it is known.
        max_new_tokens: the limit on a reply, where it is known.

    Raises:
        UsageError: a file is not what the format says, or the files do not belong to one run.
        StoreError: the store holds this run with other contents.
    """
    checked_name("axis", axis_name)
    sources = [read_seed(Path(path)) for path in files]
    _check_together(sources)
    prefix = _experiment(sources)
    manifest = _manifest(
        spec=_spec(sources[0], name or prefix.rstrip("_") or "imported", max_new_tokens),
        sources=sources,
        names=_condition_names(sources, prefix),
        axis=AxisEntry(axis_name, UNKNOWN_LAYER if layer is None else layer, UNKNOWN, _note(layer)),
    )
    manifest = replace(manifest, settings=_settings(manifest.spec, sources, layer, max_new_tokens))
    turns = _turns(sources, manifest.cells, axis_name)
    if manifest.spec.id in store.run_ids():
        _check_unchanged(Run.open(store, manifest.spec.id), manifest.cells, turns)
    run = Run.create(store, manifest)
    _write(run, turns, sources)
    return run


def _check_together(sources: Sequence[SeedFile]) -> None:
    """Files of one run agree in what a run's identity is made of, and describe different cells of it."""
    if not sources:
        raise UsageError("no file to import", mend="drift import FILE…")
    first = sources[0]
    for source in sources[1:]:
        for field in ("model", "seed", "transcript_source"):
            here, there = getattr(source, field), getattr(first, field)
            if here != there:
                raise UsageError(
                    f"{source.path}: {field} is {here!r}, but {there!r} in {first.path}", mend="Import them as runs of their own."
                )
    users = max((source.users for source in sources), key=len)
    cells: dict[tuple[str, float], SeedFile] = {}
    for source in sources:
        if source.users != users[: len(source.users)]:
            raise UsageError(f"{source.path}: other user turns than in the other files", mend="Import them as runs of their own.")
        other = cells.setdefault((source.condition, source.temperature), source)
        if other is not source:
            raise UsageError(
                f"{source.path}: condition {source.condition!r} at T {source.temperature:g} is also in {other.path}", mend="Give one."
            )


def _experiment(sources: Sequence[SeedFile]) -> str:
    """The experiment's number and underscore with which all conditions begin, or nothing."""
    found = {match[0] if (match := _PREFIX.match(source.condition)) else "" for source in sources}
    return found.pop() if len(found) == 1 else ""


def _spec(source: SeedFile, name: str, max_new_tokens: int | None) -> RunSpec:
    return RunSpec(
        name=name,
        model=source.model,
        revision=UNKNOWN,
        dtype=UNKNOWN,
        chat=ChatFormat("template", UNKNOWN),
        # Nothing says that sample s of two conditions shared its noise, and taking it for granted would let them be paired.
        sampling=Sampling(independent_noise=True),
        max_new_tokens=MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens,
        seed=source.seed,
    )


def _note(layer: int | None) -> str:
    said = "its layer is not known" if layer is None else "its layer was given when it was imported"
    return f"Projections as the imported files give them; {said}."


def _condition_names(sources: Sequence[SeedFile], prefix: str) -> dict[str, str]:
    """The files' labels, and what the conditions are called here."""
    names = {source.condition: clean_name(source.condition.removeprefix(prefix)) for source in sources}
    if len({name.casefold() for name in names.values()}) < len(names):
        raise UsageError(f"conditions {', '.join(map(repr, names))} get the same name here", mend="Rename a condition in its file.")
    return names


def _manifest(spec: RunSpec, sources: Sequence[SeedFile], names: Mapping[str, str], axis: AxisEntry) -> Manifest:
    transcript = Transcript(clean_name(sources[0].transcript_source), max((source.users for source in sources), key=len))
    conditions: dict[str, Condition] = {}
    for source in sources:
        condition = Condition(names[source.condition], source.system_prompt, source.placement)
        if conditions.setdefault(condition.name, condition) != condition:
            raise UsageError(
                f"{source.path}: condition {source.condition!r} has another prompt or placement than in an earlier file",
                mend="Rename it in one of the files.",
            )
    cells = [Cell(transcript.name, names[source.condition], source.temperature) for source in sources]
    return Manifest(
        spec=spec,
        layers=(),
        conditions=conditions,
        transcripts={transcript.name: transcript},
        cells=tuple(CellPlan(cell, len(source.conversations)) for cell, source in zip(cells, sources, strict=True)),
        axes=(axis,),
        epochs=(Epoch(versions={}, device=UNKNOWN, engine=UNKNOWN, batch=0),),
        imported=Imported("seed-json", {name: label for label, name in names.items()}, sources[0].transcript_source),
    )


def _settings(spec: RunSpec, sources: Sequence[SeedFile], layer: int | None, max_new_tokens: int | None) -> dict[str, Setting]:
    """Where each value comes from: the files, the person who imports them, or nowhere."""
    temperatures = sorted({source.temperature for source in sources})
    found = {"model": spec.model, "seed": spec.seed, "temperatures": temperatures}
    assumed = {"revision": UNKNOWN, "dtype": UNKNOWN, "chat": spec.chat.kind}
    assumed |= {key: getattr(spec.sampling, key) for key in ("top_p", "top_k", "min_p", "independent_noise")}
    assumed["finish"] = f"{UNKNOWN}, recorded as {Finish.STOP}"
    settings = {key: Setting(value, "file") for key, value in found.items()} | {
        key: Setting(value, "assumed") for key, value in assumed.items()
    }
    for key, value, given in (("max_new_tokens", spec.max_new_tokens, max_new_tokens), ("layer", layer, layer)):
        settings[key] = Setting(value, "assumed" if given is None else "given at import")
    ignored = sorted({key for source in sources for key in source.ignored})
    return settings | ({"ignored_keys": Setting(ignored, "file")} if ignored else {})


def _turns(sources: Sequence[SeedFile], cells: Sequence[CellPlan], axis: str) -> dict[Rollout, tuple[Turn, ...]]:
    return {
        Rollout(plan.cell, sample): _rollout(conversation, axis)
        for source, plan in zip(sources, cells, strict=True)
        for sample, conversation in enumerate(source.conversations)
    }


def _rollout(conversation: Conversation, axis: str) -> tuple[Turn, ...]:
    pairs = enumerate(zip(conversation.replies, conversation.projections, strict=True), 1)
    return tuple(Turn(index, text, Finish.STOP, projections={axis: value}) for index, (text, value) in pairs)


def _check_unchanged(run: Run, cells: Iterable[CellPlan], turns: _Turns) -> None:
    """What is stored of these cells must be what the files say, or the beginning of it (an import that was stopped)."""
    samples = {plan.cell: plan.samples for plan in cells}
    for state in run.states():
        rollout = state.rollout
        if rollout.cell not in samples or not (state.done or state.end):
            continue
        if rollout.sample >= samples[rollout.cell]:
            raise _changed(run, f"{rollout} is stored, but the file has only {samples[rollout.cell]} conversations")
        stored, given = run.record(rollout).turns, turns[rollout]
        if len(stored) > len(given):
            raise _changed(run, f"{rollout} has {len(stored)} turns stored, but {len(given)} in the file")
        for old, new in zip(stored, given, strict=False):
            if old != new:
                raise _changed(run, f"{rollout}, turn {new.index}: the file's {'reply' if old.text != new.text else 'projection'} differs")


def _changed(run: Run, what: str) -> StoreError:
    return StoreError(
        f"run {run.paths.run_id} was imported from other contents: {what}",
        mend="Import the changed files under another name: drift import --name NAME …",
    )


def _write(run: Run, turns: _Turns, sources: Sequence[SeedFile]) -> None:
    """Append what is not there yet. A rollout with a reply to every user turn is ended; a shorter one is left as long as it is in its file."""
    states = {state.rollout: state for state in run.states()}
    waiting = [rollout for rollout, made in turns.items() if made and states[rollout].end is None and not _is_there(states[rollout], made)]
    if waiting:
        run.event("import", files=sorted(source.path.name for source in sources), rollouts=len(waiting))
    for rollout in waiting:
        total = states[rollout].total
        with run.writer(rollout) as log:
            for turn in turns[rollout][len(log.record.turns) :]:
                log.append(turn)
            if len(turns[rollout]) == total:
                log.end(End(Finish.COMPLETE, total, None))


def _is_there(state: RolloutState, made: Sequence[Turn]) -> bool:
    """Whether all of a rollout that is shorter than its script is stored. (One that is as long also needs its end.)"""
    return state.done == len(made) < state.total
