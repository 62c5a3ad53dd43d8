"""Small finished runs with texts and projections of one's choice, and documents of reports of any size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from drift_cli.analysis.table import load
from drift_cli.analysis.tokens import load_traces
from drift_cli.display import Table
from drift_cli.results.figures.curves import pointwise
from drift_cli.results.report.document import Contents, document
from drift_cli.results.report.html import page
from drift_cli.results.report.verdict import Sentence
from drift_cli.spec import Cell, ChatFormat, Condition, Finish, Placement, Rollout, RunSpec, Sampling, Transcript, Turn
from drift_cli.store.epoch import Epoch
from drift_cli.store.line import End
from drift_cli.store.manifest import AxisEntry, CellPlan, Imported, Manifest, Setting
from drift_cli.store.paths import Store
from drift_cli.store.run import Run
from drift_cli.store.traces import TokenTrace, write_traces

AXIS = AxisEntry("made", 21, "d1", "made up")
CONDITIONS = ("baseline", "simple", "complex")
Say = Callable[[str, int, int], str]


def say(condition: str, sample: int, turn: int) -> str:
    return f"This is what {condition} says in rollout {sample} at turn {turn}, and it is not long."


def make_run(
    folder: Path,
    *,
    conditions: tuple[str, ...] = CONDITIONS,
    samples: int = 4,
    turns: int = 5,
    scripts: tuple[str, ...] = ("talk",),
    text: Say = say,
) -> Run:
    """A finished run; the last rollout of the last condition is out of context at its last turn."""
    cells = tuple(CellPlan(Cell(script, condition, 0.7), samples) for script in scripts for condition in conditions)
    users = tuple(f"What do you say to question {turn}?" for turn in range(1, turns + 1))
    manifest = Manifest(
        spec=RunSpec("made", "somebody/model", "r1", "float32", ChatFormat("template", "00"), Sampling(), 20, 7),
        layers=(),
        conditions={
            name: Condition(name, None if place == 0 else f"Be {name}, please.", Placement.EVERY_TURN)
            for place, name in enumerate(conditions)
        },
        transcripts={script: Transcript(script, users) for script in scripts},
        cells=cells,
        axes=(AXIS,),
        settings={"model": Setting("/home/somebody/models/model", "flag --model")},
        epochs=(Epoch({"drift": "0"}, "cpu", "slots", 4),),
        imported=Imported("seed-json", {}, "talk"),
    )
    run = Run.create(Store(folder / "checkpoints"), manifest)
    run.event("start", turns_left=samples * turns)
    for plan in cells:
        for sample in range(samples):
            _write(run, Rollout(plan.cell, sample), turns, text, cut=plan == cells[-1] and sample == samples - 1 and turns > 1)
    return run


def _write(run: Run, rollout: Rollout, turns: int, text: Say, *, cut: bool) -> None:
    place = list(run.manifest.conditions).index(rollout.cell.condition)
    rng = np.random.default_rng((place, rollout.sample))
    values = 3 - (0.3 - 0.1 * place) * np.arange(turns) + rng.normal(0, 0.2, turns)
    with run.writer(rollout) as log:
        for turn in range(1, turns + (not cut)):
            said = text(rollout.cell.condition, rollout.sample, turn)
            finish = Finish.LENGTH if turn == 3 else Finish.STOP
            log.append(Turn(turn, said, finish, (1, 2, turn), projections={"made": float(values[turn - 1])}))
        log.end(End(Finish.CONTEXT, turns, 999) if cut else End(Finish.COMPLETE, turns, None))


def trace_run(run: Run, samples: int = 1) -> None:
    """Made-up traces of the first rollouts of every cell: a token for every word."""
    for plan in run.manifest.cells:
        for sample in range(samples):
            rollout = Rollout(plan.cell, sample)
            turns = run.record(rollout).turns
            traces = []
            for turn in turns:
                words = turn.text.split(" ")
                lengths = tuple(len(word) + (place > 0) for place, word in enumerate(words))
                values = np.linspace(-1, 5, len(words), dtype=np.float32)
                traces.append(TokenTrace(turn.index, values, lengths))
            write_traces(run.paths, rollout, AXIS, turns, traces)


def made_document(run: Run, **changes: Any) -> dict[str, Any]:
    table = load(run)
    sheet = Table("Means of rollouts", ["condition", "mean>"], [["baseline", "+1.000"]], ["One script."])
    verdict = [Sentence("complex stays closer to the assistant than baseline."), Sentence("One script only.", caution=True)]
    line = {"talk": np.linspace(3, 1, table.length("talk"))} if "talk" in run.manifest.transcripts else {}
    contents = Contents(run, table, pointwise(), load_traces(run, table), line, verdict, [sheet])
    return {**document(contents), **changes}


def write_page(made: dict[str, Any], path: Path) -> str:
    """Write the report; returns its address."""
    path.write_bytes(page(made, title=made["run"], generator="drift 0"))
    return path.as_uri()


def grown(made: dict[str, Any], samples: int, text: Callable[[int], str]) -> dict[str, Any]:
    """The same document with this many rollouts in every cell, each reply with a text of its own."""
    bigger = copy.deepcopy(made)
    for group in bigger["groups"]:
        for cell in group["cells"]:
            first = cell["rollouts"][0]
            cell["rollouts"] = [
                {**first, "sample": s, "turns": [{**turn, "text": text(s)} for turn in first["turns"]]} for s in range(samples)
            ]
    return bigger
