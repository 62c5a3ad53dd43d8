"""A study as tables to read, and as records for CSV. Under every table stands what its numbers can be generalized to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from drift_cli.analysis.controls import Standing
from drift_cli.analysis.power import Power
from drift_cli.analysis.results import Comparison, Correction, Measure, PairTurns, Provenance, Test
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import CellSummary, Summary, percent
from drift_cli.display import Table

MEASURES = {
    Measure.MEAN: "mean",
    Measure.SLOPE: "slope per turn",
    Measure.AREA: "area from turn 1",
    Measure.THIRDS: "last third − first third",
}
MOST_ROWS = 60
"""Pairs that a table for reading shows; CSV and JSON have all."""


def study_tables(study: Study, *, turns: bool = True, which: str = "") -> list[Table]:
    """All tables of a study; with `turns`, also those of every turn. `which` says which replies it is about, in the titles."""
    tables = [summary_table(study.summary, which), pairs_table(study, which), drift_table(study, which)]
    if study.across:
        tables.append(across_table(study, which))
    tables.append(turn_pairs_table(study, which))
    if turns:
        tables += [turns_table(study.summary, which), *(pair_turns_table(pair, study.scope, which) for pair in study.turns[:MOST_ROWS])]
    return [table for table in tables if table.rows]


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """A number for a table, smaller ones with as many significant digits; an em dash where there is none."""
    if value is None:
        return "—"
    if value and abs(value) < 10.0 ** (1 - digits):
        return f"{value:{'+' if sign else ''}.{max(digits - 2, 1)}g}"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def p_value(value: float | None) -> str:
    """A p value for a table: `< .0001` where it is smaller."""
    if value is None:
        return "—"
    return "< .0001" if value < 1e-4 else f"{value:.4f}".lstrip("0") if value < 1 else "1"


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """`[+0.1000, +0.2000]`, or an em dash."""
    return "—" if low is None or high is None else f"[{number(low, digits, sign=True)}, {number(high, digits, sign=True)}]"


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
    return Table(f"Run {summary.run_id}: projection on {summary.axis}{layer}{which}", heads, rows, notes)


def _flagged(cell: CellSummary) -> str:
    counts = cell.flagged
    kinds = {kind: getattr(counts, kind) for kind in ("empty", "repeated", "reciting", "context", "template")}
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "—"


def pairs_table(study: Study, which: str = "") -> Table:
    """Differences of rollout means."""
    return _comparisons(f"Differences of rollout means{which}", study.comparisons, study, study.scope)


def drift_table(study: Study, which: str = "") -> Table:
    """Differences of drift: the slopes first."""
    note = "A slope alone confounds time with the script, so only differences of slopes between conditions speak of drift."
    table = _comparisons(f"Differences of drift{which}", study.drift, study, study.scope, measures=True)
    return Table(table.title, table.heads, table.rows, [note, *table.notes])


def across_table(study: Study, which: str = "") -> Table:
    """Differences over transcripts."""
    scope = "Over transcripts: intervals and p values are about scripts like these, as far as these were chosen like others would be."
    return _comparisons(f"Differences over transcripts{which}", study.across, study, scope, measures=True)


def _comparisons(title: str, found: Sequence[Comparison], study: Study, scope: str, *, measures: bool = False) -> Table:
    options = study.options
    paired, margin = options.test is Test.PAIRED, options.equivalence
    over = any(c.transcripts != 1 or c.transcript is None for c in found)
    heads = [
        "difference",
        *(["of"] if measures else []),
        "transcripts>" if over else "where",
        "n>",
        "estimate>",
        f"{percent(options.level)} interval>",
    ]
    heads += ["statistic (df)>", "p>", "p Holm>", f"Hedges' g [{percent(options.level)}]>"]
    heads += (["r>", "gain>", "p sign-flip>"] if paired else []) + ([f"p within ±{margin:g}>"] if margin is not None else [])
    rows = []
    for c in found[:MOST_ROWS]:
        row = [f"{c.a} − {c.b}", *([MEASURES[c.measure]] if measures else []), str(c.transcripts) if over else _where(c)]
        row += [
            f"{c.n_a}, {c.n_b}",
            number(c.difference, sign=True),
            interval(c.low, c.high),
            _statistic(c),
            p_value(c.p),
            p_value(c.p_adjusted),
        ]
        row.append("—" if c.hedges_g is None else f"{number(c.hedges_g, 2, sign=True)} {interval(c.g_low, c.g_high, 2)}")
        row += [number(c.r, 2, sign=True), number(c.gain, 2), p_value(c.p_flip)] if paired else []
        row += [p_value(c.p_equivalence)] if margin is not None else []
        rows.append(row)
    return Table(title, heads, rows, _comparison_notes(found, scope, paired))


def _where(c: Comparison) -> str:
    return "—" if c.transcript is None or c.temperature is None else f"{c.transcript}, T{c.temperature:g}"


def _statistic(c: Comparison) -> str:
    return "—" if c.statistic is None else f"{c.statistic:.4f}" + ("" if c.df is None else f" ({c.df:.2f})")


def _comparison_notes(found: Sequence[Comparison], scope: str, paired: bool) -> list[str]:
    notes = [*dict.fromkeys(c.method for c in found if c.p is not None), scope]
    tests: dict[Measure, int] = {}
    for c in found:
        tests[c.measure] = tests.get(c.measure, 0) + (c.p is not None)
    if max(tests.values(), default=0) > 1:
        notes.append(f"p Holm: adjusted over the {max(tests.values())} comparisons of a measure.")
    if paired:
        notes.append(
            "gain: variance of the difference without pairing, over that with it (2: pairing was worth twice the rollouts; below 1: it cost)."
        )
    if len(found) > MOST_ROWS:
        notes.append(f"The first {MOST_ROWS} of {len(found)} pairs; --against NAME, --format csv or --json for the others.")
    return [*notes, *dict.fromkeys(f"{c.a} − {c.b}: {c.note}" for c in found[:MOST_ROWS] if c.note)]


def turn_pairs_table(study: Study, which: str = "") -> Table:
    """Which turns differ, a line per pair."""
    rows = []
    for pair in study.turns[:MOST_ROWS]:
        tested = [turn for turn in pair.turns if turn.p_adjusted is not None]
        largest = max(tested, key=lambda t: abs(t.statistic or 0.0), default=None)
        biggest = "—" if largest is None else f"{number(largest.difference, sign=True)} at {largest.turn}, {p_value(largest.p_adjusted)}"
        where = f"{pair.transcript}, T{pair.temperature:g}"
        rows.append([f"{pair.a} − {pair.b}", where, f"{len(pair.significant)} of {len(tested)}", ranges(pair.significant) or "—", biggest])
    alpha = f"{1 - study.options.level:g}".lstrip("0")
    heads = ["difference", "where", f"turns with p < {alpha}>", "which", "clearest, p"]
    said = [f"{p.a} − {p.b}: {p.note}" for p in study.turns[:MOST_ROWS] if p.note]
    warned = ["With p not adjusted, some turn of 18 differs between equal conditions in nearly half of all experiments."]
    notes = [*dict.fromkeys(p.method for p in study.turns), study.scope, *study.notes, *dict.fromkeys(said)]
    return Table(f"Turn by turn{which}", heads, rows, notes + (warned if study.options.correction is Correction.NONE else []))


def ranges(numbers: Sequence[int]) -> str:
    """`2-5, 9` for 2, 3, 4, 5, 9."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def pair_turns_table(pair: PairTurns, scope: str, which: str = "") -> Table:
    """One pair at every turn."""
    rows = [
        [
            str(turn.turn),
            f"{turn.n_a}, {turn.n_b}",
            number(turn.difference, sign=True),
            interval(turn.low, turn.high),
            interval(turn.band_low, turn.band_high),
            p_value(turn.p),
            p_value(turn.p_adjusted),
        ]
        for turn in pair.turns
    ]
    level = percent(pair.level)
    heads = ["turn>", "n>", "difference>", f"{level} interval>", f"{level} band, all turns>", "p>", "p adjusted>"]
    said = [f"turn {turn.turn}: {turn.note}" for turn in pair.turns if turn.note]
    notes = [
        pair.method,
        scope,
        *([pair.note] if pair.note else []),
        *said[:3],
        *([f"… and {len(said) - 3} more"] if len(said) > 3 else []),
    ]
    return Table(f"{pair.a} − {pair.b} ({pair.transcript}, T{pair.temperature:g}){which}", heads, rows, notes)


