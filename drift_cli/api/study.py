"""A comparison of a run's conditions: its verdict, its numbers, its picture."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from drift_cli.analysis.looks import record
from drift_cli.analysis.results import Comparison, Correction, Options, Test
from drift_cli.analysis.study import Study as Statistics
from drift_cli.analysis.study import analyze
from drift_cli.analysis.verdict import Answer, Judgement
from drift_cli.api import html
from drift_cli.errors import UsageError, did_you_mean
from drift_cli.results.judged import Judged, judge, usual
from drift_cli.results.pictures import Picture
from drift_cli.results.tables.answer import sentences
from drift_cli.results.tables.cautions import cautions
from drift_cli.results.tables.phrases import HARD

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

E = TypeVar("E", bound=StrEnum)


class Asked(TypedDict, total=False):
    """What `Run.compare` can be asked for, with the defaults of `drift stats`."""

    test: str
    primary: str
    correction: str
    equivalence: float | None
    turns: tuple[int, int] | None
    level: float
    seed: int
    resamples: int


def asked(baseline: str | None, options: Asked) -> Options:
    """The options of a study. `UsageError` for a test or a correction that there is not."""
    known = Asked.__annotations__
    for name in (name for name in options if name not in known):
        raise UsageError(f"compare has no option {name!r}", mend=f"{did_you_mean(name, known)}It has: {', '.join(known)}.")
    given: dict[str, Any] = dict(options)
    given["test"] = choice(Test, "test", options.get("test", Test.WELCH))
    given["correction"] = choice(Correction, "correction", options.get("correction", Correction.MAXT))
    return Options(against=baseline, **given)


def choice(kind: type[E], what: str, given: str) -> E:
    """The member of that value. `UsageError` lists them."""
    try:
        return kind(given)
    except ValueError:
        raise UsageError(f"there is no {what} {given!r}", mend=f"{did_you_mean(given, kind)}Use one of: {', '.join(kind)}.") from None


KINDS = ("trajectory", "difference", "forest")


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether conditions held the model: text for people (`str`), fields for programs."""

    answer: Answer
    """Every number that the text says, as frozen dataclasses."""

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        """One to each condition, transcript and temperature; the baseline's has no verdict."""
        return self.answer.judgements

    @property
    def words(self) -> dict[str, str]:
        """The verdict of each condition but the baseline: `held`, `partly`, `did not hold`, `undecided` or `not shown to differ`.

        Where a run has several transcripts or temperatures, keys are such as `simple (lonely, T 0.7)`.
        """
        several = len({(one.transcript, one.temperature) for one in self.judgements}) > 1
        judged = (one for one in self.judgements if one.verdict is not None)
        return {
            f"{one.condition} ({one.transcript}, T {one.temperature:g})" if several else one.condition: one.verdict.value
            for one in judged
            if one.verdict is not None
        }

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is said of each condition, with the evidence."""
        return tuple(text.replace(HARD, " ") for text in sentences(self.answer))

    @property
    def cautions(self) -> tuple[str, ...]:
        """What limits it, the most harmful first."""
        return tuple(text.replace(HARD, " ") for text in cautions(self.answer))

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values: what `drift stats --json` has under `verdict`."""
        return asdict(self.answer)

    def __str__(self) -> str:
        return "\n".join([*self.sentences, *(f"Caution: {text}" for text in self.cautions), self.answer.scope])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html.paragraphs(self.sentences, [*self.cautions, self.answer.scope])


