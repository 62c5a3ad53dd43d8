"""A run's table, its statistics and its verdict in one call: `stats`, the end of `generate`, the report and the library take them from here, so that they say
the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from drift_cli.analysis.axis_error import axis_errors
from drift_cli.analysis.controls import Standing, standings
from drift_cli.analysis.dynamics import Movement, movements
from drift_cli.analysis.looked import presence_as_of, study_as_of
from drift_cli.analysis.looks import Looking, looking
from drift_cli.analysis.placebos import unmatched
from drift_cli.analysis.plans import options_of
from drift_cli.analysis.presence import Presence, presence
from drift_cli.analysis.results import Options
from drift_cli.analysis.scale import persona_scale
from drift_cli.analysis.scripts import Reach, reaches
from drift_cli.analysis.sensitivity import layer_moves
from drift_cli.analysis.study import Study, analyze, usual_test
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
    """With the intervals and p that apply at this look."""
    controls: Sequence[Standing]
    """Where the differences stand among those on control axes; empty where the run has none."""
    answer: Answer
    presence: Presence
    """The splits of the differences, with the intervals that apply at this look."""
    dynamics: Sequence[Movement] = ()
    """How rollouts move."""
    reach: Sequence[Reach] = ()
    """What the differences can be generalized to, where there are several transcripts or wordings."""


def usual(run: Run, table: RunTable, options: Options, given: Collection[str] = ()) -> Options:
    """The options of a run's analysis: the plan's, where it has one, and its usual test, in place of those that were not `given` by name."""
    if "test" not in given:
        options = Options(**{**vars(options), "test": usual_test(table)})
    return options if run.manifest.plan is None else options_of(run.manifest.plan.plan, options, given)


def judge(
    run: Run,
    table: RunTable,
    options: Options | None = None,
    *,
    study: Study | None = None,
    break_at: float | None = None,
    rule: str | None = None,
) -> Judged:
    """Analyse a table of a run and judge its conditions, as of how often its results were looked at. The look itself is recorded by `looks.record`.

    Args:
        run: the run.
        table: its projections, as `analysis.table.load` reads them.
        options: what is asked for. Not needed beside `study`.
        study: the table's study as if this were the only look, where it is made already.
        break_at: a rollout is broken below this projection (None: the personas' midpoint).
        rule: what decides from the data whether there will be more, where something does.

    Raises:
        UsageError: as `analysis.study.analyze`.
        StoreError: the file of looks, or what was read under another prompt, is damaged.
    """
    study = study or analyze(table, options)
    found = looking(run, table, rule)
    if table.measure is not None:
        said = answer(table, study, break_at=break_at, looking=found)
        return Judged(table, study_as_of(study, found), (), said, Presence())
    among, split = among_controls(run, table, study.options), presence(run, table, study.options)
    variants = {name: one.variant_of for name, one in run.manifest.conditions.items() if one.variant_of is not None}
    pulls = {name: script.pulls for name, script in run.manifest.transcripts.items()}
    return Judged(
        table,
        study_as_of(study, found),
        among,
        _answer(run, table, study, among, split, found, break_at),
        presence_as_of(split, found, study.options.level),
        movements(table, study.baseline, study.options, pulls),
        reaches(table, study.baseline, variants, study.options),
    )


def _answer(
    run: Run,
    table: RunTable,
    study: Study,
    among: Sequence[Standing],
    split: Presence,
    found: Looking,
    break_at: float | None,
) -> Answer:
    return answer(
        table,
        study,
        among,
        persona_scale(run, table),
        break_at,
        axis_errors(run, table, study),
        split,
        layer_moves(run, table, study.baseline, study.options.turns),
        found,
        unmatched(run.manifest.conditions, study.baseline),
    )


def among_controls(run: Run, table: RunTable, options: Options) -> Sequence[Standing]:
    """Where the table's differences stand among those on the control axes of its axis; nothing where `drift measure --controls` made none."""
    path = run.paths.controls(table.axis)
    if table.measure is not None or not path.exists():
        return ()
    return standings(table, controls.project(run, controls.load(path), table.segment or Part.ANSWER), options)
