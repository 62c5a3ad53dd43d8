"""A run's statistics, whole: `analyze` takes the tidy table and what is asked for, and returns frozen results. No files, no terminal.

What it promises: the same table and options give the same numbers; no number is NaN; what cannot be said is None, with a sentence why; every result
carries its method and the provenance (run, axis, data digest, seed, versions) it came from.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np

from drift_cli import __version__
from drift_cli.analysis.compare import Pair, adjusted, compare, over_transcripts, pairs, strangers
from drift_cli.analysis.family import COUNTED, Adjusted, Family, Member, family
from drift_cli.analysis.measure import added_rollout_measures, find_rollout_measure
from drift_cli.analysis.measures import Sample, least_turns, sample
from drift_cli.analysis.results import CellDrift, Comparison, Measure, Options, PairTurns, PartProvenance, Provenance, Role, Test, passes
from drift_cli.analysis.summary import Summary, moments, plain, scope, summarize
from drift_cli.analysis.table import RunTable
from drift_cli.analysis.turns import assemble, pointwise
from drift_cli.errors import UsageError

MOST_TURN_PAIRS = 250
"""Pairs that are compared turn by turn; of more (23 conditions have 253), only those with the run's first condition are."""
DRIFT = (Measure.CHANGE, Measure.SLOPE, Measure.AREA, Measure.THIRDS)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything about one table."""

    options: Options
    baseline: str
    """The condition that the primary comparisons are with."""
    summary: Summary
    comparisons: tuple[Comparison, ...]
    """Pairs of conditions on rollout means; with the baseline, primary unless another measure was declared."""
    drift: tuple[Comparison, ...]
    """Pairs of conditions on change, slope, area and thirds: the difference of changes is the headline."""
    added: tuple[Comparison, ...]
    """Pairs of conditions on measures that others added: a family of their own, by Holm, so that no other number depends on what is installed."""
    cell_drift: tuple[CellDrift, ...]
    turns: tuple[PairTurns, ...]
    across: tuple[Comparison, ...]
    """Where several transcripts have the same two conditions: over transcripts, means and changes."""
    gate: float | None
    """The smallest adjusted p of the primary comparisons: above 1 - level, nothing secondary is starred."""
    scope: str
    notes: tuple[str, ...]
    provenance: Provenance

    @property
    def first(self) -> int:
        """The first turn that counts."""
        return self.options.turns[0] if self.options.turns else 1

    @property
    def closed(self) -> bool:
        """Whether no primary difference is shown, so that nothing secondary is starred."""
        return self.gate is not None and not passes(self.gate, self.options.level)

    def with_baseline(self) -> Study:
        """The same numbers, of which only the pairs with the baseline."""
        return replace(
            self,
            comparisons=tuple(row for row in self.comparisons if row.b == self.baseline),
            drift=tuple(row for row in self.drift if row.b == self.baseline),
            added=tuple(row for row in self.added if row.b == self.baseline),
            across=tuple(row for row in self.across if row.b == self.baseline),
            turns=tuple(pair for pair in self.turns if pair.b == self.baseline),
        )


def analyze(table: RunTable, options: Options | None = None) -> Study:
    """All statistics of a table.

    Raises `UsageError` for a condition or turns that the table does not have, for `paired` without common random numbers, and for `mixed` with one
    transcript.
    """
    options = options or Options()
    _check(table, options)
    if options.turns is not None:
        table = table.window(*options.turns)
    samples = [sample(table, cell, merge=options.test is not Test.PAIRED) for cell in table.cells]
    found = pairs(samples, options.against)
    baseline = options.against or next(iter(table.conditions), "")
    compared = _compared(found, table, baseline, options)
    return Study(
        options=options,
        baseline=baseline,
        summary=summarize(table, ddof=options.ddof, level=options.level),
        comparisons=(*compared.of[Measure.MEAN], *strangers(found, table.conditions, options)),
        drift=tuple(row for measure in DRIFT for row in compared.of.get(measure, ())),
        added=tuple(row for measure in added_rollout_measures() for row in compared.of.get(measure.name, ())),
        cell_drift=tuple(row for measure in (*DRIFT, *_added()) for of in samples for row in _cell_drift(of, measure, options)),
        turns=compared.turns,
        across=_across(found, table, compared.gate, options),
        gate=compared.gate,
        scope=scope(table),
        notes=compared.notes,
        provenance=provenance(table, options),
    )


@dataclass(frozen=True)
class _Compared:
    """The pairs on every measure and turn, with adjusted p."""

    of: dict[str, tuple[Comparison, ...]]
    turns: tuple[PairTurns, ...]
    gate: float | None
    notes: tuple[str, ...]


def _compared(found: Sequence[Pair], table: RunTable, baseline: str, options: Options) -> _Compared:
    shown, notes = _turn_pairs(found, baseline)
    outside, found = [pair for place, pair in enumerate(found) if place not in set(shown)], [found[place] for place in shown]
    samples = [one for pair in found for one in pair]
    own: list[str] = [measure for measure in Measure if measure is Measure.MEAN or _long_enough(samples, measure)]
    others = [measure for measure in _added() if _long_enough(samples, measure)]
    of = {measure: list(compare(found, measure, options)) for measure in (*own, *others)}
    lead = options.primary if options.primary in of else Measure.MEAN
    first = [place for place, row in enumerate(of[lead]) if row.b == baseline]
    for place, row in zip(first, adjusted([of[lead][place] for place in first], role=Role.PRIMARY), strict=True):
        of[lead][place] = row
    gate = min((row.p_adjusted for row in of[lead] if row.p_adjusted is not None), default=None)
    results = pointwise(found, options)
    raw = {Member(place, column): r.p for place, row in enumerate(results) for column, r in enumerate(row)}
    if options.test is Test.MIXED:
        of = {measure: _over(rows, gate) for measure, rows in of.items()}
    else:
        raw |= {
            Member(place, measure): row.p
            for measure in COUNTED
            for place, row in enumerate(of.get(measure, ()))
            if row.role is Role.SECONDARY
        }
    known = family(found, raw, options)
    if options.test is not Test.MIXED:
        of |= {measure: [_secondary(row, measure, place, known, of, gate) for place, row in enumerate(of[measure])] for measure in own}
        of |= _by_themselves({measure: of[measure] for measure in others}, gate)
    turns = tuple(assemble(place, pair, row, known, gate, options) for place, (pair, row) in enumerate(zip(found, results, strict=True)))
    of[Measure.MEAN] += compare(outside, Measure.MEAN, options) if options.test is not Test.MIXED else ()
    return _Compared({measure: tuple(rows) for measure, rows in of.items()}, turns, gate, notes)


def _secondary(row: Comparison, measure: str, place: int, known: Family, of: dict[str, list[Comparison]], gate: float | None) -> Comparison:
    """A secondary row with its p of the family; the area takes the change's, whichever role that has."""
    if row.role is Role.PRIMARY:
        return row
    if measure == Measure.AREA and of[Measure.CHANGE][place].role is Role.PRIMARY:
        change = of[Measure.CHANGE][place]
        return replace(row, p_adjusted=change.p_adjusted, gate=gate)
    member = Member(place, Measure.CHANGE if measure == Measure.AREA else measure)
    found = known.adjusted.get(member, Adjusted(None))
    return replace(row, p_adjusted=found.p, p_adjusted_error=found.error, gate=gate)


