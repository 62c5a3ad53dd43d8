"""Pairs of conditions on one measure per rollout, within a transcript and temperature, or over transcripts.

Differences are `a` minus `b`: the condition that comes later in the run minus the earlier one, or every other condition minus the one that is named. p
values are given as they are; `study.py` adjusts them, the primary ones by Holm's step-down procedure (1979), the others in their family (`family.py`).
Sharing a turn or a sample index is not pairing; only `paired` pairs, and only runs whose samples share their random numbers have pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from drift_cli.analysis import effects, mixed, tests
from drift_cli.analysis.dropout import worst
from drift_cli.analysis.measures import Sample, both, lacking_note, least_turns, matched
from drift_cli.analysis.results import Comparison, Correction, Difference, Options, Test
from drift_cli.analysis.summary import constant, percent, plain
from drift_cli.analysis.table import FloatArray, Group

Pair = tuple[Sample, Sample]
Observed = tuple[FloatArray, FloatArray]
"""Observations of a (n,) and b (m,), all finite."""


def pairs(samples: Sequence[Sample], against: str | None) -> list[Pair]:
    """Every two cells of one transcript and temperature, or each with the condition `against`."""
    groups: dict[Group, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[Group(sample.cell.transcript, sample.cell.temperature)].append(sample)
    return [pair for group in groups.values() for pair in _pairs_of(group, against)]


def _pairs_of(group: Sequence[Sample], against: str | None) -> Iterator[Pair]:
    if against is None:
        yield from ((a, b) for b, a in combinations(group, 2))
        return
    for b in (sample for sample in group if sample.cell.condition == against):
        yield from ((a, b) for a in group if a is not b)


def compare(found: Sequence[Pair], measure: str, options: Options) -> tuple[Comparison, ...]:
    """Each pair on one measure by the test that is asked for, p not adjusted; for `mixed`, the pairs that several transcripts have together."""
    if options.test is Test.MIXED:
        return over_transcripts(found, measure, options)
    results = differences([_observed(measure, pair, options.test) for pair in found], options)
    return tuple(_named(*row, measure=measure) for row in zip(found, results, strict=True))


def over_transcripts(found: Sequence[Pair], measure: str, options: Options) -> tuple[Comparison, ...]:
    """The same two conditions over all transcripts that have both: by the mixed model if `mixed` was asked for, else by t over transcripts."""
    gathered: dict[tuple[str, str, float], list[Pair]] = defaultdict(list)
    for pair in found:
        first, second = (sample.cell for sample in pair)
        gathered[first.condition, second.condition, first.temperature].append(pair)
    run = mixed.mixed if options.test is Test.MIXED else mixed.clustered
    rows = []
    for (a, b, temperature), several in gathered.items():
        groups = [group for pair in several if min(map(len, group := _observed(measure, pair, Test.WELCH)))]
        result = run(groups, options.level, options.equivalence)
        said = {**vars(result), "note": _joined(result.note, *(lacking_note(*pair, measure=measure) for pair in several))}
        rows.append(Comparison(**said, a=a, b=b, transcript=None, temperature=temperature, measure=measure, transcripts=len(groups)))
    return tuple(rows)


def adjusted(rows: Sequence[Comparison], **fields: Any) -> tuple[Comparison, ...]:
    """The rows with Holm's p over all of them, and `fields` as given."""
    corrected = adjust([row.p for row in rows], Correction.HOLM)
    return tuple(replace(row, p_adjusted=p, **fields) for row, p in zip(rows, corrected, strict=True))


def differences(observed: Sequence[Observed], options: Options) -> list[Difference]:
    """Each pair of samples compared by itself. Pairs with equal numbers of rollouts are computed together: it is the same, and faster."""
    sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (a, b) in enumerate(observed):
        sizes[len(a), len(b)].append(index)
    results: dict[int, Difference] = {}
    for indices in sizes.values():
        a, b = (np.stack([observed[index][side] for index in indices], axis=1) for side in (0, 1))
        results |= zip(indices, _batch(a, b, options), strict=True)
    return [results[index] for index in range(len(observed))]


