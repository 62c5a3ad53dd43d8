"""Workers as Ray tasks (`pip install 'drift-cli[ray]'`): on a cluster that is named by its address, or on a private one of this machine.

A task runs a worker's command line as a process of its own and returns its exit status. Ray finds it a node with as many GPUs as it needs and shows it those
alone. Where a node is lost, or a worker ends without being done, its task is given to Ray again, unless that happens again and again and nothing is committed
in between. What the lost worker held is taken over by the others (see `workers.claims`), so a loss costs the turns that were in progress.

The private cluster listens on the loopback interface only, with a token of its own and in a folder of its own; RAY_ADDRESS is not looked at, so that nobody's
cluster is joined by accident. No usage statistics are sent.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift_cli.errors import EXIT_INTERRUPTED, DriftError
from drift_cli.launch.local import threads
from drift_cli.launch.plan import LAUNCHER, MOST_LOSSES, Finished, Plan, worker_command
from drift_cli.launch.tied import tied
from drift_cli.store.paths import RunPaths
from drift_cli.workers.leases import read_workers

_GRACE = 20.0
"""Seconds that a worker has to stop. It needs two."""
_LOOK = 0.5
"""Seconds between two looks at the tasks."""
_SOCKET_ROOM = 40
"""Characters of a folder's name that leave room for Ray's sockets, whose whole name has 107 at most (unix(7))."""


def work_on_node(command: tuple[str, ...], log: str, environment: Mapping[str, str]) -> int:
    """What a Ray task does, on whatever node: run a worker, say how it ended. Asked to stop, it stops the worker first."""
    # Ray asks with KeyboardInterrupt, which never comes where SIGINT is ignored: it is for whatever a shell has put in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:  # noqa: PTH123 (kept open for the child)
        child = subprocess.Popen(tied(command), stdout=stream, stderr=stream, env={**os.environ, **environment})
        try:
            while True:  # in small steps: Ray asks a task to stop between two of Python's, and does not interrupt a system call for it
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(_LOOK)
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                try:
                    child.wait(_GRACE)
                except subprocess.TimeoutExpired:
                    child.kill()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray catches SIGTERM for itself when it begins; signals stay drift's own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def cluster(plan: Plan, address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`, or to one that is started here and stopped afterwards.

    Raises:
        DriftError: there is no cluster at the address, or this machine has too few GPUs for one worker.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        os.environ.pop("RAY_ADDRESS", None)
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's own switch for "this machine only": everything listens on 127.0.0.1
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    import ray  # after its environment is set

    try:
        with _private(ray, plan) if address is None else _joined(ray, address):
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _private(ray: Any, plan: Plan) -> Iterator[None]:
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="drift-ray-", dir=base if len(base) <= _SOCKET_ROOM else "/tmp"))
    try:
        # One CPU a worker is only a count that Ray keeps: all workers that were asked for are to run.
        cpus = max(plan.workers, os.cpu_count() or 1)
        with _handlers_kept():
            ray.init("local", num_cpus=cpus, include_dashboard=False, _temp_dir=str(folder), log_to_driver=False, configure_logging=False)
        there = int(ray.cluster_resources().get("GPU", 0))
        if there < plan.gpus_per_worker:
            raise DriftError(
                f"a worker was to have {plan.gpus_per_worker} GPUs, and Ray finds {there} on this machine",
                mend="Use a smaller --gpus-per-worker, or --ray-address with the address of a cluster that has them.",
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    try:
        _knock(address)
        with _handlers_kept():
            ray.init(address, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DriftError(
            f"no Ray cluster answers at {address}: {first}",
            mend="`ray status` on its head node says whether it runs; without --ray-address drift starts a private one here.",
        ) from error
    yield


def _knock(address: str) -> None:
    """Raise `OSError` unless something listens at an address. Ray itself would try for ever."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@dataclass
class Workers:
    """The workers of one launch, as Ray tasks."""

    ray: Any
    plan: Plan
    paths: RunPaths
    tell: Callable[[str], None]
    _tasks: dict[Any, str] = field(default_factory=dict)
    """Worker ids by what Ray calls their tasks."""
    _name: str = field(default_factory=lambda: f"ray-{secrets.token_hex(3)}")
    _started: int = 0
    _lost: int = 0
    _losses: int = 0
    _turns: int = 0
    _done: int = 0
    _failed: list[str] = field(default_factory=list)

    def run(self, stop: Callable[[], bool], look: Callable[[], None]) -> Finished:
        """Start the workers and see them through. `look` is called now and then; soon after `stop()` turns true they end in order."""
        self._turns = self._committed()
        for _ in range(self.plan.workers):
            self._start()
        interrupted = False
        while self._tasks:
            if stop() and not interrupted:
                interrupted = True
                for task in self._tasks:
                    self.ray.cancel(task, recursive=False)
            ended, _ = self.ray.wait(list(self._tasks), timeout=_LOOK)
            for task in ended:
                self._ended(task, again=not interrupted)
            look()
        return Finished(self._done, self._lost, tuple(self._failed), interrupted)

    def _start(self) -> None:
        worker = f"{self._name}-{self._started}"
        self._started += 1
        # max_retries=0: a worker's id is used once, and it is for us to say when it is enough.
        remote = self.ray.remote(work_on_node).options(
            num_cpus=1, num_gpus=self.plan.gpus_per_worker, max_retries=0, name=f"drift {self.paths.run_id}"
        )
        task = remote.remote(worker_command(self.plan, worker), str(self.paths.worker_log(worker)), self._environment())
        self._tasks[task] = worker

    def _environment(self) -> dict[str, str]:
        made = {LAUNCHER: "ray", "DRIFT_DISPLAY": "plain"}
        if not self.plan.gpus_per_worker:  # what is computed on a CPU depends on this to the bit, and Ray has a value of its own for it
            made["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(threads(self.paths, self.plan.workers))
        return made

    def _ended(self, task: Any, *, again: bool) -> None:
        worker = self._tasks.pop(task)
        log = self.paths.worker_log(worker)
        try:
            status = self.ray.get(task)
        except self.ray.exceptions.TaskCancelledError:
            return
        except self.ray.exceptions.RayError as error:
            self._lose(worker, f"was lost ({type(error).__name__})", again)
            return
        if status == 0:
            self._done += 1
        elif status == EXIT_INTERRUPTED or status < 0:
            self._lose(worker, "was stopped" if status > 0 else f"was ended by {signal.Signals(-status).name}", again)
        else:
            self._failed.append(str(log))
            self.tell(f"worker {worker} failed with exit status {status}; what it said is in {log}")

    def _lose(self, worker: str, how: str, again: bool) -> None:
        turns = self._committed()
        self._losses = self._losses + 1 if turns == self._turns else 1
        self._turns = turns
        if not again:
            return
        if self._losses > max(MOST_LOSSES, self.plan.workers):
            self._failed.append(str(self.paths.worker_log(worker)))
            self.tell(f"worker {worker} {how}; {self._losses} in a row did, and no turn was committed: no other is started in its place")
            return
        self._lost += 1
        self.tell(f"worker {worker} {how}; another is started in its place")
        self._start()

    def _committed(self) -> int:
        return sum(worker.turns for worker in read_workers(self.paths))