@dataclass(frozen=True, eq=False)
class Study:
    """What the statistics say of a run's conditions, compared with a baseline. `Run.compare` makes it.

    Differences are a condition minus the baseline, in the axis's units; the unit of inference is the rollout.
    """

    judged: Judged
    """The tidy arrays, all statistics and the whole verdict, as `drift_cli.analysis` has them."""
    picture: Picture
    conditions: tuple[str, ...]
    """The conditions that were asked for, the baseline not among them."""

    @property
    def baseline(self) -> str:
        """The condition that the others are compared with."""
        return self.judged.study.baseline

    @property
    def statistics(self) -> Statistics:
        """All statistics of the run, of every condition."""
        return self.judged.study

    @cached_property
    def verdict(self) -> Verdict:
        """Whether each condition held the model, with the evidence and what limits it."""
        return Verdict(_narrowed(self.judged.answer, (*self.conditions, self.baseline)))

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row to each comparison with the baseline and measure; p is two-sided, p_adjusted is for all comparisons of the run.

        Columns: condition, baseline, transcript, temperature, measure, n, n_baseline, difference, low, high, p, p_adjusted, hedges_g, shown, role, method,
        note. What cannot be computed is NaN, and `note` says why.
        """
        import pandas as pd

        found = self.judged.study
        rows = [row for row in (*found.comparisons, *found.drift, *found.added) if row.b == self.baseline and row.a in self.conditions]
        return pd.DataFrame([_record(row) for row in rows], columns=_COLUMNS).astype(dict.fromkeys(_NUMBERS, "float64"))

    def plot(self, kind: str = "trajectory", *, style: str = "paper", title: str | None = None) -> Figure:
        """Draw it: `trajectory`, `difference` (from the baseline, with the turns that differ) or `forest`. A matplotlib figure, not shown.

        Raises:
            UsageError: there is no such kind or style.
            StoreError: the run has no turn to draw.
        """
        if kind not in KINDS:
            raise UsageError(f"a study has no picture {kind!r}", mend=f"Use one of: {', '.join(KINDS)}. Run.plot draws the others.")
        return replace(self.picture, style=style, title=title).draw(kind)

    def __repr__(self) -> str:
        return f"Study of {self.judged.table.run_id}: {', '.join(self.conditions)} against {self.baseline}\n{self.verdict}"

    def _repr_html_(self) -> str:
        shown = self.table[["condition", "measure", "difference", "low", "high", "p_adjusted", "shown"]]
        return self.verdict._repr_html_() + str(shown.to_html(index=False, float_format=lambda value: f"{value:.3g}"))


def _narrowed(answer: Answer, wanted: Collection[str]) -> Answer:
    """An answer that speaks of these conditions only."""
    by_condition: dict[str, Any] = {
        name: tuple(one for one in getattr(answer, name) if one.condition in wanted)
        for name in ("judgements", "axis_errors", "breaks", "moves")
    }
    looked = answer.looked
    if looked is not None:
        named: dict[str, Any] = {
            name: tuple(one for one in getattr(looked, name) if one[0].partition(" (")[0] in wanted) for name in ("standings", "single")
        }
        looked = replace(looked, **named)
    return replace(
        answer,
        **by_condition,
        controls=tuple(one for one in answer.controls if one.a in wanted),
        unmatched=tuple(name for name in answer.unmatched if name in wanted),
        looked=looked,
    )


_NUMBERS = ("difference", "low", "high", "p", "p_adjusted", "hedges_g")
_COLUMNS = (
    *("condition", "baseline", "transcript", "temperature", "measure", "n", "n_baseline"),
    *(*_NUMBERS, "shown", "role", "method", "note"),
)


def _record(row: Comparison) -> tuple[Any, ...]:
    named = (row.a, row.b, row.transcript, row.temperature, str(row.measure), row.n_a, row.n_b)
    return (*named, *(getattr(row, name) for name in _NUMBERS), row.starred, str(row.role), row.method, row.note)


def make(picture: Picture, condition: str | Sequence[str] | None, options: Options, *, flagged: bool, given: Collection[str] = ()) -> Study:
    """The study of a picture's run and axis; `flagged`: whether suspect replies count. `given`: options that were named: the others are the run's usual ones.

    The look is recorded in the run; where that is not possible, the study is made all the same.
    """
    options = usual(picture.run, picture.table, options, given)
    table = picture.table if flagged else picture.table.without_suspect()
    names = table.conditions
    for name in _listed(condition):
        if name not in names:
            raise UsageError(
                f"condition {name!r} is not in run {table.run_id}", mend=f"{did_you_mean(name, names)}It has: {', '.join(names)}."
            )
    # The same study whichever conditions are shown of it: a comparison has one p. With the run's first condition it is that of `drift stats`.
    whole = replace(options, against=None) if options.against == names[0] else options
    study = analyze(table, whole)
    judged = judge(picture.run, table, study=study)
    record(picture.run, picture.table, whole, "api")
    wanted = _listed(condition) or tuple(name for name in names if name != study.baseline)
    if study.baseline in wanted:
        raise UsageError(f"condition {study.baseline!r} cannot be compared with itself", mend="Name another baseline.")
    return Study(judged, picture, wanted)


def _listed(condition: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if condition is None else (condition,) if isinstance(condition, str) else tuple(dict.fromkeys(condition))
