"""How far more workers make a run faster: what each step costs is measured here, how hundreds of workers get in each other's way is simulated.

    python benchmarks/scaling.py --write            # measures, simulates, writes docs/scaling.md
    python benchmarks/scaling.py --latency 0.5 --server 50000 --bandwidth 5

Measured: the seconds of each step a worker takes in the store (claim and open a rollout, commit a turn, end a rollout, look at a cell, read how far a rollout
is, give a heartbeat) on this machine's disk, the requests that each makes (system calls that a network file system passes to its server, counted by
strace; folders opened on the way and attributes by name are left out, which clients keep for some seconds), and how long a worker takes from its command
line to its first rollout. Simulated: the rollouts of `lengths.json` on GPUs as docs/speed.md has them, on a file system with the latencies and limits
given. `cluster.py` says what is simulated and what is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from cluster import Costs, FileSystem, Gpu, Outcome, Step, simulate

from drift_cli.spec import Cell, ChatFormat, Condition, Finish, RunSpec, Sampling, Transcript, Turn
from drift_cli.store.log import End
from drift_cli.store.manifest import CellPlan, Manifest, ModelFacts
from drift_cli.store.paths import Store
from drift_cli.store.run import Run
from drift_cli.store.tails import tail_state
from drift_cli.workers.claims import Claims, read_holder
from drift_cli.workers.leases import Observer, Presence, WorkerState
from drift_cli.workers.queue import Queue

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- scaling: written by `python benchmarks/scaling.py --write` -->", "<!-- end of scaling -->"
WORKERS = (1, 8, 64, 512)
CELLS, SAMPLES, TURNS, LAYERS, WIDTH = 1250, 80, 18, 1, 4096
# What a file server hears of: files opened, listings, data read, data written and made durable, names changed, locks.
REQUESTS = (
    "openat,access,stat,newfstatat,getdents64,pread64,read,fsync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,flock,link,linkat"
)
CALL = re.compile(r"^\d+ +(\w+)\((.*)= (-?\d+)")
MARK = "/drift-mark-"
FILES = {".jsonl", ".f32", ".json", ".lock", ".claim", ".tmp"}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make(folder: Path) -> Run:
    """A run of 100,000 planned rollouts."""
    cells = [Cell(f"t{t}", f"c{c}", x / 5) for t in range(CELLS // 50) for c in range(10) for x in range(1, 6)]
    facts = ModelFacts("Olmo3ForCausalLM", 32, WIDTH, 65536, 7_300_000_000, (0,), None)
    manifest = Manifest(
        spec=RunSpec("scaling", "olmo3-7b", "r1", "bfloat16", ChatFormat("template", "00"), Sampling(), 512, 7),
        layers=tuple(range(LAYERS)),
        conditions={f"c{c}": Condition(f"c{c}") for c in range(10)},
        transcripts={f"t{t}": Transcript(f"t{t}", tuple(f"question {n}" for n in range(TURNS))) for t in range(CELLS // 50)},
        cells=tuple(CellPlan(cell, SAMPLES) for cell in cells),
        model=facts,
    )
    return Run.create(Store(folder / "checkpoints"), manifest)


def turn(index: int) -> Turn:
    means = np.random.default_rng(index).normal(size=(LAYERS, WIDTH)).astype(np.float32)
    return Turn(index, "and then the light came back " * 35, Finish.STOP, tuple(range(224)), 2000, "ab" * 16, means)


Probe = Iterator[tuple[str, Callable[[], object]]]


def probes(run: Run, number: int) -> Probe:
    """Each step of a worker's part in the store, and what does it; `number` times over, each time on rollouts that nothing was done to before."""
    with ExitStack() as stack:
        presence = stack.enter_context(Presence(run.paths, f"probe-{number}"))
        claims = Claims(run.paths, presence.id, Observer(run.paths))
        queue = Queue(run, claims, shuffled=True)
        other = Observer(run.paths, pause=0.0)
        yield "plan", lambda: Queue(Run.open(Store(run.paths.root.parent), run.paths.run_id), claims, shuffled=True)
        for place in range(12):
            taken = []
            # The first one lists the cell; the listing is good for the others, whatever the time: looks are counted by themselves.
            for known, listing in list(queue._listings.items()):
                queue._listings[known] = replace(listing, when=time.monotonic())
            yield "take" if place else "", lambda taken=taken: taken.extend(queue.take())  # type: ignore[misc]
            logs = []
            yield "open" if place else "", lambda taken=taken, logs=logs: logs.append(run.writer(taken[0].rollout))  # type: ignore[misc]
            for index in range(1, TURNS + 1):

                def commit(index: int = index, logs: list = logs, taken: list = taken) -> None:
                    claims.is_mine(taken[0].rollout)
                    logs[0].append(turn(index))

                yield "commit" if index > 1 else "", commit

            def finish(logs: list = logs, taken: list = taken) -> None:
                logs[0].end(End(Finish.COMPLETE, TURNS, None))
                logs[0].close()
                claims.finish(taken[0].rollout)
                queue.ended(taken[0].rollout)

            yield "end", finish
            yield "read", lambda taken=taken: tail_state(run.paths, taken[0].rollout)
            yield "holder", lambda taken=taken: (read_holder(run.paths, taken[0].rollout), other.life(presence.id))
            cell = taken[0].rollout.cell

            def look(cell: Cell = cell) -> None:
                queue._listings.clear()
                queue._listing(cell)

            yield "list", look
            yield "beat", lambda place=place: presence.now(WorkerState.WORKING if place % 2 else WorkerState.WAITING)