def adjust(p: Sequence[float | None], method: Correction) -> list[float | None]:
    """p values adjusted by `holm` or `bh`, in the order given; None stays None and does not count."""
    known = [index for index, value in enumerate(p) if value is not None]
    found: list[float | None] = [None] * len(p)
    if known:
        values = np.array([p[index] for index in known], dtype=np.float64)
        adjusted = holm(values) if method is Correction.HOLM else stats.false_discovery_control(values)
        for index, value in zip(known, adjusted.tolist(), strict=True):
            found[index] = value
    return found


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down p (…, T), over the last axis. (statsmodels has it too, but runs a garbage collection in every call, ~80 ms; tests compare.)"""
    order = np.argsort(p, axis=-1)
    sizes = p.shape[-1] - np.arange(p.shape[-1])
    stepped = np.minimum(np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * sizes, axis=-1), 1.0)
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, stepped, axis=-1)
    return adjusted


def _observed(measure: str, pair: Pair, test: Test) -> Observed:
    """What of the two cells is compared: their rollouts that have the measure; for `paired`, the samples of which both have it."""
    a, b = both(measure, *(matched(*pair) if test is Test.PAIRED else pair))
    return a[np.isfinite(a)], b[np.isfinite(b)]


def _named(pair: Pair, result: Difference, *, measure: str) -> Comparison:
    a, b = pair
    cell, fields = a.cell, vars(result)
    named: dict[str, Any] = {"a": cell.condition, "b": b.cell.condition, "transcript": cell.transcript, "temperature": cell.temperature}
    if result.difference is None and a.started and b.started:
        common = int((a.counts & b.counts).sum())
        if common == 0:
            fields = {**fields, "note": "These conditions have no turn in common that enough rollouts have, so they cannot be compared."}
        elif common < least_turns(measure):
            fields = {**fields, "note": f"They have {common} turns in common, too few for this measure."}
    fields = {**fields, "note": _joined(fields["note"], lacking_note(a, b, measure=measure))}
    return Comparison(**fields, **named, measure=measure, worst=worst(measure, a, b, result))


def strangers(found: Sequence[Pair], conditions: Sequence[str], options: Options) -> Iterator[Comparison]:
    """Pairs of conditions that no transcript and temperature has both of: a line with a note each, so that none is missing unexplained."""
    met = {frozenset((a.cell.condition, b.cell.condition)) for a, b in found}
    note = "These conditions share no transcript and temperature, so they cannot be compared."
    for b, a in combinations(conditions, 2):
        if frozenset((a, b)) not in met and options.against in (None, a, b):
            first, second = (b, a) if options.against == a else (a, b)
            nothing = Difference(n_a=0, n_b=0, difference=None, level=options.level, method="none", note=note)
            yield Comparison(**vars(nothing), a=first, b=second, transcript=None, temperature=None)


def _joined(*sentences: str | None) -> str | None:
    return " ".join(dict.fromkeys(sentence for sentence in sentences if sentence)) or None


def _batch(a: FloatArray, b: FloatArray, options: Options) -> list[Difference]:
    """Compare the columns of `a` (n, K) and `b` (m, K)."""
    common: dict[str, Any] = {"n_a": len(a), "n_b": len(b), "level": options.level, "method": method(options)}
    if min(len(a), len(b)) == 0:
        return [Difference(**common, difference=None, note="No rollout to compare on one side.")] * a.shape[1]
    notes, possible = _obstacles(a, b, options)
    results = [
        Difference(**common, difference=float(difference), note=note)
        for difference, note in zip(a.mean(axis=0) - b.mean(axis=0), notes, strict=True)
    ]
    if possible.any():
        numbers = _estimate(a[:, possible], b[:, possible], options)
        rows = zip(*([plain(value) for value in column.tolist()] for column in numbers.values()), strict=True)
        for index, row in zip(np.flatnonzero(possible), rows, strict=True):
            results[index] = Difference(**common, **dict(zip(numbers, row, strict=True)), note=notes[index])
    return results


def _estimate(a: FloatArray, b: FloatArray, options: Options) -> dict[str, FloatArray]:
    """All numbers of these comparisons, by the names of `Difference`'s fields."""
    pairing = options.test is Test.PAIRED
    effect = (effects.hedges_g_paired if pairing else effects.hedges_g)(a, b, options.level)
    numbers = dict(vars(_TESTS[options.test](a, b, options)))
    numbers |= {"hedges_g": effect.g, "g_low": effect.low, "g_high": effect.high}
    if options.equivalence is not None:
        numbers["p_equivalence"] = (effects.equivalence_paired if pairing else effects.equivalence)(a, b, options.equivalence)
    return numbers


