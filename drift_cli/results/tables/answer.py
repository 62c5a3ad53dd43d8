"""The answer in words: a sentence or two per condition, one table, what limits it. `drift stats` prints it, the report begins with it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from drift_cli.analysis.looks import Kind
from drift_cli.analysis.presence import Split
from drift_cli.analysis.results import Comparison, Measure
from drift_cli.analysis.rules import Verdict
from drift_cli.analysis.summary import percent
from drift_cli.analysis.verdict import Answer, Judgement
from drift_cli.display import Table
from drift_cli.results.tables.cautions import cautions
from drift_cli.results.tables.phrases import HARD, evidence, half_width, namer, p_words, signed, why
from drift_cli.results.tables.words import number, p_value

LINES = 25
"""The most that `drift stats` prints unless asked for more."""
_NARROW = 60
_DETAILED = 4
"""Conditions that have sentences of their own; more are listed by verdict."""
_ROWS = 8


def lines(answer: Answer, width: int) -> list[str]:
    """The whole answer in at most `LINES` lines of at most `width` columns."""
    width = max(width, _NARROW)
    head = _wrapped(_title(answer), width)
    said = [line for sentence in sentences(answer, brief=True) for line in _wrapped(sentence, width)]
    table = table_lines(answer, width)
    end = [line for text in (answer.scope.replace("intervals and p values cover ", ""), _MORE) for line in _wrapped(text, width)]
    room = LINES - len(head) - len(table) - len(end) - 2
    said = _fitted(said, max(room - 2, 2))
    return [*head, *said, "", *table, "", *_fitted_cautions(list(cautions(answer)), room - len(said), width), *end]


def _fitted(said: list[str], room: int) -> list[str]:
    return said if len(said) <= room else [*said[: room - 1], "… more in --full."]


def _fitted_cautions(texts: list[str], room: int, width: int) -> list[str]:
    """As many cautions as fit, the most harmful first, and how many did not."""
    made: list[str] = []
    for place, text in enumerate(texts):
        wrapped = _wrapped(f"! {text}", width, indent="  ")
        left = len(texts) - place - 1
        if len(made) + len(wrapped) + (left > 0) > room:
            said = f"! {left + 1} more cautions: --full"
            return [*made, said] if len(made) < room else made
        made += wrapped
    return made


def _title(answer: Answer) -> str:
    layer = "" if answer.layer is None else f", layer {answer.layer}"
    measure = "rollout mean" if answer.primary == Measure.MEAN else str(answer.primary)
    state = "" if answer.finished else " (unfinished)"
    return f"Run {answer.run}{state}: {answer.quantity}{layer}. Primary: {measure}, against {answer.baseline}."


_MORE = "--full: everything. --measures, --turns-table: parts of it. --json. Rules: docs/statistics.md"


def sentences(answer: Answer, *, brief: bool = False) -> list[str]:
    """What is said of the baseline and of each condition, with the evidence unless it is to be brief; of many conditions, which are which."""
    judged = [one for one in answer.judgements if one.verdict is not None]
    places = {(one.transcript, one.temperature) for one in answer.judgements}
    name = namer(len(places) > 1)
    if len(judged) > _DETAILED:
        return [f"{verdict.value}: {_listed([name(one) for one in judged if one.verdict is verdict])}" for verdict in _order(judged)]
    said = []
    for place in dict.fromkeys((one.transcript, one.temperature) for one in answer.judgements):
        here = [one for one in answer.judgements if (one.transcript, one.temperature) == place]
        base = next((one for one in here if one.verdict is None), None)
        said += [_alone(one, answer, name) for one in here if one is base or len(here) == 1]
        said += [_brief(one, answer, name) if brief else _judged(one, base, answer, name) for one in here if one.verdict is not None]
    return said


def plain_sentences(answer: Answer) -> list[str]:
    """The brief sentences for where lines are not wrapped."""
    return [text.replace(HARD, " ") for text in sentences(answer, brief=True)]


def _order(judged: Sequence[Judgement]) -> list[Verdict]:
    return [verdict for verdict in Verdict if any(one.verdict is verdict for one in judged)]


def _listed(names: list[str]) -> str:
    shown = names[:12]
    return f"{len(names)} conditions ({', '.join(shown)}{', …' if len(names) > len(shown) else ''})" if len(names) > 1 else names[0]


def _alone(one: Judgement, answer: Answer, name: Callable[[Judgement], str]) -> str:
    """The baseline's own course."""
    if one.change.value is None:
        return f"{name(one)}: no rollout has enough turns to say where it goes."
    how = "falls" if one.fell else "is not shown to fall"
    interval = "" if one.change.half is None else f"{HARD}±{HARD}{half_width(one.change.half)}"
    return f"{name(one)} {how} from turn {answer.first} on: by {signed(one.change.value)}{interval} on average over the later turns."