def measure_seconds(folder: Path) -> dict[str, float]:
    """Median seconds of each step."""
    run = make(folder)
    found: dict[str, list[float]] = {}
    for number in range(3):
        for name, work in probes(run, number):
            started = time.perf_counter()
            work()
            found.setdefault(name, []).append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in found.items() if name}


def count_requests(folder: Path) -> dict[str, float]:
    """Mean requests of each step, from a process of its own under strace."""
    trace = folder / "trace"
    tracer = [*"strace -f -qq -y -e".split(), f"trace={REQUESTS}", "-o", str(trace)]
    line = [*tracer, sys.executable, __file__, "--probe", str(folder / "counted")]
    subprocess.run(line, check=True)
    found: dict[str, list[int]] = {}
    name, count = "", 0
    for text in trace.read_text(errors="replace").splitlines():
        if MARK in text:
            if name:
                found.setdefault(name, []).append(count)
            name, count = text.partition(MARK)[2].partition('"')[0].strip("-"), 0
        else:
            count += _requests(text, "/counted/checkpoints/")
    return {key: statistics.mean(counts) for key, counts in found.items() if key != "end-of-step"}


def _requests(text: str, part: str) -> int:
    """Requests to a server of one system call, as strace -y shows it: descriptors with their paths, of which `part` is the store's."""
    call = CALL.match(text)
    if call is None or part not in text:
        return 0
    name, arguments, result = call.groups()
    if name in ("access", "stat", "newfstatat") or "O_DIRECTORY" in arguments or (name == "getdents64" and result == "0"):
        return 0
    if name == "fsync":  # data is written, then made durable; of a folder there is nothing to send
        return 2 if Path(arguments.partition("<")[2].partition(">")[0]).suffix in FILES else 0
    return 1


def probe(folder: Path) -> None:
    """What `count_requests` runs: the same steps, between marks that show in the trace."""
    run = make(folder)
    for name, work in probes(run, 0):
        if name:
            Path(f"{MARK}{name}").exists()
        work()
        if name:
            Path(f"{MARK}end-of-step").exists()