_TESTS: dict[Test, Callable[[FloatArray, FloatArray, Options], tests.Estimates]] = {
    Test.WELCH: lambda a, b, o: tests.welch(a, b, o.level),
    Test.BOOTSTRAP: lambda a, b, o: tests.bootstrap(a, b, o.level, o.resamples, o.seed),
    Test.PERMUTATION: lambda a, b, o: tests.permutation(a, b, o.level, o.resamples, o.seed),
    Test.PAIRED: lambda a, b, o: tests.paired(a, b, o.level, o.resamples, o.seed),
}


def _obstacles(a: FloatArray, b: FloatArray, options: Options) -> tuple[list[str | None], NDArray[np.bool_]]:
    """Why there is no test, for each column of `a` (n, K) and `b` (m, K); and where there is one."""
    count, least = a.shape[1], min(len(a), len(b))
    said = None
    if least == 1:
        said = (
            "One pair of rollouts: a test needs two or more."
            if options.test is Test.PAIRED
            else "One rollout on one side: a test needs two or more on each."
        )
    elif options.test is Test.BOOTSTRAP and least < tests.LEAST_BOOTSTRAP:
        said = f"The bootstrap needs {tests.LEAST_BOOTSTRAP} rollouts or more on each side; use welch."
    elif options.test is Test.PERMUTATION and tests.smallest_p(len(a), len(b)) > 1 - options.level:
        said = f"With so few rollouts no permutation p is below {tests.smallest_p(len(a), len(b)):.3f}; use welch."
    if said is not None:
        return [said] * count, np.zeros(count, dtype=np.bool_)
    same_a, same_b = constant(a), constant(b)
    notes: list[str | None] = [None] * count
    for index in np.flatnonzero(same_a | same_b):
        sides = "both sides" if same_a[index] and same_b[index] else "one side"
        notes[index] = f"All rollouts are equal on {sides}: without sampling noise there is no test."
    possible = ~(same_a | same_b)
    if options.test is Test.PAIRED:
        alike = possible & constant(a - b, scale=np.abs(a).max(axis=0))
        for index in np.flatnonzero(alike):
            notes[index] = "Every pair differs by the same: without noise between pairs there is no test."
        possible &= ~alike
    return notes, possible


def method(options: Options) -> str:
    """What was done, for under a table."""
    interval, seeded = percent(options.level), f"{options.resamples} resamples or all there are, seed {options.seed}"
    return {
        Test.WELCH: f"Welch's t test of rollouts, {interval} t interval",
        Test.BOOTSTRAP: f"bootstrap-t of whole rollouts, symmetric {interval} interval, {options.resamples} resamples, seed {options.seed}",
        Test.PERMUTATION: f"permutation of whole rollouts and sign flips within conditions, Welch's t, {interval} interval, {seeded}",
        Test.PAIRED: f"paired t test of samples with common random numbers, {interval} t interval; sign-flip permutation, {seeded}",
        Test.MIXED: f"linear mixed model, {interval} interval",
    }[options.test]
