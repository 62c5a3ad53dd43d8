"""`drift launch`: make a run, or take one that exists, and start workers on it."""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from drift_cli.commands import clusters
from drift_cli.commands.context import warn_of_context
from drift_cli.commands.flags import Flags, with_settings
from drift_cli.commands.generate import generate, settings_from
from drift_cli.commands.options import Common, DryRunOption
from drift_cli.commands.work import Work, why
from drift_cli.commands.worker import LeaseOption
from drift_cli.display import Display, Progress, Table
from drift_cli.errors import EXIT_INTERRUPTED, DriftError, UsageError
from drift_cli.launch.local import Workers, check_gpus, threads, visible_gpus
from drift_cli.launch.plan import Crew, Finished, Launcher, Plan, worker_command
from drift_cli.running.interrupts import Stop
from drift_cli.settings.settings import DtypeChoice, EngineChoice, Settings, keys
from drift_cli.workers.leases import LEASE, check_lease, forget_workers

if TYPE_CHECKING:
    from drift_cli.running.runner import Outcome
    from drift_cli.store.paths import RunPaths
    from drift_cli.store.run import Run


EngineOption = Annotated[
    str | None,
    Option(
        "--engine",
        help=keys()["engine"].help,
        metavar=f"<{'|'.join(EngineChoice)}>",
        autocompletion=lambda: list(EngineChoice),
        show_default=False,
    ),
]


@with_settings("device", "batch")
def launch(
    flags: Flags,
    context: typer.Context,
    launcher: Annotated[Launcher, Option("--launcher", help="What starts the workers.")] = Launcher.LOCAL,
    workers: Annotated[int | None, Option("--workers", help="How many (default: as many as this machine has GPUs for).")] = None,
    gpus_per_worker: Annotated[
        int | None, Option("--gpus-per-worker", help="GPUs of each worker; with more than one, the model is spread over them.")
    ] = None,
    engine: EngineOption = None,
    lease: LeaseOption = None,
    *,
    asked: clusters.ClusterOptions,
    dry_run: DryRunOption = False,
    common: Common,
) -> None:
    """Make a run with many workers.

    drift launch [OPTIONS] RUN works on a run that exists; drift launch [OPTIONS] with any options of `drift generate` makes the run first, or adds to it. Each
    worker is a `drift work`: it loads the model once and takes rollouts that nobody is at until none is left. Workers may be killed, and others started, at any
    time; the run's files come out the same.

    Example: drift launch --workers 8 --model org/model --transcript lonely --samples 64
    """
    _refuse_launcher(engine)
    clusters.refuse_misplaced(launcher, workers, asked)
    device, batch = flags["device"], flags["batch"]
    gpus = _gpus(launcher is Launcher.LOCAL or (launcher is Launcher.RAY and asked.ray_address is None), gpus_per_worker, device)
    number = workers if workers is not None else _as_many_as_fit(gpus)
    if launcher is Launcher.LOCAL:
        check_gpus(number, gpus)
    check_lease(LEASE if lease is None else lease)
    used, where = device if gpus or device else "cpu", common.folder()
    plan = Plan("checked", where.root.absolute(), number, gpus, used, batch, engine, lease)
    clusters.refuse_impossible(launcher, plan, asked.request, where, dry_run=dry_run)  # before a run is made for it
    work = Launching(common.show(), where, on_gpus=gpus > 0)
    with Stop() as stop:
        run_id, run = work.prepared(context.args, {"engine": engine, "batch": batch}, dry_run=dry_run)
        _start(work, launcher, replace(plan, run_id=run_id), asked, run, stop)