def turns_table(summary: Summary, which: str = "") -> Table:
    """Mean and half its interval at every turn, a column per cell."""
    several = len({(c.transcript, c.temperature) for c in summary.cells}) > 1
    where = [f" ({c.transcript}, T{c.temperature:g})" if several else "" for c in summary.cells]
    heads = ["turn>", *(f"{cell.condition}{at}>" for cell, at in zip(summary.cells, where, strict=True))]
    numbers = sorted({turn.turn for cell in summary.cells for turn in cell.turns})
    by_turn = [{turn.turn: turn for turn in cell.turns} for cell in summary.cells]
    rows = []
    for at in numbers:
        row = [str(at)]
        for turns in by_turn:
            turn = turns.get(at)
            half = None if turn is None or turn.low is None or turn.mean is None else turn.mean - turn.low
            row.append("—" if turn is None or turn.mean is None else f"{number(turn.mean, sign=True)} ± {number(half)}")
        rows.append(row)
    notes = [f"± half the {percent(summary.level)} t interval over rollouts, pointwise per turn", summary.scope]
    return Table(f"Every turn: mean ± half-width{which}", heads, rows, notes)


def controls_table(found: Sequence[Standing], scope: str) -> Table:
    """Where the differences stand among those on control axes."""
    rows = []
    for s in found[:MOST_ROWS]:
        effects = [number(s.hedges_g, 2, sign=True), number(s.median, 2), number(s.largest, 2)]
        share = "—" if s.smaller is None else f"{100 * s.smaller:.1f} %"
        rows.append([f"{s.a} − {s.b}", f"{s.transcript}, T{s.temperature:g}", f"{s.count} {s.kind}", *effects, share])
    heads = ["difference", "where", "control axes", "g on this axis>", "median |g|>", "largest |g|>", "smaller than here>"]
    said = "random: unit vectors from the whole sphere; shuffled: made as the axis was, of personas whose labels were shuffled"
    return Table("Is it this axis, or any axis?", heads, rows, [said, scope])


