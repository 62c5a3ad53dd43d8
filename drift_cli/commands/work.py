"""What `generate`, `resume`, `demo` and `work` share: prepare, say what was decided, run, and say how it ended."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import typer

from drift_cli.commands.context import warn_of_context
from drift_cli.display import Display, duration
from drift_cli.errors import EXIT_INTERRUPTED
from drift_cli.launch.plan import launcher_of
from drift_cli.running.interrupts import Stop
from drift_cli.settings.settings import Settings
from drift_cli.workers.leases import WorkerState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from drift_cli.engine.contract import Engine
    from drift_cli.models import LoadedModel
    from drift_cli.running.experiment import Experiment
    from drift_cli.running.runner import Outcome
    from drift_cli.spec import Transcript
    from drift_cli.store.manifest import Manifest
    from drift_cli.store.paths import Store
    from drift_cli.store.plan import Plan
    from drift_cli.store.run import Run
    from drift_cli.workers.share import Share


@dataclass(frozen=True)
class Work:
    """One call of a command that runs a model."""

    display: Display
    store: Store
    traces: bool = False
    """Measure every token of the replies once they are made, with the model that is loaded for making them."""
    gpus: int = 1
    """GPUs that the model is spread over."""
    same_replies: bool = False
    """Read the replies under the prompts that they are compared with once they are made."""
    plan: Plan | None = None
    """What is declared before there is data."""
    rule: str | None = None
    """What decides from the data when to stop, where something does: the run is extended in place, and the model stays loaded."""
    held: dict[str, tuple[LoadedModel, Engine]] = field(default_factory=dict)
    """By run: what was loaded, where it is kept for going on."""

    def start(self, settings: Settings, scripts: Sequence[Transcript] | None = None, *, dry_run: bool = False) -> Run | None:
        """Make the run that the settings name, or go on with it. Returns the run, None after a dry run; exits with 75 when interrupted.

        `scripts` are transcripts that come from no file; where given, the settings name none.
        """
        self.display.note(f"model: {settings.model} ({why(settings)})")
        with Stop() as stop:
            from drift_cli.running.continued import prepare_for

            experiment, existing = prepare_for(self.store, settings, scripts, self.display.note)
            return self._carry_out(experiment, existing, settings, stop, dry_run)

    def go_on(self, run: Run, settings: Settings, *, dry_run: bool = False) -> Run | None:
        """Go on with a run that exists."""
        self.display.note(f"model: {settings.model} (run {run.paths.run_id})")
        with Stop() as stop:
            from drift_cli.running.experiment import reopen

            return self._carry_out(reopen(run, settings, self.display.note), run, settings, stop, dry_run)

    def _carry_out(self, experiment: Experiment, existing: Run | None, settings: Settings, stop: Stop, dry_run: bool) -> Run | None:
        from drift_cli.running.runner import check_users

        check_users(experiment.manifest, {})
        for notice in experiment.notices:
            self.display.note(notice)
        self.warn_of_lacking(experiment)
        if dry_run:
            from drift_cli.running.making import foreseen, refuse_without_a_turn

            self._dry_run(experiment, existing, settings)
            refuse_without_a_turn(experiment, foreseen(experiment))
            return None
        warn_of_context(self.display, experiment)
        run = self.open(experiment)
        outcome = self._run(run, experiment, settings, stop)
        if outcome.interrupted:
            self.stopped(run, stop, outcome)
        if outcome.problems:
            raise outcome.problems[0]
        if outcome.others:
            self.shared(run, outcome)
        self.finished(run, outcome)
        return run

    def open(self, experiment: Experiment) -> Run:
        """Create the run or add to it; whatever contradicts the run on disk is refused here, before any weight is read."""
        from drift_cli.running.making import open_run

        return open_run(self.store, replace(experiment, manifest=self._planned(experiment.manifest)))

    def _planned(self, manifest: Manifest) -> Manifest:
        """The manifest with the plan. Raises `UsageError` where there is data already, or where the plan names what the run does not have."""
        from drift_cli.running.planned import planned

        return manifest if self.plan is None else planned(manifest, self.plan, self.store)

    def _run(self, run: Run, experiment: Experiment, settings: Settings, stop: Stop) -> Outcome:
        from drift_cli.running.runner import Outcome
        from drift_cli.workers.queue import correct_hints
        from drift_cli.workers.share import take_part

        states = run.states()
        correct_hints(run.paths, states)
        if all(state.ended for state in states):
            self.display.note(f"run {run.paths.run_id} is complete: nothing to do")
            if self.traces:
                self._trace(run, experiment, stop, None)
            if self.same_replies and run.paths.swapped_root.exists():
                self._read_again(run, experiment, stop, None)
            return Outcome(0, 0.0, interrupted=False)
        left = sum(state.total - state.done for state in states if not state.ended)
        self.display.note(f"run {run.paths.run_id}: {left} turns to do on {experiment.device} in {run.manifest.spec.dtype}")
        with take_part(run, launcher=launcher_of()) as share:
            share.turns = sum(state.total for state in states), sum(state.total if state.ended else state.done for state in states)
            return self._generate(Part(run, share, experiment, settings, stop), {"turns_left": left})

    def _generate(self, part: Part, facts: Mapping[str, Any]) -> Outcome:
        """Read the model and make turns, once there is something to be taken. `facts` are told with the event of the start."""
        from drift_cli.commands.progress import Shown
        from drift_cli.engine.contract import Stopped
        from drift_cli.running.machine import epoch_now
        from drift_cli.running.making import record_residuals
        from drift_cli.running.runner import Outcome, run_rollouts

        run, share, experiment, stop = part.run, part.share, part.experiment, part.stop
        queue = share.queue(run, 1)
        try:
            if not share.wait(self.display.note, queue, queue.is_open, stop):
                return Outcome(0, 0.0, interrupted=False, others=queue.others())
        except Stopped:
            return Outcome(0, 0.0, interrupted=True)
        share.presence.now(WorkerState.LOADING)
        model, engine = self._loaded(part)
        if (remark := record_residuals(run, model)) is not None:
            self.display.note(remark)
        run.begin(epoch_now(experiment.device, engine.name, engine.batch, self.gpus, run.manifest.spec.dtype))
        if not stop():
            run.event("start", **facts, epoch=run.epoch())
        with Shown(self.display) as shown:
            outcome = run_rollouts(
                run,
                engine,
                chat=experiment.chat,
                axis=experiment.axis,
                end_ids=experiment.card.end_ids,
                stop=shown.ticking(stop),
                tell=shown.tell,
                share=share,
            )
        kind = "interrupted" if outcome.interrupted else "left" if outcome.others else "done"
        run.event(kind, signal=stop.signal_name, turns=outcome.turns, seconds=round(outcome.seconds, 3), **self._named(share))
        if self.traces and kind == "done":
            self._trace(run, experiment, stop, model)
        if self.same_replies and kind == "done":
            self._read_again(run, experiment, stop, model)
        return outcome

    def _loaded(self, part: Part) -> tuple[LoadedModel, Engine]:
        """The model and its engine, kept where the run is to be gone on with."""
        from drift_cli.running.loading import load

        run_id = part.run.paths.run_id
        found = self.held.get(run_id) or load(part.run, part.experiment, part.settings, self.display.note, gpus=self.gpus)
        if self.rule is not None:
            self.held[run_id] = found
        return found

    def _named(self, share: Share) -> dict[str, str]:
        """What events say of this worker, beyond its host and process."""
        return {}

    def _trace(self, run: Run, experiment: Experiment, stop: Stop, model: LoadedModel | None) -> None:
        from drift_cli import models
        from drift_cli.commands.traces import trace_with

        loaded = model or models.load(experiment.card, dtype=run.manifest.spec.dtype, device=experiment.device)
        done = trace_with(self.display, run, experiment, loaded, stop)
        self.display.note(done.said)

    def _read_again(self, run: Run, experiment: Experiment, stop: Stop, model: LoadedModel | None) -> None:
        """Read what is missing of the replies under the other prompt; the weights are read only where something is."""
        from drift_cli import models
        from drift_cli.commands.same_replies import read_with
        from drift_cli.measuring.same_replies import missing

        wanted = missing(run)
        if not wanted:
            return
        loaded = model or models.load(experiment.card, dtype=run.manifest.spec.dtype, device=experiment.device)
        self.display.note(read_with(self.display, run, experiment, loaded, stop, wanted).said)

    def stopped(self, run: Run, stop: Stop, outcome: Outcome) -> None:
        """Say how far a run is that was asked to stop, and leave."""
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

    def shared(self, run: Run, outcome: Outcome) -> None:
        """Say that others are still at what is left, and leave as one does who is to come again."""
        number = sum(outcome.others.values())
        self.display.note(
            f"{outcome.turns} turns made in {duration(outcome.seconds)}; {number} rollouts are still at work elsewhere: {self._others(run, outcome)}. "
            f"See how they do: drift runs watch {run.paths.run_id}. Go on, should they stop: {self.resume_command(run)}"
        )
        if self.display.as_json:
            self.display.result(
                {"run": run.paths.run_id, "turns": outcome.turns, "others": dict(outcome.others), "resume": self.resume_command(run)}
            )
        raise typer.Exit(EXIT_INTERRUPTED)

    def _others(self, run: Run, outcome: Outcome) -> str:
        """Who is at what is left, in words."""
        from drift_cli.workers.leases import read_worker

        found = [read_worker(run.paths, worker) if worker else None for worker in outcome.others]
        named = [str(worker) for worker in found if worker is not None]
        return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "") or "in another process"

    def resume_command(self, run: Run) -> str:
        """The line that goes on with a run that was interrupted."""
        from drift_cli.settings.config import home

        line = f"drift resume {run.paths.run_id}"
        return line if self.store.root == home() / "checkpoints" else f"{line} --store {shlex.quote(str(self.store.root))}"

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Say what became of a run that is done."""
        from drift_cli.commands.said import ended, said_of

        self.display.result(*ended(run, outcome, [] if self.display.as_json else said_of(run, self.rule)))

    def warn_of_lacking(self, experiment: Experiment) -> None:
        """Say, before anything is computed, what will be missing for statistics and pictures."""
        for sentence in self.lacking(experiment):
            self.display.note(f"WARNING: {sentence}", kind="warning")

    def lacking(self, experiment: Experiment) -> Sequence[str]:
        """What statistics and pictures will lack, one sentence each."""
        return experiment.lacking

    def _dry_run(self, experiment: Experiment, existing: Run | None, settings: Settings) -> None:
        from drift_cli.commands.dry_run import dry_run
        from drift_cli.engine.choice import rows

        batch = rows(settings.batch, experiment.device)
        dry_run(self.display, self.store, replace(experiment, lacking=tuple(self.lacking(experiment))), existing, settings.engine, batch)


@dataclass(frozen=True)
class Part:
    """What it takes to take part in a run."""

    run: Run
    share: Share
    experiment: Experiment
    settings: Settings
    stop: Stop


def why(settings: Settings) -> str:
    """Why this model: where it was named, or that nobody named one."""
    if settings.model == "demo" and settings.origin("preset") == "default":
        return "built-in, as no --model, DRIFT_MODEL or drift.toml names another"
    return settings.origin("model")
