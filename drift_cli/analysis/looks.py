"""Which test and interval a comparison has, given how often its data were looked at before.

*one look*: its rollouts were never looked at while there were fewer of them. The usual test and interval apply.
*planned*: the run has a plan, and every condition has as many complete rollouts as one of its looks says. The boundary of this look is what the plan's α spends
here, given the looks that were taken (`sequential.py`); the interval is the repeated one (Jennison & Turnbull 2000, ch. 9).
*not planned*: the run has a plan, and this is none of its looks. Nothing is shown here, whatever p is: all α belongs to the planned looks.
*always valid*: there was a look before at fewer data, or a rule decides from the data when to stop. The test and interval hold at any number of looks.

The first look of a run without a plan is taken at the whole α, later ones are always valid; together they err in at most 6 % (simulated with five looks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from drift_cli.analysis import sequential
from drift_cli.analysis.results import Comparison, Options
from drift_cli.analysis.sequential import Spending
from drift_cli.analysis.table import RunTable
from drift_cli.spec import Cell
from drift_cli.store.looks import Look, Seen, now

if TYPE_CHECKING:
    from drift_cli.store.plan import Plan
    from drift_cli.store.run import Run


class Kind(StrEnum):
    """Which test and interval apply."""

    ONE = "one look"
    PLANNED = "planned"
    NOT_PLANNED = "not planned"
    ALWAYS = "always valid"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A comparison's numbers as of this look, beside those of a single look."""

    kind: Kind
    look: int
    """1 for the first."""
    low: float | None
    high: float | None
    p: float | None
    """Not adjusted for other comparisons."""
    e_value: float | None
    """Of the always-valid test."""
    boundary: float | None
    """Half the interval's width in standard errors, on the normal scale."""
    always_low: float | None
    always_high: float | None
    """The always-valid interval, whichever applies."""


class _Counts(NamedTuple):
    rollouts: int
    turns: int


@dataclass(frozen=True)
class Looking:
    """What is known of a run's looks when its results are shown."""

    plan: Plan | None = None
    before: tuple[Look, ...] = ()
    """Looks so far, at whatever."""
    cells: tuple[Seen, ...] = ()
    """What there is now."""
    rule: str | None = None
    """What decides from the data when to stop, where something does."""

    def standing(self, row: Comparison, level: float) -> Standing | None:
        """A comparison as of this look. None where it has no test."""
        if row.p is None or row.low is None or row.high is None or row.transcript is None or row.temperature is None:
            return None
        n = sequential.effective(row.n_a, row.n_b)
        z, alpha = sequential.standardized(row.p), 1 - level
        cells = [Cell(row.transcript, name, row.temperature) for name in (row.a, row.b)]
        earlier = self.earlier(cells)
        kind = self._kind(cells, earlier)
        wide = sequential.always_valid(n, alpha)
        always = sequential.widened(row.low, row.high, row.level, row.df, wide)
        e = sequential.e_value(z, n)
        boundary: float | None = None
        p: float | None = row.p
        bounds = row.low, row.high
        if kind is Kind.ALWAYS:
            boundary, p, bounds = wide, min(1.0, 1 / e), always
        elif kind is Kind.PLANNED:
            assert self.plan is not None
            fractions = self._fractions(cells, earlier)
            spending = Spending(self.plan.spending)
            boundary = sequential.boundaries(fractions, alpha, spending)[-1]
            p, bounds = sequential.planned_p(z, fractions, spending), sequential.widened(row.low, row.high, row.level, row.df, boundary)
        elif kind is Kind.NOT_PLANNED:
            boundary, bounds, p = wide, always, None
        return Standing(
            kind=kind,
            look=len(earlier) + 1,
            low=bounds[0],
            high=bounds[1],
            p=p,
            e_value=e,
            boundary=boundary,
            always_low=always[0],
            always_high=always[1],
        )

    def _kind(self, cells: Sequence[Cell], earlier: Sequence[tuple[_Counts, ...]]) -> Kind:
        if self.plan is not None:
            return Kind.PLANNED if self.planned(cells) is not None else Kind.NOT_PLANNED
        ruled = self.rule is not None or any(look.rule is not None for look in self.before)
        return Kind.ALWAYS if earlier or ruled else Kind.ONE

    def planned(self, cells: Sequence[Cell] | None = None) -> int | None:
        """At which of the plan's looks these cells (None: all of a run) are now: complete rollouts, the same of each."""
        if self.plan is None:
            return None
        wanted = None if cells is None else set(cells)
        found = [one for one in self.cells if wanted is None or _cell(one) in wanted]
        numbers = {one.rollouts for one in found}
        done = all(one.ended == one.rollouts for one in found)
        return found[0].rollouts if done and len(numbers) == 1 and found[0].rollouts in self.plan.looks else None

    def earlier(self, cells: Sequence[Cell]) -> list[tuple[_Counts, ...]]:
        """What earlier looks saw of these cells, where it was less than there is now and enough to be compared; each once, oldest first."""
        here = _counts(self.cells, cells)
        seen = dict.fromkeys(_counts(look.cells, cells) for look in self.before)
        return [counts for counts in seen if counts != here and all(count.rollouts >= 2 for count in counts)]

    def _fractions(self, cells: Sequence[Cell], earlier: Sequence[tuple[_Counts, ...]]) -> tuple[float, ...]:
        """Information fractions of the planned looks that were taken, this one the last."""
        assert self.plan is not None
        largest, current = self.plan.looks[-1], _counts(self.cells, cells)[0].rollouts
        taken = {counts[0].rollouts for counts in earlier if len({count.rollouts for count in counts}) == 1}
        ns = sorted({n for n in taken if n in self.plan.looks and n < current} | {current})
        return tuple(n / largest for n in ns)