def _by_themselves(of: dict[str, list[Comparison]], gate: float | None) -> dict[str, list[Comparison]]:
    """Rows on added measures: those that are not primary have Holm's p over all of them."""
    secondary = [row for rows in of.values() for row in rows if row.role is Role.SECONDARY]
    others = iter(adjusted(secondary, gate=gate))
    return {measure: [row if row.role is Role.PRIMARY else next(others) for row in rows] for measure, rows in of.items()}


def _added() -> tuple[str, ...]:
    return tuple(measure.name for measure in added_rollout_measures())


def _over(rows: Sequence[Comparison], gate: float | None) -> list[Comparison]:
    """Rows over transcripts: those that are not primary have Holm's p among themselves."""
    others = iter(adjusted([row for row in rows if row.role is Role.SECONDARY], gate=gate))
    return [row if row.role is Role.PRIMARY else next(others) for row in rows]


def _across(found: Sequence[Pair], table: RunTable, gate: float | None, options: Options) -> tuple[Comparison, ...]:
    """Where several transcripts have the same two conditions: over transcripts. A family of its own, by Holm."""
    if not _several(table) or options.test is Test.MIXED:
        return ()
    rows = [row for measure in (Measure.MEAN, Measure.CHANGE) for row in over_transcripts(found, measure, options)]
    return adjusted(rows, gate=gate)


