"""Builders for the store's tests: a small run, its turns, and processes that can be stopped where it hurts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drift_cli.axis import Axis
from drift_cli.spec import Cell, ChatFormat, Condition, Finish, Rollout, RunSpec, Sampling, Transcript, Turn
from drift_cli.store.epoch import Epoch
from drift_cli.store.log import End, RolloutLog
from drift_cli.store.manifest import AxisEntry, CellPlan, Manifest, ModelFacts, Setting
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

LAYERS, WIDTH, TURNS = (2, 5), 3, 4
CELL = Cell("talk", "plain", 0.5)
OTHER = Cell("talk", "kind", 0.5)
FIRST = Rollout(CELL, 0)
DIRECTION = np.array([[0.0, 0.6, 0.8]], dtype=np.float32)
AXIS = Axis("made", (5,), DIRECTION).digest
DONE = End(Finish.COMPLETE, TURNS, None)


def manifest(**changes: object) -> Manifest:
    fields = {
        "spec": RunSpec("demo", "tiny", "r1", "float32", ChatFormat("template", "00"), Sampling(), 20, 7),
        "layers": LAYERS,
        "conditions": {"plain": Condition("plain"), "kind": Condition("kind", "Be kind.")},
        "transcripts": {"talk": Transcript("talk", tuple(f"question {i}" for i in range(1, TURNS + 1)))},
        "cells": (CellPlan(CELL, 2), CellPlan(OTHER, 2)),
        "axes": (AxisEntry("made", 5, AXIS),),
        "model": ModelFacts("Tiny", 6, WIDTH, 100, 1000, (0,), None),
        "settings": {"samples": Setting(2, "flag --samples")},
        "epochs": (Epoch({"drift": "0"}, "cpu", "reference", 4),),
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def make_run(folder: Path, **changes: object) -> Run:
    run = Run.create(Store(folder / "checkpoints"), manifest(**changes))
    Axis("made", (5,), DIRECTION).save(run.paths.axis("made"))
    return run


def turn(index: int, rollout: Rollout = FIRST, text: str = "") -> Turn:
    """Turn `index` of a rollout, the same whenever it is made; the second turn has neither residual means nor a projection."""
    residual = np.random.default_rng((rollout.sample, index)).normal(size=(len(LAYERS), WIDTH)).astype(np.float32)
    plain = Turn(index, text or f"reply {index} é \u2028", Finish.STOP, (5, 6, index), 10 * index, "ab" * 16)
    if index == 2:
        return plain
    projection = float(residual[1].astype(np.float64) @ DIRECTION[0].astype(np.float64))
    return Turn(plain.index, plain.text, plain.finish, plain.ids, plain.prompt_length, plain.prompt_hash, residual, {"made": projection})


def open_log(run: Run, rollout: Rollout = FIRST) -> RolloutLog:
    return RolloutLog.open(run.paths, rollout, epoch=0, layers=len(LAYERS), width=WIDTH)


def finish(run: Run, rollout: Rollout = FIRST, acknowledge: Callable[[int], object] = lambda index: None, text: str = "") -> None:
    """Bring a rollout to its end from wherever it is, as the runner does; `text` is what every reply says, if not the usual."""
    with run.writer(rollout) as log:
        for index in range(len(log.record.turns) + 1, TURNS + 1):
            log.append(turn(index, rollout, text))
            acknowledge(index)
        if log.record.end is None:
            log.end(DONE)


def data_of(run: Run, rollout: Rollout = FIRST) -> tuple[bytes, bytes]:
    """The bytes of a rollout's two files."""
    return run.paths.rollout(rollout).read_bytes(), run.paths.residuals(rollout).read_bytes()


def uninterrupted(folder: Path) -> tuple[bytes, bytes]:
    """The bytes of the first rollout where nothing went wrong."""
    run = make_run(folder / "uninterrupted")
    finish(run)
    return data_of(run)


@dataclass(frozen=True)
class Child:
    """A forked process. `said` reads one byte from it (b"" once it is gone); `told` is what it waits for."""

    pid: int
    reader: int
    writer: int

    def said(self) -> bytes:
        return os.read(self.reader, 1)

    def tell(self) -> None:
        os.write(self.writer, b"!")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        os.close(self.reader)
        os.close(self.writer)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def fork(work: Callable[[Callable[[bytes], object], Callable[[], object]], object]) -> Child:
    """Run `work(say, listen)` in a forked process: 0 if it returns, 1 if it raises."""
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    pid = os.fork()
    if pid:
        os.close(to_parent)
        os.close(from_parent)
        return Child(pid, from_child, to_child)
    status = 1
    try:
        os.close(from_child)
        os.close(to_child)
        work(lambda data: os.write(to_parent, data), lambda: os.read(from_parent, 1))
        status = 0
    finally:
        os._exit(status)
