"""What is said of a run at the end of `generate`: what became of its cells, and its verdict, which is a look at its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drift_cli.display import Table, duration
from drift_cli.spec import Finish

if TYPE_CHECKING:
    from drift_cli.running.runner import Outcome
    from drift_cli.store.run import Run


def said_of(run: Run, rule: str | None = None) -> list[str]:
    """The verdict on a run that is done, in a sentence per condition; nothing for a run without an axis of its own, or with nothing to compare."""
    from drift_cli.analysis.looks import looking, record
    from drift_cli.analysis.results import Options
    from drift_cli.analysis.table import load
    from drift_cli.results.judged import judge, usual
    from drift_cli.results.tables.answer import plain_sentences

    if len(run.manifest.axes) + len(run.manifest.measured) != 1 or len(run.manifest.conditions) < 2:
        return []
    table, plan = load(run), run.manifest.plan
    if plan is not None and looking(run, table).planned() is None:
        looks = ", ".join(map(str, plan.plan.looks))
        return [f"the plan has looks at {looks} complete rollouts of every condition: this is none of them, so nothing is looked at now"]
    options = usual(run, table, Options())
    said = plain_sentences(judge(run, table, options, rule=rule).answer)
    problem = record(run, table, options, "generate", rule)
    return [*said, *([] if problem is None else [problem])]


def ended(run: Run, outcome: Outcome, said: Sequence[str]) -> tuple[dict[str, Any], Table]:
    """What became of a run that is done, for a program and for a person, with its verdict."""
    from drift_cli.analysis.missing import next_step

    states = run.states()
    rows, cells = [], []
    for plan in run.manifest.cells:
        mine = [state for state in states if state.rollout.cell == plan.cell]
        complete, turns = sum(state.complete for state in mine), sum(state.done for state in mine)
        ends = {why: sum(state.end is not None and state.end.finish is why for state in mine) for why in (Finish.CONTEXT, Finish.TEMPLATE)}
        early = ", ".join(f"{count} {why}" for why, count in ends.items() if count)
        rows.append([str(plan.cell), f"{complete}/{len(mine)}", str(turns), early])
        short = {f"ended_for_{why}": count for why, count in ends.items()}
        cells.append({"cell": str(plan.cell), "complete": complete, "planned": len(mine), "turns": turns, **short})
    notes = [f"{outcome.turns} turns made in {duration(outcome.seconds)}", *said]
    empty = [str(cell["cell"]) for cell in cells if not cell["turns"] and cell["ended_for_context"]]
    if empty:
        notes.append(f"WARNING: no turn could be made of {', '.join(empty)}: the first prompt and a full reply do not fit the context")
    notes.append(next_step(run.manifest))
    table = Table(f"Run {run.paths.run_id}", ["cell", "complete>", "turns>", "ended early for"], rows, notes)
    return {"run": run.paths.run_id, "turns": outcome.turns, "seconds": round(outcome.seconds, 3), "cells": cells}, table
