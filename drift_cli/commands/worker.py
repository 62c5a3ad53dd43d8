"""`drift work`: one worker of a run, as launchers start it: takes rollouts that nobody is at until none is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from drift_cli.commands.flags import MOVED, Flags, with_settings
from drift_cli.commands.options import Common, RunArgument
from drift_cli.commands.work import Part, Work
from drift_cli.display import duration
from drift_cli.errors import EXIT_INTERRUPTED, UsageError
from drift_cli.launch.plan import launcher_of
from drift_cli.workers.leases import LEASE, check_lease

if TYPE_CHECKING:
    from drift_cli.running.experiment import Experiment
    from drift_cli.running.interrupts import Stop
    from drift_cli.running.runner import Outcome
    from drift_cli.settings.settings import Settings
    from drift_cli.store.run import Run
    from drift_cli.workers.share import Share

LeaseOption = Annotated[
    float | None,
    Option(
        "--lease",
        help=f"Seconds without a heartbeat after which this worker is taken to be gone (default: {LEASE:g}).",
        show_default=False,
    ),
]


@with_settings("device", "batch", "engine", "model", "adapter", **MOVED)
def work(
    flags: Flags,
    run: RunArgument = None,
    worker: Annotated[
        str | None, Option("--worker", help="The worker's id (default: host, process and some digits).", show_default=False)
    ] = None,
    gpus: Annotated[int, Option("--gpus", help="Spread the model over so many GPUs.")] = 1,
    lease: LeaseOption = None,
    among: Annotated[
        int,
        Option("--among", help="Workers started together with this one: while they come, it leaves them their share of the rollouts."),
    ] = 1,
    *,
    common: Common,
) -> None:
    """Work on a run together with others.

    Takes rollouts that nobody is at, until none is left, from any machine that sees the run's folder. Start as many as there are GPUs, at any time; stop or
    kill any of them. `drift launch` starts them for you.

    Example: drift work demo-1a2b3c4d --device cuda:1
    """
    from drift_cli.running.experiment import settings_of

    if gpus < 1:
        raise UsageError(f"--gpus is {gpus}", mend="Use at least 1.")
    if among < 1:
        raise UsageError(f"--among is {among}", mend="Use the number of workers, this one included: at least 1.")
    check_lease(LEASE if lease is None else lease)
    found = common.open(run)
    settings = settings_of(found.manifest).given(flags)
    shown = common.show()
    seconds = LEASE if lease is None else lease
    Working(shown, common.folder(), gpus=gpus, worker=worker, lease=seconds, among=among).go_on(found, settings)


@dataclass(frozen=True)
class Working(Work):
    """Work as one of many."""

    worker: str | None = None
    lease: float = LEASE
    among: int = 1

    def _run(self, run: Run, experiment: Experiment, settings: Settings, stop: Stop) -> Outcome:
        from drift_cli.workers.share import take_part

        with take_part(run, self.worker, lease=self.lease, launcher=launcher_of(), shuffled=True, among=self.among) as share:
            self.display.note(f"worker {share.presence.id} on {experiment.device} in {run.manifest.spec.dtype}")
            return self._generate(Part(run, share, experiment, settings, stop), self._named(share))

    def _named(self, share: Share) -> dict[str, str]:
        return {"worker": share.presence.id}

    def stopped(self, run: Run, stop: Stop, outcome: Outcome) -> None:
        """Say so and leave, at once: how far the whole run is takes a while to find out, and whoever stops a worker may not give it that long."""
        self.display.note(
            f"stopped by {stop.signal_name}: {outcome.turns} turns made; what was held is free for others", kind="interrupted"
        )
        if self.display.as_json:
            self.display.result({"run": run.paths.run_id, "interrupted": stop.signal_name, "turns": outcome.turns})
        raise typer.Exit(EXIT_INTERRUPTED)

    def shared(self, run: Run, outcome: Outcome) -> None:
        """Others are at what is left: this worker's part is done."""
        number = sum(outcome.others.values())
        self.display.note(f"{number} rollouts are still at work elsewhere: {self._others(run, outcome)}")

    def finished(self, run: Run, outcome: Outcome) -> None:
        """A line: what the run has come to is not this worker's to say."""
        left = sum(outcome.others.values())
        document = {"run": run.paths.run_id, "turns": outcome.turns, "seconds": round(outcome.seconds, 3), "rollouts_at_others": left}
        rest = "nothing is left to take" if left else "the run is complete"
        self.display.result(document, f"{outcome.turns} turns made in {duration(outcome.seconds)}; {rest}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(work)
