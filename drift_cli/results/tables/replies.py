"""Every measure of replies that is installed or registered, beside the projections: means by condition, and differences from the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drift_cli.analysis.compare import adjusted
from drift_cli.analysis.measure import reply_measures
from drift_cli.analysis.measured import load_measure
from drift_cli.analysis.results import Comparison, Correction, Measure, Options, Test
from drift_cli.analysis.study import Study, analyze
from drift_cli.analysis.summary import percent
from drift_cli.display import Table
from drift_cli.results.tables.words import interval, number, p_value, where
from drift_cli.spec import Part
from drift_cli.store.run import Run


@dataclass(frozen=True)
class ReplyDifference:
    """A condition against the baseline on one measure of replies."""

    name: str
    words: str
    mean_a: float | None
    mean_b: float | None
    comparison: Comparison
    """Of rollout means; p adjusted by Holm over all measures of replies and conditions."""


def reply_differences(run: Run, study: Study, part: Part) -> tuple[ReplyDifference, ...]:
    """Of every measure of replies, the conditions against the study's baseline by Welch's t, on the same turns; empty where there is no such measure."""
    options = Options(
        against=study.baseline, level=study.options.level, turns=study.options.turns, correction=Correction.NONE, resamples=99
    )
    found = []
    for measure in reply_measures():
        made = analyze(load_measure(run, measure.name, part), replace(options, test=Test.WELCH))
        means = {(cell.condition, cell.transcript, cell.temperature): cell.mean for cell in made.summary.cells}
        for row in made.comparisons:
            if row.measure == Measure.MEAN and row.transcript is not None and row.temperature is not None:
                place = row.transcript, row.temperature
                found.append(ReplyDifference(measure.name, measure.words, means.get((row.a, *place)), means.get((row.b, *place)), row))
    rows = adjusted([one.comparison for one in found])
    return tuple(replace(one, comparison=row) for one, row in zip(found, rows, strict=True))


def replies_table(found: Sequence[ReplyDifference], study: Study, which: str = "") -> Table:
    """Those differences for reading."""
    rows = [
        [
            one.words,
            f"{one.comparison.a} − {one.comparison.b}",
            where(one.comparison),
            f"{one.comparison.n_a}, {one.comparison.n_b}",
            number(one.mean_a),
            number(one.mean_b),
            number(one.comparison.difference, sign=True),
            interval(one.comparison.low, one.comparison.high),
            p_value(one.comparison.p_adjusted),
        ]
        for one in found
    ]
    level = percent(study.options.level)
    heads = [
        "of each reply",
        "difference",
        "where",
        "n>",
        "mean>",
        f"of {study.baseline}>",
        "estimate>",
        f"{level} interval>",
        "p adjusted>",
    ]
    note = "Measures of replies that others added: Welch's t test of rollout means; p by Holm over this table, which no other number depends on."
    return Table(f"Other measures of replies{which}", heads, rows, [note, study.scope])
