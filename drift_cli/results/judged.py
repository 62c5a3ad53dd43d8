"""A run's table, its statistics and its verdict in one call: `stats`, the report and the library take them from here, so that they say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drift_cli.analysis.axis_error import axis_errors
from drift_cli.analysis.controls import Standing, standings
from drift_cli.analysis.results import Options
from drift_cli.analysis.scale import persona_scale
from drift_cli.analysis.study import Study, analyze
from drift_cli.analysis.table import RunTable
from drift_cli.analysis.verdict import Answer, answer
from drift_cli.measuring import controls
from drift_cli.spec import Part
from drift_cli.store.run import Run


@dataclass(frozen=True)
class Judged:
    """What the statistics say of one table of a run."""

    table: RunTable
    study: Study
    controls: Sequence[Standing]
    """Where the differences stand among those on control axes; empty where the run has none."""
    answer: Answer


def judge(
    run: Run, table: RunTable, options: Options | None = None, *, study: Study | None = None, break_at: float | None = None
) -> Judged:
    """Analyse a table of a run and judge its conditions.

    Args:
        run: the run.
        table: its projections, as `analysis.table.load` reads them.
        options: what is asked for. Not needed beside `study`.
        study: the table's study, where it is made already.
        break_at: a rollout is broken below this projection (None: the personas' midpoint).

    Raises:
        UsageError: as `analysis.study.analyze`.
    """
    study = study or analyze(table, options)
    if table.measure is not None:
        return Judged(table, study, (), answer(table, study, break_at=break_at))
    among = among_controls(run, table, study.options)
    said = answer(table, study, among, persona_scale(run, table), break_at, axis_errors(run, table, study))
    return Judged(table, study, among, said)


def among_controls(run: Run, table: RunTable, options: Options) -> Sequence[Standing]:
    """Where the table's differences stand among those on the control axes of its axis; nothing where `drift measure --controls` made none."""
    path = run.paths.controls(table.axis)
    if table.measure is not None or not path.exists():
        return ()
    return standings(table, controls.project(run, controls.load(path), table.segment or Part.ANSWER), options)