def provenance(table: RunTable, options: Options) -> Provenance:
    """Where numbers from this table and these options come from."""
    versions = {"drift": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("numpy", "scipy", "statsmodels")}
    data = hashlib.sha256(np.ascontiguousarray(table.projections).tobytes()).hexdigest()[:16]
    given = (table.run_id, table.axis, table.layer, data, options.seed, options.resamples, versions)
    if table.segment is None:
        return Provenance(*given, quantity=table.measure)
    return PartProvenance(*given, table.segment.value, quantity=table.measure)


def usual_test(table: RunTable) -> Test:
    """The test of a run unless another is asked for: pairs where samples recorded that they share their random numbers, else Welch's.

    The rule is fixed before data. Pairing only where r looks positive would reject 8 % of true nulls at r = -.3; pairing always rejects 5 % at any r. Where
    rollouts are word for word the same, they are no pairs of independent observations: such runs have Welch's test on the distinct ones.
    """
    if not table.common_noise:
        return Test.WELCH
    if table.replies is not None:
        for cell in table.cells:
            rows = table.rows(cell) & (table.turns > 0)
            if len(np.unique(table.replies.copies(rows))) < rows.sum():
                return Test.WELCH
    return Test.PAIRED


def _check(table: RunTable, options: Options) -> None:
    if find_rollout_measure(options.primary).name == Measure.AREA:
        raise UsageError(
            "the area is the change in other units, so it is never the primary measure", mend="Use the change: --primary change."
        )
    if options.against is not None and options.against not in table.conditions:
        raise UsageError(f"condition {options.against!r} is not in this run", mend=f"It has: {', '.join(table.conditions)}.")
    if options.equivalence is not None and not (np.isfinite(options.equivalence) and options.equivalence > 0):
        raise UsageError(f"the equivalence margin is {options.equivalence}", mend="Give a positive number, in the axis's units.")
    if options.test is Test.PAIRED and not table.common_noise:
        raise UsageError(
            f"run {table.run_id} has no pairs: its samples did not share their random numbers, or that was not recorded",
            mend="Use --test welch. (Sharing a sample number or a turn is not pairing.)",
        )
    if options.test is Test.MIXED and not _several(table):
        raise UsageError(
            "the mixed model needs two transcripts or more that have the same two conditions at one temperature",
            mend="Use --test welch, or generate the conditions on more transcripts: drift generate --transcript T",
        )


def _several(table: RunTable) -> bool:
    """Whether any two conditions meet on more than one transcript."""
    seen: dict[tuple[str, float], set[str]] = {}
    for cell in table.cells:
        seen.setdefault((cell.condition, cell.temperature), set()).add(cell.transcript)
    return any(len(seen[a] & seen[b]) > 1 for a in seen for b in seen if a < b and a[1] == b[1])


def _turn_pairs(found: Sequence[Pair], baseline: str) -> tuple[list[int], tuple[str, ...]]:
    """The places of the pairs that are the family and are compared turn by turn, and what there is to say about the choice."""
    if len(found) <= MOST_TURN_PAIRS:
        return list(range(len(found))), ()
    kept = [place for place, (_, b) in enumerate(found) if b.cell.condition == baseline]
    if len(kept) == len(found):
        return kept, ()
    said = f"{len(found)} pairs are too many for one family: only those with {baseline} have adjusted p, drift and turns (others: --against NAME)."
    return kept, (said,)


def _long_enough(samples: Iterable[Sample], measure: str) -> bool:
    return any(len(of.turns) >= least_turns(measure) for of in samples)


def _cell_drift(of: Sample, measure: str, options: Options) -> Iterator[CellDrift]:
    if len(of.turns) < least_turns(measure):
        return
    per = moments(of.own[measure][:, None], level=options.level)
    n, cell = int(per.n[0]), of.cell
    note = None if np.isfinite(per.low[0]) else "No interval: fewer than two different rollouts."
    yield CellDrift(
        transcript=cell.transcript,
        condition=cell.condition,
        temperature=cell.temperature,
        measure=measure,
        n=n,
        mean=plain(per.mean[0]),
        low=plain(per.low[0]),
        high=plain(per.high[0]),
        note=note,
    )
