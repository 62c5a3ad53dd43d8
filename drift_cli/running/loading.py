"""A run's model with its weights, and the engine that makes the rollouts. Everything that is decided on the way is said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from drift_cli import models
from drift_cli.display import duration
from drift_cli.engine.choice import choose, rows
from drift_cli.errors import UsageError
from drift_cli.models import LoadedModel, ModelCard
from drift_cli.pool import Pool
from drift_cli.running.estimate import Work, fits, longest, seconds
from drift_cli.running.machine import keep_threads, loaded_otherwise, rounded_otherwise
from drift_cli.running.speeds import measure_speeds
from drift_cli.settings.settings import EngineChoice, Settings
from drift_cli.spec import Transcript
from drift_cli.store.manifest import Manifest
from drift_cli.store.run import RolloutState, Run

if TYPE_CHECKING:
    from drift_cli.engine.contract import Engine, Incident
    from drift_cli.models.identity import Say
    from drift_cli.running.experiment import Experiment


def load(run: Run, experiment: Experiment, settings: Settings, say: Say, *, gpus: int = 1) -> tuple[LoadedModel, Engine]:
    """Load a run's model, spread over `gpus`, and choose its engine.

    Raises:
        UsageError: the engine that was asked for cannot run the model.
        DriftError: the model cannot be loaded.
    """
    asked = engine_for(settings.engine, gpus, say)
    for said in (keep_threads(run.manifest, experiment.device), loaded_otherwise(run.manifest), rounded_otherwise(run.manifest)):
        if said is not None:
            say(said)
    model = models.load(experiment.card, dtype=run.manifest.spec.dtype, device=experiment.device, gpus=gpus)
    for note in model.notes:
        say(note)
    return model, _engine(run, experiment, model, asked, rows(settings.batch, experiment.device), say)


def _engine(run: Run, experiment: Experiment, model: LoadedModel, asked: EngineChoice, batch: int, say: Say) -> Engine:
    def report(incident: Incident) -> None:
        say(incident.detail)
        run.event(incident.kind, detail=incident.detail)

    spec, context = run.manifest.spec, experiment.card.context
    chosen = choose(
        asked.value,
        model,
        layers=run.manifest.layers,
        filters=spec.sampling,
        max_new_tokens=spec.max_new_tokens,
        batch=batch,
        longest=longest(run.manifest, fits(run.manifest, experiment.chat, context), context),
        text=ordinary_text(experiment.card, experiment.manifest.transcripts.values()),
        report=report,
        segmented=experiment.chat.segmented,
        pool=Pool.of(run.manifest.pool),
    )
    if chosen.refused is not None:
        said = slower(run.manifest, run.states(), experiment, batch)
        say(f"the slots engine cannot run {model.card.name} ({chosen.refused}): using the reference engine, {said}")
    return chosen.engine


def engine_for(asked: EngineChoice, gpus: int, say: Say) -> EngineChoice:
    """The engine to ask for: slots keep everything on one device, so a model that is spread over several runs on `reference`."""
    if gpus == 1:
        return asked
    if asked is EngineChoice.SLOTS:
        raise UsageError(f"the slots engine cannot run a model that is spread over {gpus} GPUs", mend="Use the reference engine, or auto.")
    say(f"the model is spread over {gpus} GPUs: using the slower reference engine (slots keep everything on one device)")
    return EngineChoice.REFERENCE


def ordinary_text(card: ModelCard, scripts: Iterable[Transcript]) -> list[int]:
    """Token ids of what the users of some scripts say: text for the trial of slots."""
    said = "\n".join(text for script in scripts for text in script.users)
    return [int(i) for i in card.tokenizer.encode(said, add_special_tokens=False)]


def work_of(manifest: Manifest, experiment: Experiment, batch: int, engine: str) -> Work:
    """What an estimate needs to know; the device's speeds are measured."""
    import torch

    from drift_cli.engine.layout import layout_from

    assert manifest.model is not None
    dtype = getattr(torch, manifest.spec.dtype)
    speeds = measure_speeds(torch.device(experiment.device), dtype, batch, len(experiment.card.tokenizer))
    layout, graphs = layout_from(experiment.card.config), experiment.device.startswith("cuda") and engine != "reference"
    return Work(manifest.model, manifest.spec.max_new_tokens, batch, dtype.itemsize, layout, speeds, graphs)


def slower(manifest: Manifest, states: list[RolloutState], experiment: Experiment, batch: int) -> str:
    """How much slower than slots the reference engine is with what is left of a run, in words."""
    lengths = fits(manifest, experiment.chat, experiment.card.context)
    slots, reference = (seconds(engine, states, lengths, work_of(manifest, experiment, batch, engine)) for engine in ("slots", "reference"))
    times = f"about {reference / slots:.0f} times slower" if slots and reference > 1.5 * slots else "which is slower"
    return f"{times}: {duration(reference)} instead of {duration(slots)} are estimated for what is left"
