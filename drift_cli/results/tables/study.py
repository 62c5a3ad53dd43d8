"""A study as tables to read. Under every table stands what its numbers can be generalized to."""

from __future__ import annotations

from collections.abc import Sequence

from drift_cli.analysis.controls import Standing
from drift_cli.analysis.flags import SegmentFlagCounts
from drift_cli.analysis.results import PartProvenance, Provenance
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import CellSummary, Summary, percent
from drift_cli.display import Table
from drift_cli.results.tables.comparisons import across_table, added_table, drift_table, pairs_table
from drift_cli.results.tables.turns import pair_turns_table, turn_pairs_table, turns_table
from drift_cli.results.tables.words import MOST_ROWS, interval, number
from drift_cli.segments import Part


def study_tables(study: Study, *, turns: bool = True, which: str = "") -> list[Table]:
    """All tables of a study; with `turns`, also those of every turn. `which` says which replies it is about, in the titles, after the part that is measured."""
    which = measured(study.provenance) + which
    tables = [summary_table(study.summary, which), pairs_table(study, which), drift_table(study, which)]
    if study.added:
        tables.append(added_table(study, which))
    if study.across:
        tables.append(across_table(study, which))
    tables.append(turn_pairs_table(study, which))
    if turns:
        tables += [turns_table(study.summary, which), *(pair_turns_table(pair, study.scope, which) for pair in study.turns[:MOST_ROWS])]
    return [table for table in tables if table.rows]


def measured(provenance: Provenance) -> str:
    """For a title: `, the answer`; nothing where replies have no segments."""
    return f", {Part(provenance.segment).words}" if isinstance(provenance, PartProvenance) else ""


def summary_table(summary: Summary, which: str = "") -> Table:
    """Per cell: rollouts, mean of rollout means, spread, interval, flagged replies."""
    rows = [
        [
            f"{cell.transcript}/{cell.condition}/T{cell.temperature:g}",
            f"{cell.n}/{cell.planned}",
            number(cell.mean, sign=True),
            number(cell.sd),
            number(cell.sem),
            interval(cell.low, cell.high),
            _flagged(cell),
        ]
        for cell in summary.cells
    ]
    layer = "" if summary.layer is None else f", layer {summary.layer}"
    heads = ["cell", "rollouts>", "mean>", "SD>", "SEM>", f"{percent(summary.level)} interval>", "flagged replies"]
    notes = [summary.method, summary.scope, *dict.fromkeys(f"{c.condition}: {c.note}" for c in summary.cells if c.note)]
    what = summary.measure or f"projection on {summary.axis}{layer}"
    return Table(f"Run {summary.run_id}: {what}{which}", heads, rows, notes)


def _flagged(cell: CellSummary) -> str:
    counts = cell.flagged
    kinds = {
        "empty": counts.empty,
        "repeated": counts.repeated,
        "reciting": counts.reciting,
        "context": counts.context,
        "template": counts.template,
        "cut": counts.length,
    }
    said = [f"{count} {kind}" for kind, count in kinds.items() if count]
    if isinstance(counts, SegmentFlagCounts):
        said += _share(counts.no_answer, "without answer", counts.no_answer_share)
        said += _share(counts.reasoning_cut, "with reasoning cut", counts.reasoning_cut_share)
    return ", ".join(said) or "—"


def _share(count: int, what: str, share: float | None) -> list[str]:
    return [f"{count} {what} ({100 * share:.0f} %)"] if count and share is not None else []


def controls_table(found: Sequence[Standing], scope: str) -> Table:
    """Where the differences stand among those on control axes."""
    rows = []
    for s in found[:MOST_ROWS]:
        effects = [number(s.hedges_g, 2, sign=True), number(s.median, 2), number(s.largest, 2)]
        share = "—" if s.smaller is None else f"{100 * s.smaller:.1f} %"
        rows.append([f"{s.a} − {s.b}", f"{s.transcript}, T{s.temperature:g}", f"{s.count} {s.kind}", *effects, share])
    heads = ["difference", "where", "control axes", "g on this axis>", "median |g|>", "largest |g|>", "smaller than here>"]
    said = (
        "random: unit vectors from the whole sphere; shuffled: made as the axis was, of personas whose labels were shuffled; "
        "covariance: drawn from that of the run's own replies"
    )
    return Table("Is it this axis, or any axis?", heads, rows, [said, scope])
