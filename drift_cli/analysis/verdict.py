"""One answer: did each condition hold the model? `rules.py` has the rules; here stands everything that the answer says beside the verdicts.

Level and drift are two statements. Level: the difference of rollout means. Drift: the change from a rollout's own start (mean of the later turns less the
first turn), compared as a difference of differences. Nobody selects rollouts by their first turn, so its noise does not bias a condition's mean change: there
is no regression to the mean in a difference of differences. It widens the interval, which counts it. (Adjusting for the first turn instead, as an analysis
of covariance does, would take part of a prompt's own shift at the first turn for drift.) The slope, which does not lean on one turn, is shown beside it.

Where the same replies were read under the other prompt (`presence.py`), the verdict speaks of words: the rules are tried on the words' part of level and drift,
and what the prompt's presence does to the same words decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drift_cli.analysis.axis_error import AxisError
from drift_cli.analysis.breaks import Breaks, breaks
from drift_cli.analysis.confounds import Confounds, Correlations, confounds, correlations
from drift_cli.analysis.controls import Standing
from drift_cli.analysis.looked import Looked, looked, presence_as_of, study_as_of
from drift_cli.analysis.looks import Looking
from drift_cli.analysis.measures import Sample, sample
from drift_cli.analysis.placebos import PLACEBO
from drift_cli.analysis.presence import Presence, Split
from drift_cli.analysis.quality import Quality, quality
from drift_cli.analysis.results import Comparison, Measure, Test
from drift_cli.analysis.rules import Verdict, beside_margin, changes, fell, interval, rule
from drift_cli.analysis.scale import PersonaScale
from drift_cli.analysis.segments import of_words, remark
from drift_cli.analysis.sensitivity import LayerMoves
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import Group, RunTable
from drift_cli.spec import Cell


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its two-sided interval, None where there is none."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One condition in one transcript and temperature. The baseline has no verdict, level or drift."""

    condition: str
    transcript: str
    temperature: float
    mean: float | None
    change: Estimate
    """From its own start."""
    fell: bool
    """Whether it is shown to have fallen at all."""
    stayed: float | None
    """One-sided p that it fell by less than the margin; None where there is no margin or no spread."""
    sank: float | None
    """One-sided p that it fell by more than the margin."""
    level: Comparison | None
    units: float | None
    """The difference in level in persona units (0: the other personas, 1: the assistant's), where the axis knows its personas."""
    drift: Comparison | None
    verdict: Verdict | None
    placebo: Comparison | None
    """Its primary measure against that of the placebo, where there is one."""
    confounds: Confounds | None
    quality: Quality
    split: Split | None = None
    """The level's difference as the prompt's presence and words, where the replies were read under both prompts."""
    drift_split: Split | None = None
    """The same of the drift."""

    @property
    def shown_level(self) -> Comparison | None:
        """What the verdict takes for the level: the words' part, where it is known."""
        return self.level if self.split is None else self.split.words

    @property
    def shown_drift(self) -> Comparison | None:
        """What the verdict takes for the drift."""
        return self.drift if self.drift_split is None else self.drift_split.words


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a run says. The one object that `stats`, the end of `generate`, figures, the report and `--json` take their verdict from."""

    run: str
    axis: str
    layer: int | None
    baseline: str
    primary: str
    test: Test
    level: float
    margin: float | None
    """The smallest effect of interest, in axis units; None: half of the baseline's fall."""
    finished: bool
    has_placebo: bool
    judgements: tuple[Judgement, ...]
    correlations: tuple[Correlations, ...]
    scope: str
    first: int
    """The first turn that counts."""
    controls: tuple[Standing, ...] = ()
    """The baseline's differences among those on control axes, where the run has some."""
    scale: PersonaScale | None = None
    """Where the axis knows its personas."""
    breaks: tuple[Breaks, ...] = ()
    """Rollouts that break, where there is a threshold."""
    measured: str = ""
    """Which part of each reply is measured, for a title (` of the answer`); nothing where replies have no reasoning apart."""
    remark: str | None = None
    """What there is to say of replies that lack that part."""
    quantity: str = ""
    """What is measured of each reply, in words: `projection on demo`, or a measure's."""
    axis_errors: tuple[AxisError, ...] = ()
    """What the axis's own uncertainty adds to the intervals, where it can be known."""
    presence: Presence = field(default_factory=Presence)
    """The differences split into the prompt's presence and words; why not, where they are not."""
    moves: tuple[LayerMoves, ...] = ()
    """How the differences move over the neighbouring third of the layers, where these are stored."""
    unmatched: tuple[str, ...] = ()
    """Conditions without a placebo of the same length and placement, where there are placebos."""
    looked: Looked | None = None
    """How often the data were looked at, and which test and interval apply; None where nobody asked."""


_Key = tuple[str, str, float, str]
"""Condition, transcript, temperature, measure."""