def _brief(one: Judgement, answer: Answer, name: Callable[[Judgement], str]) -> str:
    """The verdict, and which statements it rests on: their numbers stand in the table."""
    assert one.verdict is not None
    parts = []
    level, drifts = _subject(one.split is not None), _drifts(one)
    for row, what, up, down in (
        (one.shown_level, "level", f"{level} is above", f"{level} is below"),
        (one.shown_drift, "drift", f"{drifts} less than", f"{drifts} more than"),
    ):
        if row is None or row.difference is None or row.p is None:
            parts.append(f"its {what} cannot be compared{why(row)}")
        elif row.starred:
            parts.append(f"{up if row.difference > 0 else down} {answer.baseline}")
        else:
            parts.append(f"no difference in {what}{_of_words(one, what)} is shown")
    said = ", ".join(parts) + _stay(one, answer)
    return f"{name(one)}: {one.verdict.value.upper()}. {said[0].upper()}{said[1:]}."


def _subject(words: bool) -> str:
    """Whose level it is: that of the replies' words, where the prompt's presence is told apart."""
    return "the level of its words" if words else "its level"


def _drifts(one: Judgement) -> str:
    return "it drifts" if one.drift_split is None else "its words drift"


def _of_words(one: Judgement, what: str) -> str:
    return " of words" if (one.split if what == "level" else one.drift_split) is not None else ""


def _judged(one: Judgement, base: Judgement | None, answer: Answer, name: Callable[[Judgement], str]) -> str:
    assert one.verdict is not None
    return f"{name(one)}: {one.verdict.value.upper()}. {_level(one, answer)} {_drift(one, base, answer)}"


def _level(one: Judgement, answer: Answer) -> str:
    row = one.shown_level
    if row is None or row.difference is None:
        return f"Its level cannot be compared with that of {answer.baseline}{why(row)}."
    if row.starred:
        side = "above" if row.difference > 0 else "below"
        subject = _subject(one.split is not None)
        return f"{subject[0].upper()}{subject[1:]} is {side} that of {answer.baseline}: {evidence(row)}{_parts(one.split)}."
    return f"No difference in level{_of_words(one, 'level')} from {answer.baseline} is shown: {evidence(row)}{_parts(one.split)}."


def _parts(split: Split | None) -> str:
    """What the prompt's presence does to the same words, behind the words' part."""
    if split is None or split.presence.difference is None:
        return ""
    share = "" if split.share is None else f", {100 * split.share:.0f} % of the difference"
    half = None if split.presence.low is None or split.presence.high is None else (split.presence.high - split.presence.low) / 2
    return f"; the prompt's presence moves the same words by {_with_half(split.presence.difference, half).replace(' ', HARD)}{share}"


def _drift(one: Judgement, base: Judgement | None, answer: Answer) -> str:
    row = one.shown_drift
    if row is None or row.difference is None:
        return f"Its drift cannot be compared{why(row)}."
    from_start = f"change from turn {answer.first} {signed(one.change.value)}"
    if base is not None and base.change.value is not None:
        from_start += f" against {signed(base.change.value)}"
    if row.starred:
        how = "less" if row.difference > 0 else "more"
        subject = _drifts(one)
        return f"{subject[0].upper()}{subject[1:]} {how} than {answer.baseline} ({from_start}): {evidence(row)}{_stay(one, answer)}."
    return f"No difference in drift{_of_words(one, 'drift')} is shown ({from_start}): {evidence(row)}{_stay(one, answer)}."


def _stay(one: Judgement, answer: Answer) -> str:
    """Whether it stayed near its own start, in words."""
    margin = "half of the baseline's fall" if answer.margin is None else number(answer.margin, 2)
    if one.verdict is Verdict.HELD:
        return f"; it fell by less than {margin} (p{HARD}{p_words(one.stayed)})"
    if one.sank is not None and one.sank <= 1 - answer.level:
        return f"; it fell by more than {margin} (p{HARD}{p_words(one.sank)})"
    return "" if one.verdict is not Verdict.PARTLY else f"; that it fell by less than {margin} is not shown"