def _start(work: Launching, launcher: Launcher, plan: Plan, asked: clusters.ClusterOptions, run: Run | None, stop: Stop) -> None:
    """Start the workers and wait for them, or, on SLURM, submit them; without `run` (a dry run), show the plan."""
    paths, shown = work.store.run(plan.run_id), work.display
    if launcher is Launcher.SLURM:
        clusters.on_slurm(shown, work.store, plan, asked.request, run)
        return
    crew = clusters.on_ray(plan, paths, shown.note, asked.ray_address) if launcher is Launcher.RAY else _here(plan, paths, shown)
    if run is None:
        _show_plan(shown, launcher, plan)
    else:
        _carry_out(shown, work, run, (launcher, plan, crew), stop)


def _here(plan: Plan, paths: RunPaths, shown: Display) -> AbstractContextManager[Crew]:
    """The workers on this machine; `UsageError` where it has too few GPUs for them."""
    return nullcontext(Workers(plan, paths, shown.note))


def _gpus(here: bool, asked: int | None, device: str | None) -> int:
    """GPUs per worker: as asked, else one where there are any to be had, as is taken for granted of a cluster."""
    if asked is not None:
        return asked
    return 0 if device == "cpu" or (here and not visible_gpus()) else 1


def _as_many_as_fit(gpus: int) -> int:
    return max(1, len(visible_gpus()) // gpus) if gpus else 1


@dataclass(frozen=True)
class Launching(Work):
    """Everything of a run but the work."""

    on_gpus: bool = False
    """Whether workers have GPUs."""

    def prepared(self, rest: Sequence[str], own: dict[str, Any], *, dry_run: bool) -> tuple[str, Run | None]:
        """The run that the rest of the line names or describes, made unless this is a dry run; and its id."""
        from drift_cli.running.continued import prepare_for
        from drift_cli.running.experiment import reopen, settings_of
        from drift_cli.store.run import Run

        if rest and not rest[0].startswith("-"):
            if rest[1:]:
                raise UsageError(
                    f"{rest[1]}: a run that exists takes no options of generate",
                    mend="Leave RUN out to add to a run: the same settings name it.",
                )
            run = Run.open(self.store, rest[0])
            settings = self._as_workers_see_it(settings_of(run.manifest).given(own))
            experiment = reopen(run, settings, self.display.note)
        else:
            settings = self._as_workers_see_it(_settings(rest, own))
            self.display.note(f"model: {settings.model} ({why(settings)})")
            experiment, _ = prepare_for(self.store, settings, say=self.display.note)
        for notice in experiment.notices:
            self.display.note(notice)
        self.warn_of_lacking(experiment)
        warn_of_context(self.display, experiment)
        return experiment.manifest.spec.id, None if dry_run else self.open(experiment)

    def _as_workers_see_it(self, settings: Settings) -> Settings:
        """Settings that mean here what they mean on a worker's machine: this one may be without GPUs where workers have some, or have some they do not use."""
        import torch

        if torch.cuda.is_available() or not self.on_gpus:
            device = "auto" if self.on_gpus or not torch.cuda.is_available() else "cpu"
            return replace(settings, device=device)
        if settings.dtype is DtypeChoice.AUTO:
            settings = settings.changed("drift launch: workers have GPUs", dtype=DtypeChoice.BFLOAT16)
        return replace(settings, device="auto")


def _refuse_launcher(engine: str | None) -> None:
    """Refuse a launcher in the place of an engine: earlier versions called it so."""
    if engine in tuple(Launcher):
        raise UsageError(f"--engine {engine}: no engine has this name", mend=f"What starts the workers is --launcher {engine}.")


def _settings(rest: Sequence[str], own: Mapping[str, Any]) -> Settings:
    """The settings that options of `drift generate` ask for. Its own parser reads them, and refuses what it does not know."""

    @functools.wraps(generate)
    def collect(**options: Any) -> dict[str, Any]:
        return options

    parser = typer.Typer(add_completion=False, rich_markup_mode=None)
    parser.command("launch")(collect)
    command = typer.main.get_command(parser)
    with command.make_context("drift launch", list(rest)) as context:
        made: dict[str, Any] = command.invoke(context)
    flags = {**{name: made[name] for name in keys()}, **own}
    return settings_from(flags, made["condition"] or (), made["system"], made["placement"], made["config"])


def _show_plan(shown: Display, launcher: Launcher, plan: Plan) -> None:
    """The plan of a dry run."""
    commands = [shlex.join(worker_command(plan, f"{launcher.value}-{number}")) for number in range(plan.workers)]
    document = {"run": plan.run_id, "workers": plan.workers, "gpus_per_worker": plan.gpus_per_worker, "commands": commands}
    shown.result(document, Table(f"Launch {plan.run_id}", ["worker>", "GPUs>"], _rows(launcher, plan), ["each runs:", f"  {commands[0]}"]))


def _rows(launcher: Launcher, plan: Plan) -> list[list[str]]:
    if launcher is Launcher.RAY:  # which ones is for Ray to say
        return [[str(number), str(plan.gpus_per_worker or "—")] for number in range(plan.workers)]
    gpus = visible_gpus() if plan.gpus_per_worker else []
    each = plan.gpus_per_worker
    return [[str(number), ", ".join(gpus[number * each : (number + 1) * each]) or "—"] for number in range(plan.workers)]


def _carry_out(shown: Display, work: Launching, run: Run, what: tuple[Launcher, Plan, AbstractContextManager[Crew]], stop: Stop) -> None:
    """Start the workers, show how far they are, and say how it ended."""
    launcher, plan, crew = what
    from drift_cli.running.runner import Outcome

    states = run.states()
    total, done = sum(state.total for state in states), sum(state.total if state.ended else state.done for state in states)
    if all(state.ended for state in states):
        shown.note(f"run {plan.run_id} is complete: nothing to do")
        return
    cores = f", {threads(run.paths, plan.workers)} threads each" if launcher is Launcher.LOCAL and not plan.gpus_per_worker else ""
    shown.note(
        f"run {plan.run_id}: {total - done} turns to do, {plan.workers} workers{cores}; look on with: drift runs watch {plan.run_id}"
    )
    run.event("launch", launcher=launcher.value, workers=plan.workers, turns_left=total - done)
    started = time.monotonic()
    with crew as workers, shown.progress(total, done) as progress:
        finished = workers.run(stop, _Look(run, progress))
    forget_workers(run.paths)
    _end(shown, work, run, finished, Outcome(_done(run) - done, time.monotonic() - started, finished.interrupted), stop)


def _done(run: Run) -> int:
    return sum(state.done for state in run.states())


@dataclass
class _Look:
    """Shows how far a run is, from its files, and spends a twentieth of the time on that at most."""

    run: Run
    progress: Progress
    due: float = 0.0

    def __call__(self) -> None:
        """Look, if it is time to."""
        if (now := time.monotonic()) >= self.due:
            self.progress.reach(sum(state.total if state.ended else state.done for state in self.run.states()))
            self.due = time.monotonic() + max(1.0, 20 * (time.monotonic() - now))
        self.progress.tick()


def _end(shown: Display, work: Launching, run: Run, finished: Finished, outcome: Outcome, stop: Stop) -> None:
    states = run.states()
    done, total = sum(state.done for state in states), sum(state.total for state in states)
    if all(state.ended for state in states):
        work.finished(run, outcome)
        return
    if finished.failed:
        raise DriftError(
            f"{len(finished.failed)} of the workers failed again and again: {done} of {total} turns are on disk",
            mend=f"See what they said: {', '.join(finished.failed)}. Then run the same line again.",
        )
    why_not = f"stopped by {stop.signal_name}" if finished.interrupted else "what is left is in the hands of others"
    shown.note(f"{why_not}: {done} of {total} turns are on disk. Go on with the same line", kind="interrupted")
    raise typer.Exit(EXIT_INTERRUPTED)


def register(app: typer.Typer) -> None:
    """Add the command."""
    taken = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(context_settings=taken, options_metavar="[OPTIONS] [RUN | OPTIONS OF GENERATE]")(launch)
