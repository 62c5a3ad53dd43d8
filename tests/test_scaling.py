"""The simulation of many workers: every rollout is made once, time goes nowhere unaccounted, and a slow file system costs what it must."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from cluster import Costs, FileSystem, Gpu, Outcome, Step, simulate

LENGTHS = (900, 1000, 1100)
GPU = Gpu(each=0.5e-3, setup=0.0, weights=0.0)
NAMES = ("plan", "take", "open", "commit", "end", "read", "holder", "list", "beat")


def run(workers: int, cost: float = 0.0, files: FileSystem | None = None, *, cells: int = 20, reading: bool = False) -> Outcome:
    costs = Costs({name: Step(cost, 4) for name in NAMES}, start=0.0)
    return simulate(workers, cells, 80, LENGTHS, GPU, costs, files, shared_weights=False, reading=reading)


def test_the_fitted_gpu_takes_as_long_as_it_was_seen_to() -> None:
    gpu = Gpu.fitted([4000] * 48, 112.3)
    assert 4000 * gpu.step(48) == pytest.approx(112.3)


def test_one_worker_takes_what_its_steps_take() -> None:
    full = 20 * 80 / 48 * 1000 * GPU.step(48)
    assert full < run(1).seconds < 1.06 * full  # the last rows run out


def test_without_costs_workers_lose_only_what_the_last_rollouts_take() -> None:
    one, eight = run(1), run(8)
    assert one.seconds / eight.seconds == pytest.approx(8 * (1 - eight.thin) / (1 - one.thin), rel=0.01)
    assert (eight.starting, eight.stalled) == (0.0, 0.0)


def test_time_in_the_store_is_accounted_for() -> None:
    slow, quick = run(8, cost=0.05), run(8)
    useful = quick.seconds * (1 - quick.thin)
    assert slow.stalled > 0.01
    assert slow.seconds * (1 - slow.stalled - slow.thin) == pytest.approx(useful, rel=0.01)


def test_a_server_at_its_limit_sets_the_pace() -> None:
    files = FileSystem(latency=1e-4, rate=2000.0, bandwidth=1e9)
    limited = run(64, files=files)
    assert limited.busy > 0.8
    assert limited.seconds > 20 * 80 * (18 + 3) * 4 / files.rate


def test_reading_everything_for_oneself_costs_more_than_listing_it() -> None:
    files = FileSystem(latency=2e-3, rate=20_000.0, bandwidth=1e9)
    assert run(64, files=files, reading=True, cells=60).stalled > 2 * run(64, files=files, cells=60).stalled