def power_tables(found: Sequence[Power], scope: str) -> list[Table]:
    """What more rollouts would show, and how many an interval needs."""
    sizes, needed = [], []
    for p in found:
        named = [f"{p.a} − {p.b}", MEASURES[p.measure], f"{p.transcript}, T{p.temperature:g}"]
        sd = "—" if p.sd is None else f"{number(p.sd)} {_bounds(p.sd_low, p.sd_high)}"
        for at in p.sizes:
            detectable = f"{number(at.detectable)} {_bounds(at.detectable_low, at.detectable_high)}"
            sizes.append([*named, sd, str(at.n), detectable, number(at.half_width)])
        for need in p.needed:
            needed.append([*named, f"{p.n_a}, {p.n_b}", number(need.half_width), "more than 10 million" if need.n is None else str(need.n)])
    said = [*dict.fromkeys(f"{p.a} − {p.b}: {p.note}" for p in found if p.note)]
    if not found:
        return []
    level, goal = percent(found[0].level), percent(found[0].power)
    method = (
        f"two-sided two-sample t test at {percent(1 - found[0].level)}, power {goal}; SD: root mean square of both conditions, with its own {level} interval, "
        "carried through to the detectable difference"
    )
    heads = ["difference", "of", "where"]
    tables = [
        Table(
            "What more rollouts would show",
            [*heads, "SD>", "n per condition>", "detectable difference>", "half-width>"],
            sizes,
            [method, scope, *said],
        ),
        Table("Rollouts needed", [*heads, "n now>", f"half of the {level} interval>", "n per condition>"], needed, [method, scope]),
    ]
    return [table for table in tables if table.rows or table.notes]


def _bounds(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"


def records(study: Study, flagged: str, found: Sequence[Power] = ()) -> list[dict[str, Any]]:
    """Every number of a study as flat records, each with the method and provenance it came from. `flagged`: whether suspect replies are in."""
    source = _source(study.provenance)
    return [{"table": table, "flagged": flagged, **record, **source} for table, record in _records(study, found)]


def _records(study: Study, found: Sequence[Power]) -> Iterator[tuple[str, dict[str, Any]]]:
    summary = study.summary
    common = {"level": summary.level, "method": summary.method, "scope": summary.scope}
    for cell in summary.cells:
        fields = asdict(cell)
        turns, counts = fields.pop("turns"), fields.pop("flagged")
        named = {key: fields[key] for key in ("transcript", "condition", "temperature")}
        yield "cells", {**fields, **{f"flagged_{kind}": count for kind, count in counts.items()}, **common}
        yield from (("cell_turns", {**named, **turn, **common}) for turn in turns)
    yield from (("cell_drift", {**_plain(asdict(row)), "level": summary.level, "scope": study.scope}) for row in study.cell_drift)
    for table, rows in (("comparisons", study.comparisons), ("drift", study.drift), ("across", study.across)):
        yield from ((table, {**_plain(asdict(row)), "scope": study.scope}) for row in rows)
    for pair in study.turns:
        named = {
            "a": pair.a,
            "b": pair.b,
            "transcript": pair.transcript,
            "temperature": pair.temperature,
            "level": pair.level,
            "method": pair.method,
        }
        yield from (("turns", {**named, **asdict(turn), "scope": study.scope}) for turn in pair.turns)
    yield from _power_records(found, study.scope)


def _power_records(found: Sequence[Power], scope: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for power in found:
        fields = _plain(asdict(power))
        sizes, needed = fields.pop("sizes"), fields.pop("needed")
        common = {**fields, "method": "two-sample t test", "scope": scope}
        yield from (("power", {**common, **size}) for size in sizes)
        yield from (("needed", {**common, **need}) for need in needed)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Measure) else value for key, value in record.items()}


def _source(provenance: Provenance) -> dict[str, Any]:
    fields = asdict(provenance)
    versions = fields.pop("versions")
    return {**fields, "versions": "; ".join(f"{name} {number}" for name, number in versions.items())}
