"""A run's statistics, whole: `analyze` takes the tidy table and what is asked for, and returns frozen results. No files, no terminal.

What it promises: the same table and options give the same numbers; no number is NaN; what cannot be said is None, with a sentence why; every result
carries its method and the provenance (run, axis, data digest, seed, versions) it came from.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from drift_cli import __version__
from drift_cli.analysis.compare import Pair, compare, over_transcripts, pairs, strangers
from drift_cli.analysis.measures import LEAST_TURNS, Sample, sample
from drift_cli.analysis.results import CellDrift, Comparison, Measure, Options, PairTurns, PartProvenance, Provenance, Test
from drift_cli.analysis.summary import Summary, moments, plain, scope, summarize
from drift_cli.analysis.table import RunTable
from drift_cli.analysis.turns import by_turn
from drift_cli.errors import UsageError

MOST_TURN_PAIRS = 250
"""Pairs that are compared turn by turn; of more (23 conditions have 253), only those with the run's first condition are."""
DRIFT = (Measure.SLOPE, Measure.AREA, Measure.THIRDS)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything about one table."""

    options: Options
    summary: Summary
    comparisons: tuple[Comparison, ...]
    """Pairs of conditions on rollout means."""
    drift: tuple[Comparison, ...]
    """Pairs of conditions on slope, area and thirds: the difference of slopes is the headline."""
    cell_drift: tuple[CellDrift, ...]
    turns: tuple[PairTurns, ...]
    across: tuple[Comparison, ...]
    """Where several transcripts have the same two conditions: over transcripts, means and slopes."""
    scope: str
    notes: tuple[str, ...]
    provenance: Provenance


def analyze(table: RunTable, options: Options | None = None) -> Study:
    """All statistics of a table.

    Raises `UsageError` for a condition or turns that the table does not have, for `paired` without common random numbers, and for `mixed` with one
    transcript.
    """
    options = options or Options()
    _check(table, options)
    if options.turns is not None:
        table = table.window(*options.turns)
    samples = [sample(table, cell) for cell in table.cells]
    found = pairs(samples, options.against)
    shown, said = _turn_pairs(found, table, options)
    several = _several(table) and options.test is not Test.MIXED
    return Study(
        options=options,
        summary=summarize(table, ddof=options.ddof, level=options.level),
        comparisons=(*compare(found, Measure.MEAN, options), *strangers(found, table.conditions, options)),
        drift=tuple(row for measure in DRIFT if _long_enough(samples, measure) for row in compare(found, measure, options)),
        cell_drift=tuple(row for measure in DRIFT for of in samples for row in _cell_drift(of, measure, options)),
        turns=tuple(by_turn(pair, options) for pair in shown),
        across=tuple(row for m in (Measure.MEAN, Measure.SLOPE) for row in over_transcripts(found, m, options)) if several else (),
        scope=scope(table),
        notes=said,
        provenance=provenance(table, options),
    )


def provenance(table: RunTable, options: Options) -> Provenance:
    """Where numbers from this table and these options come from."""
    versions = {"drift": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("numpy", "scipy", "statsmodels")}
    data = hashlib.sha256(np.ascontiguousarray(table.projections).tobytes()).hexdigest()[:16]
    given = (table.run_id, table.axis, table.layer, data, options.seed, options.resamples, versions)
    return Provenance(*given) if table.segment is None else PartProvenance(*given, table.segment.value)


def _check(table: RunTable, options: Options) -> None:
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


def _turn_pairs(found: Sequence[Pair], table: RunTable, options: Options) -> tuple[list[Pair], tuple[str, ...]]:
    """The pairs that are compared turn by turn, and what there is to say about the choice."""
    if len(found) <= MOST_TURN_PAIRS or options.against is not None:
        return list(found), ()
    first = table.conditions[0]
    kept = [(a, b) for a, b in found if b.cell.condition == first]
    return kept, (f"{len(found)} pairs are too many to read turn by turn: only those with {first} are shown (others: --against).",)


def _long_enough(samples: Iterable[Sample], measure: Measure) -> bool:
    return any(len(of.turns) >= LEAST_TURNS[measure] for of in samples)


def _cell_drift(of: Sample, measure: Measure, options: Options) -> Iterator[CellDrift]:
    if len(of.turns) < LEAST_TURNS[measure]:
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