def measure_start(folder: Path) -> float:
    """Seconds from a worker's command line to its leaving, of a run of the built-in model that has one short rollout: nearly all is imports and the model."""
    script = folder / "one.json"
    script.write_text(json.dumps({"name": "one", "users": ["hello"]}))
    line = [sys.executable, "-m", "drift_cli", "generate", "--transcript", str(script), "--samples", "1", "--max-new-tokens", "1"]
    times = []
    for number in range(3):
        started = time.perf_counter()
        subprocess.run([*line, "--store", str(folder / f"start-{number}")], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return min(times)


def measured(folder: Path) -> Costs:
    """Everything that is measured."""
    say("measuring steps in the store")
    seconds = measure_seconds(folder / "timed")
    say("counting requests")
    requests = count_requests(folder)
    say("measuring the start of a worker")
    start = measure_start(folder)
    steps = {
        name: Step(seconds[name], requests[name]) for name in ("plan", "take", "open", "commit", "end", "read", "holder", "list", "beat")
    }
    return Costs(steps, start)


def lengths() -> tuple[int, ...]:
    """Sampled tokens of whole rollouts, as the experiment had them."""
    table = json.loads((Path(__file__).parent / "lengths.json").read_text())["replies"]
    return tuple(sum(row) for rows in table.values() for row in rows)


WHAT = {
    "plan": "read the manifest, plan 100,000 rollouts",
    "take": "find and claim a rollout",
    "open": "open it",
    "commit": "commit a turn (claim checked, residual mean and line synced)",
    "end": "end it, give the claim up",
    "read": "read how far a rollout is",
    "holder": "read who has claimed a rollout, and whether that worker lives",
    "list": "list a cell: rollouts, claims, what has ended",
    "beat": "a heartbeat",
}


def costs_table(costs: Costs, disk: str) -> str:
    rows = [f"| step | ms on {disk} | requests |", "| --- | --: | --: |"]
    rows += [f"| {what} | {1e3 * costs.steps[name].seconds:.2f} | {costs.steps[name].requests:.0f} |" for name, what in WHAT.items()]
    return "\n".join([*rows, f"| a worker from its command line to its end, one rollout of one token | {1e3 * costs.start:.0f} | |"])


def table(outcomes: list[Outcome]) -> str:
    rows = [
        "| workers | hours | speed-up | efficiency | start-up | waiting for the store | last rollouts | server busy | failed claims |",
        "| --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    one = outcomes[0].seconds
    for out in outcomes:
        gain = one / out.seconds
        shares = " | ".join(f"{100 * part:.1f} %" for part in (gain / out.workers, out.starting, out.stalled, out.thin, out.busy))
        rows.append(f"| {out.workers} | {out.seconds / 3600:.2f} | {gain:.1f} | {shares} | {out.collisions:,} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=2.0, help="of a network file system: milliseconds a request")
    parser.add_argument("--server", type=float, default=20_000, help="requests a second that its server answers")
    parser.add_argument("--bandwidth", type=float, default=2.0, help="GB a second that its server reads")
    parser.add_argument("--write", action="store_true", help="write docs/scaling.md")
    parser.add_argument("--folder", type=Path, default=None, help="where to measure (default: a temporary folder here)")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.probe:
        probe(asked.probe)
        return
    if shutil.which("strace") is None:
        sys.exit("strace is needed to count requests: apt-get install strace")
    with tempfile.TemporaryDirectory(dir=asked.folder or Path.cwd()) as folder:
        costs = measured(Path(folder))
    network = FileSystem(asked.latency / 1e3, asked.server, asked.bandwidth * 1e9)
    gpu = Gpu.fitted(lengths())
    given = f"{asked.latency:g} ms a request, {asked.server:,.0f} requests a second, {asked.bandwidth:g} GB/s"
    scenes = [
        ("This machine's own disk under every worker, weights there", None, False),
        (f"A network file system ({given}), weights on each node's own disk", network, False),
        (f"The same, weights read from its server once a node of {gpu.per_node} GPUs", network, True),
    ]
    parts = [costs_table(costs, "this machine's disk")]
    for title, files, shared in scenes:
        outcomes = []
        for workers in WORKERS:
            started = time.perf_counter()
            outcomes.append(simulate(workers, CELLS, SAMPLES, lengths(), gpu, costs, files, shared_weights=shared))
            say(f"{title}: {workers} workers, {outcomes[-1].seconds:.0f} s (simulated in {time.perf_counter() - started:.0f} s)")
        if files is not None and not shared:
            naive = simulate(WORKERS[-1], CELLS, SAMPLES, lengths(), gpu, costs, files, shared_weights=False, reading=True)
            without = (
                f"Did each of {naive.workers} workers read for itself how far every rollout is and who holds it, the run would take "
                f"{naive.seconds / 3600:.2f} hours, {100 * naive.stalled:.0f} % of it waiting for the store."
            )
        parts.append(f"**{title}**\n\n{table(outcomes)}")
    parts.insert(3, without)
    text = "\n\n".join(parts)
    print(text)
    if asked.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
