"""The same replies under another prompt, as `drift measure --same-replies` and the end of `drift generate` measure them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from drift_cli.display import Display, Table
from drift_cli.errors import EXIT_INTERRUPTED, StoreError
from drift_cli.running.interrupts import Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drift_cli.measuring.same_replies import Reading
    from drift_cli.models import LoadedModel
    from drift_cli.running.experiment import Experiment
    from drift_cli.store.run import Run


def same_replies(display: Display, run: Run, against: str | None, device: str | None) -> None:
    """Read a run's replies under the prompts that they are compared with, by its own model; what was read is passed over. Exits with 75 when interrupted."""
    from drift_cli import models
    from drift_cli.measuring.same_replies import readings
    from drift_cli.running.experiment import reopen, settings_of

    wanted = readings(run, against)
    if not wanted:
        raise StoreError(
            f"run {run.paths.run_id} has no two conditions with committed turns of one transcript and temperature",
            mend="Add one: drift generate --condition NAME",
        )
    settings = settings_of(run.manifest).given({"device": device})
    with Stop() as stop:
        experiment = reopen(run, settings, display.note)
        model = models.load(experiment.card, dtype=run.manifest.spec.dtype, device=experiment.device)
        done = read_with(display, run, experiment, model, stop, wanted, against)
    display.result(done.document, Table(done.said, [], [], [f"next: drift stats {run.paths.run_id}"]))


@dataclass(frozen=True)
class Done:
    """What was measured, for a program and for a person."""

    document: dict[str, Any]
    said: str


def read_with(
    display: Display,
    run: Run,
    experiment: Experiment,
    model: LoadedModel,
    stop: Stop,
    wanted: Sequence[Reading],
    against: str | None = None,
) -> Done:
    """The same with a model that is loaded already."""
    from drift_cli.measuring.same_replies import measure_run

    with display.progress(len(wanted), 0, "readings") as progress:
        made = measure_run(run, experiment.chat, model, wanted, step=progress.step, stop=stop)
    if made.interrupted:
        command = f"drift measure {run.paths.run_id} --same-replies" + ("" if against is None else f" --against {against}")
        have = made.readings + made.known
        display.note(
            f"stopped by {stop.signal_name}: {have} of {len(wanted)} readings are on disk. Go on with: {command}", kind="interrupted"
        )
        if display.as_json:
            display.result(
                {"run": run.paths.run_id, "interrupted": stop.signal_name, "read": have, "total": len(wanted), "resume": command}
            )
        raise typer.Exit(EXIT_INTERRUPTED)
    document = {"run": run.paths.run_id, "read": made.readings, "known": made.known, "beyond": made.beyond, "rounding": made.difference}
    said = f"the same replies under the other prompt: {made.readings} readings made, {made.known} known"
    if made.beyond:
        said += f"; {made.beyond} replies do not fit the context under the other prompt"
    if made.readings:
        said += f"; read under their own prompt, residual means differ from the stored ones by at most {made.difference:.1g} of their norm"
    return Done(document, said)