def answer(
    table: RunTable,
    study: Study,
    controls: Sequence[Standing] = (),
    scale: PersonaScale | None = None,
    break_at: float | None = None,
    axis_errors: Sequence[AxisError] = (),
    presence: Presence | None = None,
    moves: Sequence[LayerMoves] = (),
    looking: Looking | None = None,
    unmatched: Sequence[str] = (),
) -> Answer:
    """Judge every condition of a study of this table.

    Args:
        table, study: the rollouts, and what `analyze` made of them.
        controls: where the differences stand among those on control axes.
        scale: of the axis, if it knows its personas.
        break_at: below which projection a rollout is broken, in axis units (None: the scale's midpoint).
        axis_errors: what the axis's own uncertainty adds.
        presence: the differences' splits into the prompt's presence and words; None: nothing is said of them.
        moves: how the differences move over neighbouring layers.
        looking: what is known of the run's looks; None: this is taken for the only one.
        unmatched: conditions that have no placebo of their own length and placement.
    """
    presence = presence or Presence()
    said = None if looking is None else looked(study, presence, looking, table)
    if looking is not None:
        study, presence = study_as_of(study, looking), presence_as_of(presence, looking, study.options.level)
    options = study.options
    if options.turns is not None:
        table = table.window(*options.turns)
    known = _index(study)
    judgements = [one for group in table.groups for one in _group(table, study, group, known, scale, presence)]
    begun = [one.quality for one in judgements]
    return Answer(
        run=table.run_id,
        axis=table.axis,
        layer=table.layer,
        measured=of_words(table.segment),
        quantity=table.quantity,
        remark=remark(table),
        baseline=study.baseline,
        primary=options.primary,
        test=options.test,
        level=options.level,
        margin=options.equivalence,
        finished=all(one.complete + one.early == one.planned for one in begun),
        has_placebo=any(PLACEBO in name.lower() for name in table.conditions),
        judgements=tuple(judgements),
        correlations=tuple(correlations(table, group) for group in table.groups),
        scope=study.scope,
        first=study.first,
        controls=tuple(one for one in controls if one.b == study.baseline),
        scale=scale,
        axis_errors=tuple(axis_errors),
        presence=presence,
        moves=tuple(moves),
        looked=said,
        unmatched=tuple(unmatched),
        breaks=_breaks(table, study, break_at if break_at is not None or scale is None else scale.midpoint),
    )


def _breaks(table: RunTable, study: Study, threshold: float | None) -> tuple[Breaks, ...]:
    if threshold is None:
        return ()
    groups = [
        [sample(table, cell, merge=False) for cell in table.cells if (cell.transcript, cell.temperature) == group] for group in table.groups
    ]
    return tuple(row for group in groups for row in breaks(group, study.baseline, threshold, study.options.level))


@dataclass(frozen=True)
class _Group:
    """What the cells of one transcript and temperature share."""

    table: RunTable
    study: Study
    known: dict[_Key, Comparison]
    samples: dict[Cell, Sample]
    base: Cell | None
    confounds: dict[str, Confounds]
    scale: PersonaScale | None
    presence: Presence


def _group(
    table: RunTable, study: Study, group: Group, known: dict[_Key, Comparison], scale: PersonaScale | None, presence: Presence
) -> list[Judgement]:
    cells = [cell for cell in table.cells if (cell.transcript, cell.temperature) == group]
    base = next((cell for cell in cells if cell.condition == study.baseline), None)
    found = {one.a: one for one in confounds(table, group, study.baseline, study.options.level)}
    of = _Group(table, study, known, {cell: sample(table, cell) for cell in cells}, base, found, scale, presence)
    return [_judge(of, cell) for cell in sorted(cells, key=lambda cell: cell is not base)]


def _judge(of: _Group, cell: Cell) -> Judgement:
    level, mine = of.study.options.level, of.samples[cell]
    baseline = None if of.base is None else of.samples[of.base]
    change = changes(mine)
    low, high = interval(change, level)
    stayed, sank = beside_margin(mine, baseline, of.study.options.equivalence)
    mean, drift = (of.known.get((cell.condition, cell.transcript, cell.temperature, measure)) for measure in (Measure.MEAN, Measure.CHANGE))
    split, drift_split = (
        of.presence.of(cell.condition, cell.transcript, cell.temperature, measure) for measure in (Measure.MEAN, Measure.CHANGE)
    )
    verdict = None
    if baseline is not None and cell != of.base:
        shown = mean if split is None else split.words, drift if drift_split is None else drift_split.words
        verdict = rule(*shown, stayed, sank, base_fell=fell(baseline, level), level=level)
    return Judgement(
        condition=cell.condition,
        transcript=cell.transcript,
        temperature=cell.temperature,
        mean=plain(float(np.nanmean(mine.own[Measure.MEAN]))) if mine.started and mine.counts.any() else None,
        change=Estimate(value=plain(change.mean()) if len(change) else None, low=low, high=high),
        fell=fell(mine, level),
        stayed=stayed,
        sank=sank,
        level=mean,
        units=None if of.scale is None or mean is None or mean.difference is None else of.scale.units(mean.difference),
        drift=drift,
        verdict=verdict,
        placebo=_placebo(of.study, cell),
        confounds=of.confounds.get(cell.condition),
        quality=quality(of.table, cell, mine),
        split=split,
        drift_split=drift_split,
    )


def _index(study: Study) -> dict[_Key, Comparison]:
    """Mean and change of every condition against the baseline; where only transcripts together were compared, those for each transcript."""
    found: dict[_Key, Comparison] = {}
    for row in (*study.comparisons, *study.drift):
        if row.b == study.baseline and row.measure in (Measure.MEAN, Measure.CHANGE) and row.temperature is not None:
            for cell in study.summary.cells:
                if cell.condition == row.a and row.transcript in (None, cell.transcript):
                    found.setdefault((row.a, cell.transcript, row.temperature, row.measure), row)
    return found


def _placebo(study: Study, cell: Cell) -> Comparison | None:
    """The comparison of the cell with a placebo, as condition minus placebo or the other way round."""
    names = {one.condition for one in study.summary.cells if PLACEBO in one.condition.lower()}
    if not names or cell.condition in names or cell.condition == study.baseline:
        return None
    rows = study.comparisons if study.options.primary == Measure.MEAN else (*study.drift, *study.added)
    wanted = (cell.transcript, cell.temperature, study.options.primary)
    mine = (row for row in rows if cell.condition in (row.a, row.b) and (row.transcript, row.temperature, row.measure) == wanted)
    return next((row for row in mine if not names.isdisjoint((row.a, row.b))), None)
