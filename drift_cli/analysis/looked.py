"""A study and its splits as of a look: intervals and p that apply, and what there is to say of looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drift_cli.analysis.compare import adjust
from drift_cli.analysis.looks import Kind, Looking, Standing
from drift_cli.analysis.plans import departures
from drift_cli.analysis.presence import Presence
from drift_cli.analysis.results import Comparison, Correction, Role
from drift_cli.analysis.study import Study
from drift_cli.analysis.table import RunTable
from drift_cli.spec import Cell


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What an answer says of looks."""

    number: int
    """Of this look, 1 for the first; the largest of the primary comparisons'."""
    kinds: tuple[Kind, ...]
    """Which test and interval apply to the primary comparisons; mostly one."""
    earlier: tuple[int, ...]
    """Rollouts a condition at earlier looks, the largest condition's."""
    planned: tuple[int, ...] = ()
    """The plan's looks."""
    digest: str | None = None
    """Of the plan."""
    departures: tuple[str, ...] = ()
    """Where the analysis is not the planned one."""
    standings: tuple[tuple[str, Standing], ...] = ()
    """By condition (with transcript and temperature where there are several): the primary comparison beside that of a single look."""
    single: tuple[tuple[str, float, float, float], ...] = ()
    """The same comparisons as if this were the only look: condition, low, high, p."""

    @property
    def only(self) -> bool:
        """Whether nothing hangs on looks: the first one, without a plan."""
        return set(self.kinds) <= {Kind.ONE}


def study_as_of(study: Study, found: Looking) -> Study:
    """A study with the intervals and p that apply at this look; nothing changes where all its data are looked at for the first time and there is no plan."""
    rows = (*study.comparisons, *study.drift, *study.added)
    made = _as_of(rows, found, study.options.level)
    if made is None:
        return study
    first = [row.p_adjusted for row in made if row.role is Role.PRIMARY and row.p_adjusted is not None]
    gate = max(min(first, default=1.0), study.gate or 0.0)
    made = [row if row.role is Role.PRIMARY else replace(row, gate=gate) for row in made]
    cut, end = len(study.comparisons), len(study.comparisons) + len(study.drift)
    turns = tuple(replace(pair, gate=gate) for pair in study.turns)
    return replace(study, comparisons=tuple(made[:cut]), drift=tuple(made[cut:end]), added=tuple(made[end:]), turns=turns, gate=gate)


def presence_as_of(presence: Presence, found: Looking, level: float) -> Presence:
    """The splits with the intervals and p that apply at this look."""
    words = _as_of([one.words for one in presence.splits], found, level)
    if words is None:
        return presence
    first = [row.p_adjusted for row in words if row.role is Role.PRIMARY and row.p_adjusted is not None]
    gate = min(first, default=1.0)
    words = [row if row.role is Role.PRIMARY else replace(row, gate=gate) for row in words]
    alone = _as_of([one.presence for one in presence.splits], found, level)
    assert alone is not None
    alone = [replace(row, p_adjusted=None) for row in alone]
    return replace(
        presence, splits=tuple(replace(one, words=w, presence=p) for one, w, p in zip(presence.splits, words, alone, strict=True))
    )


def _as_of(rows: Sequence[Comparison], found: Looking, level: float) -> list[Comparison] | None:
    """The rows as of this look; None where each is of a single look. p of the primary ones are adjusted anew; others keep the larger of both."""
    if found.fresh:
        return None
    standings = [found.standing(row, level) for row in rows]
    if all(one is None or one.kind is Kind.ONE for one in standings):
        return None
    made = [row if one is None or one.kind is Kind.ONE else _applied(row, one) for row, one in zip(rows, standings, strict=True)]
    for wanted in dict.fromkeys((row.role, row.measure) for row in made):
        places = [place for place, row in enumerate(made) if (row.role, row.measure) == wanted]
        corrected = adjust([made[place].p for place in places], Correction.HOLM)
        for place, p in zip(places, corrected, strict=True):
            usual = rows[place].p_adjusted
            adjusted = p if wanted[0] is Role.PRIMARY or p is None or usual is None else max(p, usual)
            made[place] = replace(made[place], p_adjusted=adjusted)
    return made


def _applied(row: Comparison, standing: Standing) -> Comparison:
    method = f"{row.method.split(',')[0]}, {standing.kind.value} at look {standing.look}"
    return replace(row, low=standing.low, high=standing.high, p=standing.p, method=method)


def looked(study: Study, presence: Presence, found: Looking, table: RunTable) -> Looked:
    """What there is to say of looks, from a study and splits as they are for a single look."""
    lead = study.options.primary
    rows = [one.words for one in presence.splits if one.measure == lead]
    rows = rows or [row for row in (*study.comparisons, *study.drift, *study.added) if row.role is Role.PRIMARY]
    several = len({(row.transcript, row.temperature) for row in rows}) > 1
    known = [
        (f"{row.a} ({row.transcript}, T {row.temperature:g})" if several else row.a, row, found.standing(row, study.options.level))
        for row in rows
    ]
    there = [(name, row, one) for name, row, one in known if one is not None]
    cells = [
        Cell(row.transcript, name, row.temperature)
        for _, row, _ in there
        for name in (row.a, row.b)
        if row.transcript and row.temperature is not None
    ]
    earlier = sorted({max(count.rollouts for count in counts) for counts in found.earlier(cells)}) if cells else []
    plan = found.plan
    return Looked(
        number=max((one.look for _, _, one in there), default=1),
        kinds=tuple(dict.fromkeys(one.kind for _, _, one in there)),
        earlier=tuple(earlier),
        planned=() if plan is None else plan.looks,
        digest=None if plan is None else plan.digest,
        departures=() if plan is None else tuple(departures(plan, study.options, table)),
        standings=tuple((name, one) for name, _, one in there),
        single=tuple(
            (name, row.low, row.high, row.p) for name, row, _ in there if row.low is not None and row.high is not None and row.p is not None
        ),
    )
