"""What `generate`, `resume` and `demo` share: prepare, say what was decided, run, and say how it ended."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from drift_cli import __version__
from drift_cli.config import Settings
from drift_cli.display import Display, Table, duration
from drift_cli.errors import EXIT_INTERRUPTED
from drift_cli.interrupts import Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drift_cli.engine.contract import Engine
    from drift_cli.experiment import Experiment
    from drift_cli.models import LoadedModel
    from drift_cli.runner import Outcome
    from drift_cli.spec import Transcript
    from drift_cli.store.manifest import Epoch
    from drift_cli.store.paths import Store
    from drift_cli.store.run import Run


@dataclass(frozen=True)
class Work:
    """One call of a command that runs a model."""

    display: Display
    store: Store
    traces: bool = False
    """Measure every token of the replies once they are made, with the model that is loaded for making them."""

    def start(self, settings: Settings, scripts: Sequence[Transcript] | None = None, *, dry_run: bool = False) -> Run | None:
        """Make the run that the settings name, or go on with it. Returns the run, None after a dry run; exits with 75 when interrupted.

        `scripts` are transcripts that come from no file; where given, the settings name none.
        """
        self.display.note(f"model: {settings['model']} ({_why(settings)})")
        with Stop() as stop:
            from drift_cli.experiment import prepare
            from drift_cli.store.run import Run

            experiment = prepare(settings, scripts)
            run_id = experiment.manifest.spec.id
            existing = Run.open(self.store, run_id) if run_id in self.store.run_ids() else None
            return self._carry_out(experiment, existing, settings, stop, dry_run)

    def go_on(self, run: Run, settings: Settings, *, dry_run: bool = False) -> Run | None:
        """Go on with a run that exists."""
        self.display.note(f"model: {settings['model']} (run {run.paths.run_id})")
        with Stop() as stop:
            from drift_cli.experiment import reopen

            return self._carry_out(reopen(run, settings), run, settings, stop, dry_run)

    def _carry_out(self, experiment: Experiment, existing: Run | None, settings: Settings, stop: Stop, dry_run: bool) -> Run | None:
        for notice in experiment.notices:
            self.display.note(notice)
        if dry_run:
            self._foretell(experiment, existing, settings)
            return None
        run = self._open(experiment)
        self._warn_of_context(experiment)
        outcome = self._run(run, experiment, settings, stop)
        if outcome.interrupted:
            self._stopped(run, stop, outcome)
        self.finished(run, outcome)
        return run

    def _open(self, experiment: Experiment) -> Run:
        """Create the run or add to it; whatever contradicts the run on disk is refused here, before any weight is read."""
        from drift_cli.axes import save
        from drift_cli.store.run import Run

        run = Run.create(self.store, experiment.manifest)
        if experiment.axis is not None and not run.paths.axis(experiment.axis.name).exists():
            save(experiment.axis, run.paths.axis(experiment.axis.name))
        return run

    def _run(self, run: Run, experiment: Experiment, settings: Settings, stop: Stop) -> Outcome:
        from drift_cli.runner import Outcome, run_rollouts

        states = run.states()
        if all(state.ended for state in states):
            self.display.note(f"run {run.paths.run_id} is complete: nothing to do")
            if self.traces:
                self._trace(run, experiment, stop, None)
            return Outcome(0, 0.0, interrupted=False)
        from drift_cli import models
        from drift_cli.engine.choice import choose, rows
        from drift_cli.estimate import fits, longest

        spec = run.manifest.spec
        left = sum(state.total - state.done for state in states if not state.ended)
        self.display.note(f"run {run.paths.run_id}: {left} turns to do on {experiment.device} in {spec.dtype}")
        model = models.load(experiment.card, dtype=spec.dtype, device=experiment.device)
        engine, said = choose(
            settings["engine"],
            model,
            layers=run.manifest.layers,
            filters=spec.sampling,
            max_new_tokens=spec.max_new_tokens,
            batch=rows(settings["batch"], experiment.device),
            longest=longest(run.manifest, fits(run.manifest, experiment.chat, experiment.card.context), experiment.card.context),
        )
        if said is not None:
            self.display.note(said)
        run.update(replace(run.manifest, epochs=(_epoch(experiment.device, engine),)))
        if not stop():
            run.event("start", turns_left=left, epoch=run.epoch())
        outcome = run_rollouts(
            run, engine, chat=experiment.chat, axis=experiment.axis, end_ids=experiment.card.end_ids, display=self.display, stop=stop
        )
        kind = "interrupted" if outcome.interrupted else "done"
        run.event(kind, signal=stop.signal_name, turns=outcome.turns, seconds=round(outcome.seconds, 3))
        if self.traces and not outcome.interrupted:
            self._trace(run, experiment, stop, model)
        return outcome

    def _trace(self, run: Run, experiment: Experiment, stop: Stop, model: LoadedModel | None) -> None:
        from drift_cli import models
        from drift_cli.commands.traces import trace_with

        loaded = model or models.load(experiment.card, dtype=run.manifest.spec.dtype, device=experiment.device)
        done = trace_with(self.display, run, experiment, loaded, stop)
        self.display.note(done.said)

    def _stopped(self, run: Run, stop: Stop, outcome: Outcome) -> None:
        command = self.resume_command(run)
        states = run.states()
        done, total = sum(state.done for state in states), sum(state.total for state in states)
        self.display.note(f"stopped by {stop.signal_name}: {done} of {total} turns are on disk. Go on with: {command}", kind="interrupted")
        document = {
            "run": run.paths.run_id,
            "interrupted": stop.signal_name,
            "turns": outcome.turns,
            "done": done,
            "total": total,
            "resume": command,
        }
        if self.display.as_json:
            self.display.result(document)
        raise typer.Exit(EXIT_INTERRUPTED)

    def resume_command(self, run: Run) -> str:
        """The line that goes on with a run that was interrupted."""
        from drift_cli.config import home

        line = f"drift resume {run.paths.run_id}"
        return line if self.store.root == home() / "checkpoints" else f"{line} --store {shlex.quote(str(self.store.root))}"

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Say what became of a run that is done."""
        states = run.states()
        rows, cells = [], []
        for plan in run.manifest.cells:
            mine = [state for state in states if state.rollout.cell == plan.cell]
            complete, turns = sum(state.complete for state in mine), sum(state.done for state in mine)
            short = sum(state.ended and not state.complete for state in mine)
            rows.append([str(plan.cell), f"{complete}/{len(mine)}", str(turns), str(short) if short else ""])
            cells.append({"cell": str(plan.cell), "complete": complete, "planned": len(mine), "turns": turns, "ended_for_context": short})
        notes = [
            f"{outcome.turns} turns made in {duration(outcome.seconds)}",
            f"next: drift stats {run.paths.run_id}   drift plot {run.paths.run_id}",
        ]
        table = Table(f"Run {run.paths.run_id}", ["cell", "complete>", "turns>", "ended for context>"], rows, notes)
        self.display.result({"run": run.paths.run_id, "turns": outcome.turns, "seconds": round(outcome.seconds, 3), "cells": cells}, table)

    def _warn_of_context(self, experiment: Experiment) -> None:
        from drift_cli.estimate import fits

        for fit in fits(experiment.manifest, experiment.chat, experiment.card.context):
            if fit.certain is not None:
                self.display.note(
                    f"{fit.cell} will end before turn {fit.certain}: the context of {experiment.card.context} tokens is too short"
                )
            elif fit.possible is not None:
                self.display.note(
                    f"{fit.cell} may end before turn {fit.possible} if replies are long: context {experiment.card.context} tokens"
                )

    def _foretell(self, experiment: Experiment, existing: Run | None, settings: Settings) -> None:
        from drift_cli.commands.foretell import foretell
        from drift_cli.engine.choice import rows

        batch = rows(settings["batch"], experiment.device)
        foretell(self.display, self.store, experiment, existing, settings["engine"], batch)


def _why(settings: Settings) -> str:
    """Why this model: where it was named, or that nobody named one."""
    if settings["model"] == "demo" and settings.origin("preset") == "default":
        return "built-in, as no --model, DRIFT_MODEL or drift.toml names another"
    return settings.origin("model")


def _epoch(device: str, engine: Engine) -> Epoch:
    """What the software and the device are now."""
    from importlib.metadata import version

    import torch

    from drift_cli.store.manifest import Epoch

    names = ("torch", "transformers", "tokenizers", "numpy")
    versions: dict[str, Any] = {"drift": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}
    on_gpu = device.startswith("cuda")
    named = torch.cuda.get_device_name(device) if on_gpu else f"cpu ({torch.get_num_threads()} threads)"
    return Epoch(versions, named, engine.name, engine.batch)
