"""Token traces of a run, as `drift measure --traces` and `drift generate --traces` make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from drift_cli.display import Display, Table
from drift_cli.errors import EXIT_INTERRUPTED, StoreError, UsageError
from drift_cli.running.interrupts import Stop

if TYPE_CHECKING:
    from drift_cli.models import LoadedModel
    from drift_cli.running.experiment import Experiment
    from drift_cli.store.manifest import AxisEntry
    from drift_cli.store.run import Run


def trace(display: Display, run: Run, axis: str | None, device: str | None) -> None:
    """Measure the token traces of a run's replies with its own model; what is measured already is passed over. Exits with 75 when interrupted."""
    from drift_cli import models
    from drift_cli.running.experiment import reopen, settings_of

    settings = settings_of(run.manifest).given({"device": device})
    with Stop() as stop:
        experiment = reopen(run, settings, display.note)
        _entry(run, axis)
        if not any(state.done for state in run.states()):
            raise StoreError(f"run {run.paths.run_id} has no committed turn to measure", mend=f"drift resume {run.paths.run_id}")
        model = models.load(experiment.card, dtype=run.manifest.spec.dtype, device=experiment.device)
        done = trace_with(display, run, experiment, model, stop, axis)
    notes = [f"next: drift report {run.paths.run_id}   drift plot {run.paths.run_id} --kind tokens --reply CONDITION/SAMPLE/turn-N"]
    display.result(done.document, Table(done.said, [], [], notes))


@dataclass(frozen=True)
class Traced:
    """What was measured, for a program and for a person."""

    document: dict[str, Any]
    said: str


def trace_with(display: Display, run: Run, experiment: Experiment, model: LoadedModel, stop: Stop, axis: str | None = None) -> Traced:
    """The same with a model that is loaded already."""
    from drift_cli.measuring.traces import measure_run
    from drift_cli.store.axes import read_axis

    entry = _entry(run, axis)
    states = [state for state in run.states() if state.done]
    with display.progress(len(states), 0, "rollouts") as progress:
        made = measure_run(run, experiment.chat, model, read_axis(run.paths, entry), entry, step=progress.step, stop=stop)
    if made.interrupted:
        command = f"drift measure {run.paths.run_id} --axis {entry.name} --traces"
        traced = made.rollouts + made.known
        display.note(
            f"stopped by {stop.signal_name}: {traced} of {len(states)} rollouts are traced. Go on with: {command}", kind="interrupted"
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    document = {"run": run.paths.run_id, "axis": entry.name, "layer": entry.layer, "traced": made.rollouts, "known": made.known}
    said = f"token traces on {entry.name}, layer {entry.layer}: {made.rollouts} rollouts measured, {made.known} known"
    if made.rollouts:
        said += f"; means differ from the stored projections by at most {made.difference:.2g}"
    return Traced({**document, "difference": made.difference}, said)


def _entry(run: Run, axis: str | None) -> AxisEntry:
    from drift_cli.analysis.entries import choose_axis

    if run.manifest.model is None:
        raise UsageError(
            f"run {run.paths.run_id} was imported: its model cannot be asked", mend="Only runs made with `drift generate` can."
        )
    return choose_axis(run.manifest, axis, run.paths.run_id)
