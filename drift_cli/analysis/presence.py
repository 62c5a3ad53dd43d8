"""A difference between two conditions, split into what the prompt's presence does and what differs in the words.

With y_pw the projection of words w read under prompt p, a condition a and its baseline b differ by y_aa - y_bb. The prompt's presence is y_aw - y_bw for the
same words w, the words' part y_pa - y_pb under the same prompt p. Both depend on the order in which prompt and words are exchanged, so both orders are
averaged (the Shapley value of two causes), which makes them add up to the difference:

    presence = ((y_aa - y_ba) + (y_ab - y_bb)) / 2        words = ((y_ba - y_bb) + (y_aa - y_ab)) / 2

Here y_ba is a's rollouts read under b's prompt, y_ab is b's rollouts read under a's (`measuring/same_replies.py`). A rollout of a gives one number to each
part, (y_aa - y_ba) / 2 to the presence and (y_aa + y_ba) / 2 to the words, a rollout of b -(y_ab - y_bb) / 2 and (y_ab + y_bb) / 2: the parts are differences
of two groups of rollouts, compared by the same test as the whole. The two readings of one rollout are so paired, and what they share cancels in the presence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis.compare import adjusted, compare
from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.measure import find_rollout_measure
from drift_cli.analysis.measures import Sample, least_turns, merged, weights
from drift_cli.analysis.results import Comparison, Measure, Options, Role, Test
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import FloatArray, Group, RunTable
from drift_cli.spec import Cell, Part
from drift_cli.store.axes import read_axis

if TYPE_CHECKING:
    from drift_cli.store.manifest import AxisEntry, Manifest
    from drift_cli.store.run import Run


@dataclass(frozen=True, eq=False)
class Readings:
    """Projections of a table's replies under other prompts, (R, T) each, NaN where they were not read."""

    baseline: str
    under_baseline: FloatArray
    """Of the other conditions' rollouts, under the baseline's prompt."""
    under: Mapping[str, FloatArray]
    """Of the baseline's rollouts, under each condition's prompt."""
    missing: int
    """Rollouts with a turn that were not read under a prompt that they are compared with."""

    def window(self, table: RunTable, seen: RunTable) -> Readings:
        """Of the turns of `seen`, a window of `table`."""
        part = slice(seen.first - table.first, seen.first - table.first + seen.projections.shape[1])
        return replace(
            self, under_baseline=self.under_baseline[:, part], under={name: values[:, part] for name, values in self.under.items()}
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """One condition's difference from the baseline on one measure. `presence.difference + words.difference` is the difference of the replies that were read
    under both prompts."""

    condition: str
    transcript: str
    temperature: float
    measure: str
    presence: Comparison
    """Never starred: nothing of it is about what the model says."""
    words: Comparison
    """Primary where the measure is: it carries the verdict."""
    presence_own: float | None
    """Of the condition's replies alone: how far its prompt moves them."""
    presence_baseline: float | None
    """Of the baseline's replies alone: how far the prompt would move them."""
    turns: tuple[float | None, ...] = ()
    """The words' part turn by turn, from the table's first turn on."""

    @property
    def share(self) -> float | None:
        """Of the difference, what is presence; None where the two parts point in opposite directions, or the difference is nothing."""
        alone, words = self.presence.difference, self.words.difference
        if alone is None or words is None or alone * words < 0 or abs(alone + words) <= 1e-12:
            return None
        return alone / (alone + words)


@dataclass(frozen=True, kw_only=True)
class Presence:
    """The splits of a run, and why there are none, or fewer than there could be."""

    splits: tuple[Split, ...] = ()
    note: str | None = None

    def of(self, condition: str, transcript: str, temperature: float, measure: str) -> Split | None:
        """One condition's split."""
        wanted = (condition, transcript, temperature, measure)
        return next((one for one in self.splits if (one.condition, one.transcript, one.temperature, one.measure) == wanted), None)


def presence(run: Run, table: RunTable, options: Options) -> Presence:
    """Split every difference from the baseline of a table of this run (all turns; `options.turns` says which count)."""
    baseline = options.against or next(iter(table.conditions), "")
    if len(table.conditions) < 2:
        return Presence()
    found = load(run, table, baseline)
    if isinstance(found, str):
        return Presence(note=found)
    seen = table if options.turns is None else table.window(*options.turns)
    made = split(seen, found.window(table, seen), options)
    note = None
    if found.missing:
        note = f"{found.missing} rollouts were not read under the prompt that they are compared with, and do not count there: {_command(run, options)}"
    return Presence(splits=made, note=note)


def _command(run: Run, options: Options) -> str:
    against = "" if options.against is None else f" --against {options.against}"
    return f"drift measure {run.paths.run_id} --same-replies{against}"


def load(run: Run, table: RunTable, baseline: str) -> Readings | str:
    """What was read of a table's rollouts under other prompts; in words why there is nothing. Raises `StoreError` where a file is damaged."""
    manifest = run.manifest
    entry = choose_axis(manifest, table.axis, run.paths.run_id)
    said = "What the prompt's presence does and what the words do is not told apart"
    if manifest.model is None or not manifest.layers:
        return f"{said}: the run was imported, so its model cannot read the replies under another prompt."
    if table.segment not in (None, Part.ANSWER):
        return f"{said}: only answers are read under another prompt."
    if entry.layer not in manifest.layers:
        return f"{said}: layer {entry.layer} is not stored."
    if not run.paths.swapped_root.exists():
        return f"{said}: {_command(run, Options(against=None if baseline == table.conditions[0] else baseline))}"
    found = _load(run, table, baseline, _direction(run, entry), manifest.layers.index(entry.layer))
    if not np.isfinite(found.under_baseline).any() or not any(np.isfinite(values).any() for values in found.under.values()):
        return f"{said}: {_command(run, Options(against=baseline))}"
    return found


def _direction(run: Run, entry: AxisEntry) -> FloatArray:
    return np.asarray(read_axis(run.paths, entry).at(entry.layer), dtype=np.float64)


def _load(run: Run, table: RunTable, baseline: str, direction: FloatArray, row: int) -> Readings:
    from drift_cli.store.swapped import read_swapped

    shape, manifest = table.projections.shape, run.manifest
    under_baseline, missing = np.full(shape, np.nan), 0
    under: dict[str, FloatArray] = {}
    for place, state in enumerate(run.states()):
        cell = state.rollout.cell
        if not state.done:
            continue
        prompts = _prompts(manifest, cell, baseline)
        turns = run.record(state.rollout).turns if prompts else ()
        for prompt in prompts:
            found = read_swapped(run.paths, manifest, state.rollout, prompt, turns)
            missing += found is None
            into = under_baseline if prompt == baseline else under.setdefault(prompt, np.full(shape, np.nan))
            for turn, mean in (found.means if found is not None else {}).items():
                if np.isfinite(table.projections[place, turn - 1]):
                    into[place, turn - 1] = mean[row].astype(np.float64) @ direction
    return Readings(baseline, under_baseline, under, missing)


def _prompts(manifest: Manifest, cell: Cell, baseline: str) -> list[str]:
    """The prompts that a cell's rollouts are compared with."""
    here = {
        plan.cell.condition
        for plan in manifest.cells
        if (plan.cell.transcript, plan.cell.temperature) == (cell.transcript, cell.temperature)
    }
    if baseline not in here:
        return []
    return [name for name in manifest.conditions if name in here and name != baseline] if cell.condition == baseline else [baseline]


def split(table: RunTable, readings: Readings, options: Options) -> tuple[Split, ...]:
    """The splits of a table whose replies were read under other prompts, on level, drift and the primary measure; words adjusted by Holm over conditions."""
    options = replace(options, test=Test.WELCH) if options.test is Test.MIXED else options
    # A function of a rollout's values that is no weighted sum cannot be taken of the mean of two readings: the level carries the verdict then.
    lead = options.primary if find_rollout_measure(options.primary).weights is not None else str(Measure.MEAN)
    pairs = [pair for group in table.groups for pair in _pairs(table, readings, group, merge=options.test is not Test.PAIRED)]
    made: list[Split] = []
    gate = None
    for measure in dict.fromkeys((lead, Measure.MEAN, Measure.CHANGE)):
        known = [pair for pair in pairs if len(pair.words[0].turns) >= least_turns(measure)]
        words = compare([pair.words for pair in known], measure, options)
        if measure == lead:
            words = adjusted(words, role=Role.PRIMARY)
            gate = min((row.p_adjusted for row in words if row.p_adjusted is not None), default=None)
        else:
            words = adjusted(words, gate=gate)
        alone = compare([pair.presence for pair in known], measure, options)
        made += [_named(pair, measure, *rows) for pair, *rows in zip(known, alone, words, strict=True)]
    return tuple(made)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A condition's and the baseline's rollouts, as each part takes them."""

    presence: tuple[Sample, Sample]
    words: tuple[Sample, Sample]


def _pairs(table: RunTable, readings: Readings, group: Group, *, merge: bool) -> list[_Pair]:
    cells = [cell for cell in table.cells if (cell.transcript, cell.temperature) == group]
    base = next((cell for cell in cells if cell.condition == readings.baseline), None)
    if base is None:
        return []
    made = []
    own = table.projections
    for cell in cells:
        other = readings.under.get(cell.condition)
        if cell == base or other is None:
            continue
        alone = (own - readings.under_baseline) / 2, (own - other) / 2
        together = (own + readings.under_baseline) / 2, (own + other) / 2
        parts = [
            tuple(_sample(table, of, values, merge) for of, values in zip((cell, base), both, strict=True)) for both in (alone, together)
        ]
        made.append(_Pair(*parts))  # type: ignore[arg-type]
    return made


def _sample(table: RunTable, cell: Cell, values: FloatArray, merge: bool) -> Sample:
    """A cell's rollouts with these values (R, T) in place of the projections."""
    rows = table.rows(cell)
    own = values[rows][:, : table.length(cell.transcript)]
    found = Sample(cell, own, table.sample[rows], table.first + np.arange(own.shape[1], dtype=np.float64))
    return found if table.replies is None or not merge else merged(found, table.replies.copies(rows))


def _named(pair: _Pair, measure: str, alone: Comparison, words: Comparison) -> Split:
    (own, base), cell = pair.presence, pair.presence[0].cell
    counts = own.counts & base.counts
    each = [2 * value for value in _values(measure, (own, base), counts)]
    a, b = pair.words
    turns = np.where(a.counts & b.counts, a.turn_means - b.turn_means, np.nan)
    return Split(
        condition=cell.condition,
        transcript=cell.transcript,
        temperature=cell.temperature,
        measure=measure,
        presence=alone,
        words=words,
        presence_own=plain(each[0]),
        presence_baseline=plain(-each[1]),
        turns=tuple(plain(value) for value in turns),
    )


def _values(measure: str, samples: Sequence[Sample], counts: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[float]:
    """The measure of each sample's turn means over the turns that count."""
    turns = samples[0].turns[counts]
    if len(turns) < least_turns(measure) or (weight := weights(measure, turns)) is None:
        return [float("nan")] * len(samples)
    return [float(of.turn_means[counts] @ weight) for of in samples]
