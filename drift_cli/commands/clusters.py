"""`drift launch` on SLURM and on Ray: their options, and what is said."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

from typer import Option

from drift_cli.display import Display, Table
from drift_cli.errors import DriftError, UsageError
from drift_cli.launch.local import threads
from drift_cli.launch.plan import Launcher, Plan
from drift_cli.launch.slurm import Request, check_here, script, submit
from drift_cli.store.paths import RunPaths, Store

if TYPE_CHECKING:
    from drift_cli.launch.ray import Workers
    from drift_cli.store.run import Run

_Text = str | None
_Lines = list[str] | None


@dataclass(frozen=True)
class ClusterOptions:
    """What SLURM and Ray are asked for: the options of `drift launch` that are theirs."""

    partition: Annotated[_Text, Option("--partition", help="SLURM: the partition.")] = None
    time: Annotated[
        _Text, Option("--time", help="SLURM: the time limit of a job, after which it is queued again: 90, 12:00:00, 1-00:00:00.")
    ] = None
    gres: Annotated[_Text, Option("--gres", help="SLURM: GPUs by name, such as gpu:a100:1.")] = None
    constraint: Annotated[_Text, Option("--constraint", help="SLURM: features that nodes must have.")] = None
    account: Annotated[_Text, Option("--account", help="SLURM: the account to charge.")] = None
    qos: Annotated[_Text, Option("--qos", help="SLURM: the quality of service.")] = None
    cpus_per_worker: Annotated[int | None, Option("--cpus-per-worker", help="SLURM: CPUs of each worker.")] = None
    memory: Annotated[_Text, Option("--mem", help="SLURM: memory of each worker, such as 64G.")] = None
    max_parallel: Annotated[int | None, Option("--max-parallel", help="SLURM: workers that run at the same time.")] = None
    setup: Annotated[_Lines, Option("--setup", help="SLURM: a line of shell before the worker; repeat for several.")] = None
    sbatch: Annotated[_Lines, Option("--sbatch", help="SLURM: another option of sbatch, KEY=VALUE; repeat for several.")] = None
    ray_address: Annotated[
        _Text, Option("--ray-address", help="Ray: the address of a cluster (default: start a private one on this machine).")
    ] = None

    @property
    def request(self) -> Request:
        """What is SLURM's of it."""
        names = (self.partition, self.time, self.gres, self.constraint, self.account, self.qos)
        return Request(*names, self.cpus_per_worker, self.memory, self.max_parallel, tuple(self.setup or ()), tuple(self.sbatch or ()))


def refuse_misplaced(launcher: Launcher, workers: int | None, asked: ClusterOptions) -> None:
    """Raise `UsageError` for options of a launcher other than the one that was chosen, or where a cluster is not told how many workers it gets."""
    if launcher is not Launcher.SLURM and asked.request != Request():
        raise UsageError(f"options for SLURM were given to --launcher {launcher.value}", mend="Add --launcher slurm, or leave them out.")
    if launcher is not Launcher.RAY and asked.ray_address is not None:
        raise UsageError(f"--ray-address was given to --launcher {launcher.value}", mend="Add --launcher ray, or leave it out.")
    if launcher is not Launcher.LOCAL and workers is None:
        raise UsageError(f"--launcher {launcher.value} needs to know how many workers to start", mend="Add --workers N.")


def refuse_impossible(launcher: Launcher, plan: Plan, request: Request, store: Store, *, dry_run: bool) -> None:
    """Raise `DriftError` where what a launcher needs is not there, `UsageError` where a batch script cannot hold what was asked for."""
    if launcher is Launcher.SLURM:
        script(plan, request, plan.store, store.logs("checked").absolute())
        if not dry_run:
            check_here()
    elif launcher is Launcher.RAY and find_spec("ray") is None:
        raise DriftError("Ray is not installed", mend="pip install 'drift-cli[ray]'")


def on_slurm(display: Display, store: Store, plan: Plan, request: Request, run: Run | None) -> None:
    """Submit the workers; without `run` (a dry run), show the plan and the batch script."""
    folder, logs = store.run(plan.run_id).root.absolute(), store.logs(plan.run_id).absolute()
    request = _with_threads(plan, request, store.run(plan.run_id))
    if run is None:
        text = script(plan, request, folder, logs)
        document = {"run": plan.run_id, "workers": plan.workers, "gpus_per_worker": plan.gpus_per_worker, "logs": str(logs), "script": text}
        display.result(document, _table(plan, request, [f"logs: {logs}", "the batch script:"]), text)
        return
    states = run.states()
    left = sum(state.total - state.done for state in states if not state.ended)
    if not left:
        display.note(f"run {plan.run_id} is complete: nothing to do")
        return
    submitted = submit(plan, request, folder, logs)
    run.event("launch", launcher="slurm", job=submitted.job, workers=plan.workers, turns_left=left)
    at = "" if plan.store == _default_store() else f" --store {shlex.quote(str(plan.store))}"
    notes = [
        f"logs: {logs / f'{submitted.job}_*.out'}",
        f"look on: drift runs watch {plan.run_id}{at}   squeue -j {submitted.job}",
        f"end it: scancel {submitted.job}   go on after that: the same line again",
    ]
    document = {"run": plan.run_id, "job": submitted.job, "workers": plan.workers, "turns_left": left, "logs": str(logs)}
    table = _table(plan, request, [f"SLURM has job {submitted.job}: {plan.workers} workers for {left} turns", *notes])
    display.result(document, table)


@contextmanager
def on_ray(plan: Plan, paths: RunPaths, tell: Callable[[str], None], address: str | None) -> Iterator[Workers]:
    """The workers on Ray, while it is there."""
    from drift_cli.launch.ray import Workers, cluster

    tell("starting a private Ray on this machine" if address is None else f"joining the Ray cluster at {address}")
    with cluster(plan, address) as ray:
        here = ray.cluster_resources()
        if (gpus := plan.gpus_per_worker * plan.workers) > here.get("GPU", 0):
            tell(
                f"the cluster has {here.get('GPU', 0):g} GPUs now, and all {plan.workers} workers need {gpus}: some wait until there is room"
            )
        yield Workers(ray, plan, paths, tell)


def _with_threads(plan: Plan, request: Request, paths: RunPaths) -> Request:
    """On a CPU, bits depend on the number of threads: all workers are told the same, those that the run was begun with, or as many as they have CPUs."""
    if plan.gpus_per_worker or "OMP_NUM_THREADS" in os.environ:  # sbatch hands the environment on
        return request
    cores = os.cpu_count() or 1
    number = threads(paths, max(1, cores // (request.cpus or 1)))
    return replace(request, setup=(f"export OMP_NUM_THREADS={number}", *request.setup))


def _default_store() -> object:
    from drift_cli.settings.config import home

    return (home() / "checkpoints").absolute()


def _table(plan: Plan, request: Request, notes: list[str]) -> Table:
    asked = [part for part in (request.partition, request.qos, request.constraint) if part]
    row = [
        str(plan.workers),
        request.gres or str(plan.gpus_per_worker or "—"),
        str(request.at_once or "all"),
        request.time or "the partition's",
        ", ".join(asked) or "the default",
    ]
    return Table(f"Launch {plan.run_id}", ["workers>", "GPUs each>", "at a time>", "time limit>", "where"], [row], [*notes])