def _cell(seen: Seen) -> Cell:
    return Cell(seen.transcript, seen.condition, seen.temperature)


def _counts(seen: Sequence[Seen], cells: Sequence[Cell]) -> tuple[_Counts, ...]:
    known = {_cell(one): _Counts(one.rollouts, one.turns) for one in seen}
    return tuple(known.get(cell, _Counts(0, 0)) for cell in cells)


def looking(run: Run, table: RunTable, rule: str | None = None) -> Looking:
    """What is known of a run's looks, this one not counted. Raises `StoreError` where the file of looks is damaged."""
    from drift_cli.store.looks import read_looks

    plan = None if run.manifest.plan is None else run.manifest.plan.plan
    return Looking(plan, read_looks(run.paths), seen(table), rule)


def seen(table: RunTable) -> tuple[Seen, ...]:
    """What there is of every cell of a table of all turns."""
    found = []
    for cell in table.cells:
        rows = table.rows(cell)
        begun = rows & (table.finish != "").any(axis=1)
        turns = (table.finish[rows] != "").sum(axis=1)
        ended = turns >= table.planned[rows]
        ended |= table.flags.context[rows].any(axis=1) | table.flags.template[rows].any(axis=1)
        found.append(
            Seen(
                transcript=cell.transcript,
                condition=cell.condition,
                temperature=cell.temperature,
                rollouts=int(begun.sum()),
                turns=int(turns.sum()),
                ended=int((ended & (turns > 0)).sum()),
            )
        )
    return tuple(found)


def record(run: Run, table: RunTable, options: Options, by: str, rule: str | None = None) -> str | None:
    """Record that results of a table were shown; in words what went wrong, where it could not be recorded (the results stand)."""
    from drift_cli.errors import StoreError
    from drift_cli.store.looks import append_look

    if len([one for one in seen(table) if one.rollouts]) < 2:
        return None  # nothing was compared
    look = Look(
        time=now(),
        by=by,
        axis=table.axis,
        layer=table.layer,
        measure=str(options.primary),
        against=options.against or next(iter(table.conditions), ""),
        cells=seen(table),
        rule=rule,
    )
    try:
        append_look(run.paths, look)
    except StoreError as error:
        return f"this look at the results could not be recorded, so that later ones will not count it: {error.what}"
    return None
