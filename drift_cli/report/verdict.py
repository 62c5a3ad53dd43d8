"""The verdict in words: what a study says of each condition against the baseline, and what limits it.

Higher is nearer the assistant's end of an axis: axes are built as the assistant's mean less the other personas'. A difference is stated as one where Holm's
p over all comparisons with the baseline is below 1 - level, and as not shown otherwise: that is no proof of equality.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drift_cli.analysis.results import Comparison, Measure, PairTurns
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import CellSummary, percent
from drift_cli.tables.words import number, p_value, ranges


@dataclass(frozen=True)
class Sentence:
    """One sentence of the verdict; `caution` for what limits it."""

    text: str
    caution: bool = False


def verdict(study: Study, baseline: str, notes: tuple[str, ...] = ()) -> list[Sentence]:
    """The sentences about a study that compares every condition with `baseline`; `notes` are cautions of the model and the axis."""
    said = []
    groups = list(dict.fromkeys((cell.transcript, cell.temperature) for cell in study.summary.cells))
    for group in groups:
        where = f"{group[0]}, T {group[1]:g}: " if len(groups) > 1 else ""
        said += [Sentence(where + text) for text in _group(study, baseline, group)]
    cautions = [*notes, study.scope, *_flagged(study.summary.cells), *_few(study.summary.cells)]
    return [*said, *(Sentence(text, caution=True) for text in cautions)]


def _group(study: Study, baseline: str, group: tuple[str, float]) -> Iterator[str]:
    cells = [cell for cell in study.summary.cells if (cell.transcript, cell.temperature) == group]
    for cell in cells:
        if cell.condition == baseline or len(cells) == 1:
            yield from _course(cell)
    for pair in study.comparisons:
        if (pair.transcript, pair.temperature) == group:
            slope = _same(pair, study.drift)
            yield " ".join(text for text in (_mean(pair), _slope(slope), _turns(pair, study.turns)) if text)


def _course(cell: CellSummary) -> Iterator[str]:
    """Where the baseline goes: from its first turn to its last."""
    known = [turn for turn in cell.turns if turn.mean is not None]
    if len(known) > 1:
        first, last = known[0], known[-1]
        yield f"Under {cell.condition} the mean projection is {_number(first.mean)} at turn {first.turn} and {_number(last.mean)} at turn {last.turn}."


def _mean(pair: Comparison) -> str:
    if pair.difference is None:
        return f"{pair.a} and {pair.b} cannot be compared: {pair.note}"
    size = f"{_number(pair.difference)} on average{_evidence(pair)}"
    if not _shown(pair):
        return f"No difference between {pair.a} and {pair.b} is shown: {size}."
    nearer = "nearer the assistant's end of the axis" if pair.difference > 0 else "further from the assistant's end of the axis"
    return f"Under {pair.a} the model stays {nearer} than under {pair.b}: by {size}."


def _slope(pair: Comparison | None) -> str | None:
    if pair is None or pair.difference is None or not _shown(pair):
        return None
    less = "less" if pair.difference > 0 else "more"
    return f"It also drifts {less} from turn to turn: its slope differs by {_number(pair.difference)} per turn{_evidence(pair)}."


def _turns(pair: Comparison, found: tuple[PairTurns, ...]) -> str | None:
    for turns in found:
        if (turns.a, turns.b, turns.transcript, turns.temperature) == (
            pair.a,
            pair.b,
            pair.transcript,
            pair.temperature,
        ) and turns.significant:
            which = (
                f"turn {turns.significant[0]}" if len(turns.significant) == 1 else f"turns {ranges(turns.significant).replace('-', '–')}"
            )
            return f"Tested together, {which} of {len(turns.turns)} differ{'s' * (len(turns.significant) == 1)}."
    return None


def _same(pair: Comparison, found: tuple[Comparison, ...]) -> Comparison | None:
    wanted = (pair.a, pair.b, pair.transcript, pair.temperature)
    return next((row for row in found if row.measure is Measure.SLOPE and (row.a, row.b, row.transcript, row.temperature) == wanted), None)


def _shown(pair: Comparison) -> bool:
    return pair.p_adjusted is not None and pair.p_adjusted < 1 - pair.level


def _evidence(pair: Comparison) -> str:
    parts = []
    if pair.low is not None and pair.high is not None:
        parts.append(f"{percent(pair.level)} interval {_number(pair.low)} to {_number(pair.high)}")
    if pair.hedges_g is not None:
        parts.append(f"Hedges' g {_number(pair.hedges_g)}")
    if pair.p_adjusted is not None:
        p = p_value(pair.p_adjusted)
        parts.append(f"p {p}" if p.startswith("<") else f"p = {p}")
    return f" ({'; '.join(parts)})" if parts else f" ({pair.note.rstrip('.')})" if pair.note else ""


def _number(value: float | None) -> str:
    return number(value, 2, sign=True).replace("-", "−")


def _flagged(cells: tuple[CellSummary, ...]) -> Iterator[str]:
    """How many replies may not be answers."""
    for cell in cells:
        if cell.flagged.suspect:
            yield f"{cell.flagged.suspect} of {cell.replies} replies of {cell.condition} are flagged; the tables come with and without them."


def _few(cells: tuple[CellSummary, ...]) -> Iterator[str]:
    for cell in cells:
        if cell.note:
            yield f"{cell.condition}: {cell.note}"