def verdict_table(answer: Answer) -> Table:
    """The verdicts as a table to read or print, every caution below it."""
    split = any(one.split is not None for one in answer.judgements)
    heads = ["condition", "where", "verdict", *(f"{head}>" for head in _heads(split)[1:-1]), "p >"]
    rows = []
    for one in answer.judgements:
        row = [cell.replace(HARD, " ") for cell in _row(one, split)]
        rows.append([row[0], f"{one.transcript}, T{one.temperature:g}", one.verdict.value if one.verdict else "baseline", *row[1:]])
    notes = [*sentences(answer), *(f"Caution: {text}" for text in cautions(answer)), answer.scope]
    return Table(_title(answer), heads, rows, [note.replace(HARD, " ") for note in notes])


def table_lines(answer: Answer, width: int) -> list[str]:
    """The one table: level and drift of each condition against the baseline; narrower where there is less room, never folded."""
    split = any(one.split is not None for one in answer.judgements)
    rows = [_row(one, split) for one in answer.judgements]
    order = sorted(range(len(rows)), key=lambda place: (answer.judgements[place].verdict is not None, _rank(answer.judgements[place])))
    shown = [rows[place] for place in sorted(order[:_ROWS])] if len(rows) > _ROWS else rows
    heads = _heads(split)
    for drop in _DROPS_SPLIT if split else _DROPS:
        kept = [place for place in range(len(heads)) if place not in drop]
        made = _aligned([[row[place] for place in kept] for row in [heads, *shown]], width)
        if made is not None:
            break
    assert made is not None
    left = len(rows) - len(shown)
    note = f"± half the {_interval_name(answer)}; p adjusted" + (f"; {left} more conditions in --full" if left else "")
    told = f"level − baseline = presence of the prompt (same words) + words, both orders averaged; p: of the words; {note}"
    notes = _wrapped(told, width) if split else [note] if len(note) <= width else []
    return [*made, *notes]


def _interval_name(answer: Answer) -> str:
    """Which interval stands in the table."""
    usual = f"{percent(answer.level)} interval"
    found = answer.looked
    if found is None or found.only:
        return usual
    if set(found.kinds) == {Kind.PLANNED}:
        return f"repeated {usual} of planned look {found.number}"
    return f"always-valid {usual} (look {found.number})"


def _heads(split: bool) -> list[str]:
    """Of the one table; with the split, level and drift are tested on the words' part."""
    if split:
        return ["", "n", "mean", "level − baseline", "presence", "words", "p", "own change", "words drift less by", "p"]
    return ["", "n", "mean", "level − baseline", "p", "own change", "less drift by", "p"]


_DROPS = ((), (2,), (2, 5), (1, 2, 5), (1, 2, 5, 6, 7))
_DROPS_SPLIT = ((), (2,), (2, 7), (1, 2, 7), (1, 2, 3, 7), (1, 2, 3, 7, 8, 9), (1, 2, 3, 4, 7, 8, 9))
"""Columns that are left out where there is less and less room."""


def _rank(one: Judgement) -> float:
    return 2.0 if one.level is None or one.level.p is None else one.level.p


def _row(one: Judgement, split: bool) -> list[str]:
    n = str(one.quality.distinct) if one.quality.distinct == one.quality.begun else f"{one.quality.distinct}/{one.quality.begun}"
    own = _with_half(one.change.value, one.change.half)
    if not split:
        return [one.condition, n, signed(one.mean), *_difference(one.level), own, *_difference(one.drift)]
    whole = _difference(one.level)[0].rstrip("* ")
    alone = "" if one.split is None else _difference(one.split.presence)[0].rstrip()
    return [one.condition, n, signed(one.mean), whole, alone, *_difference(one.shown_level), own, *_difference(one.shown_drift)]


def _difference(row: Comparison | None) -> list[str]:
    if row is None or row.difference is None:
        return ["", ""] if row is None else ["—", "—"]
    half = None if row.low is None or row.high is None else (row.high - row.low) / 2
    return [_with_half(row.difference, half) + ("*" if row.starred else " "), p_value(row.p_adjusted)]


def _with_half(value: float | None, half: float | None) -> str:
    return signed(value) if half is None else f"{signed(value)} ± {half_width(half)}"


def _aligned(cells: list[list[str]], width: int) -> list[str] | None:
    """Columns of text, the first to the left, the others to the right; None where they do not fit with 14 characters of the names."""
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    room = width - sum(widths[1:]) - 2 * (len(widths) - 1)
    if room < min(widths[0], 14):
        return None
    names = min(widths[0], room)
    return [
        "  ".join(
            [_short(row[0], names).ljust(names), *(cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in cells
    ]


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def _wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    found = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace(HARD, " ") for line in found]
