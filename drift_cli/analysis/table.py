"""A run as tidy arrays: rollouts × turns of projections on one axis, with finish reasons and flags.

Only `load` and `load_on` touch the store; everything else in `analysis/` and `figures/` takes a `RunTable` or plain arrays. Only committed turns count: what is
not on disk is NaN, in the projections, and "" in the finish reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis import segments
from drift_cli.analysis.entries import caution, choose_axis
from drift_cli.analysis.flags import Flag, Flags, Recital, recitals
from drift_cli.analysis.replies import Replies
from drift_cli.axis import Axis
from drift_cli.errors import StoreError, UsageError
from drift_cli.segments import Part
from drift_cli.spec import Cell, Finish
from drift_cli.store.axes import read_axis
from drift_cli.store.manifest import AxisEntry

if TYPE_CHECKING:
    from drift_cli.store.log import RolloutRecord
    from drift_cli.store.run import RolloutState, Run

FloatArray = NDArray[np.float64]
Projector = Callable[["RolloutRecord"], FloatArray]
_FINISH = f"<U{max(map(len, Finish))}"
"""Wide enough for every finish reason: numpy would cut longer ones silently."""


class Group(NamedTuple):
    """Cells that can be compared: the same transcript at the same temperature."""

    transcript: str
    temperature: float

    def __str__(self) -> str:
        return f"{self.transcript}, T {self.temperature:g}"


@dataclass(frozen=True, eq=False)
class RunTable:
    """A run as arrays of R rollouts × T turns, T being the length of the longest transcript."""

    run_id: str
    axis: str
    layer: int | None
    """The axis's layer (`hidden_states` index); None where it is not known."""
    cells: tuple[Cell, ...]
    """Distinct, in the manifest's order."""
    cell_of: NDArray[np.intp]
    """(R,): index into `cells`."""
    sample: NDArray[np.int64]
    """(R,): index of the rollout in its cell."""
    projections: FloatArray
    """(R, T), in the axis's units; NaN where a turn is missing."""
    finish: NDArray[np.str_]
    """(R, T): values of `Finish`; "" where a turn is missing."""
    planned: NDArray[np.int64]
    """(R,): user turns in the rollout's transcript, at most T."""
    flags: Flags = field(repr=False)
    common_noise: bool = False
    """Whether sample s of every condition shared its random numbers, so that samples can be paired."""
    first: int = 1
    """Number of the first column's turn."""
    segment: Part | None = None
    """The part of each reply that is measured; None where the run's replies have no segments."""
    replies: Replies | None = field(default=None, repr=False)
    """What is known of the replies' texts; None where nothing is."""
    caution: str | None = None
    """What has to be said wherever these projections are shown: that the axis is another model's."""
    measure: str | None = None
    """In words, what `projections` holds in place of projections: a measure of replies, whose name `axis` is then. None: projections."""

    @classmethod
    def from_arrays(
        cls, run_id: str, axis: str, arrays: Mapping[Cell, FloatArray], *, layer: int | None = None, common_noise: bool = False
    ) -> RunTable:
        """A table of projections that come from nowhere on disk: one array (n, t) per cell, NaN where a turn is missing. Nothing is flagged."""
        width = max((values.shape[1] for values in arrays.values()), default=0)
        padded = [
            np.pad(np.asarray(values, dtype=np.float64), ((0, 0), (0, width - values.shape[1])), constant_values=np.nan)
            for values in arrays.values()
        ]
        projections = np.concatenate(padded) if padded else np.empty((0, width))
        sizes = [len(values) for values in arrays.values()]
        return cls(
            run_id=run_id,
            axis=axis,
            layer=layer,
            cells=tuple(arrays),
            cell_of=np.repeat(np.arange(len(sizes)), sizes),
            sample=np.concatenate([np.arange(size) for size in sizes]) if sizes else np.empty(0, dtype=np.int64),
            projections=projections,
            finish=np.where(np.isfinite(projections), Finish.STOP.value, "").astype(_FINISH),
            planned=np.repeat([values.shape[1] for values in arrays.values()], sizes).astype(np.int64),
            flags=Flags.none(projections.shape),
            common_noise=common_noise,
        )

    @property
    def quantity(self) -> str:
        """What is measured of each reply, in words: `projection of the answer on demo`, or a measure's."""
        return f"projection{segments.of_words(self.segment)} on {self.axis}" if self.measure is None else self.measure

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, in the manifest's order."""
        return tuple(dict.fromkeys(cell.condition for cell in self.cells))

    @property
    def groups(self) -> tuple[Group, ...]:
        """Transcript × temperature, where there is a cell, in the manifest's order."""
        return tuple(dict.fromkeys(Group(cell.transcript, cell.temperature) for cell in self.cells))

    @property
    def turns(self) -> NDArray[np.int64]:
        """(R,): committed turns of each rollout."""
        turns: NDArray[np.int64] = np.isfinite(self.projections).sum(axis=1)
        return turns

    @property
    def early(self) -> NDArray[np.bool_]:
        """(R,): rollouts that have some turns, but not all of their transcript (ended early, or unfinished)."""
        early: NDArray[np.bool_] = (self.turns > 0) & (self.turns < self.planned)
        return early

    def window(self, first: int, last: int) -> RunTable:
        """The same rollouts on turns `first` to `last` (1 is the transcript's first). `UsageError` where no transcript has them."""
        longest = self.first + self.projections.shape[1] - 1
        if not self.first <= first <= last <= longest:
            raise UsageError(
                f"turns {first}-{last} are not in run {self.run_id}", mend=f"Its transcripts have turns {self.first} to {longest}."
            )
        part = slice(first - self.first, last - self.first + 1)
        return replace(
            self,
            projections=self.projections[:, part],
            finish=self.finish[:, part],
            planned=np.clip(self.planned - part.start, 0, part.stop - part.start),
            flags=self.flags.columns(part),
            replies=None if self.replies is None else self.replies.columns(part),
            first=first,
        )

    def without_suspect(self) -> RunTable:
        """The same rollouts with suspect replies as missing turns."""
        return replace(self, projections=np.where(self.flags.suspect, np.nan, self.projections))

    def length(self, transcript: str) -> int:
        """User turns in a transcript: the first so many columns of `projections` belong to it."""
        indices = [index for index, cell in enumerate(self.cells) if cell.transcript == transcript]
        return int(self.planned[np.isin(self.cell_of, indices)].max(initial=0))

    def rows(self, cell: Cell) -> NDArray[np.bool_]:
        """(R,): the rollouts of one cell."""
        rows: NDArray[np.bool_] = self.cell_of == (self.cells.index(cell) if cell in self.cells else -1)
        return rows

    def of(self, condition: str, transcript: str | None = None, temperature: float | None = None) -> FloatArray:
        """Projections (n, T) of a condition's rollouts, optionally of one transcript and temperature. `UsageError` if there is no such cell."""
        wanted = [
            index
            for index, cell in enumerate(self.cells)
            if cell.condition == condition and transcript in (None, cell.transcript) and temperature in (None, cell.temperature)
        ]
        if not wanted:
            have = ", ".join(map(str, self.cells)) or "none"
            asked = f"{transcript or '*'}/{condition}/T{'*' if temperature is None else format(temperature, 'g')}"
            raise UsageError(f"run {self.run_id} has no cell {asked}", mend=f"Its cells (transcript/condition/temperature): {have}")
        return self.projections[np.isin(self.cell_of, wanted)]


def load(run: Run, axis: str | None = None, part: Part = Part.ANSWER) -> RunTable:
    """Read a run's committed turns and project them on `axis` (None: the run's only one).

    Every planned rollout is a row, those without a turn included. `part` is what of each reply is measured, where replies have segments. Raises `StoreError`
    where the axis is missing or ambiguous, where its layer was not stored, and where a file is damaged; `UsageError` for reasoning that the run does not have.
    """
    entry, segment = choose_axis(run.manifest, axis, run.paths.run_id), segments.measured(run.manifest, part)
    if entry in run.manifest.axes and (segment or Part.ANSWER) is Part.ANSWER:
        return filled(run, entry, segment, lambda record: _written(run, record, entry.name))
    return filled(run, entry, segment, _projector(run, read_axis(run.paths, entry), entry.layer, segment))


def load_on(run: Run, axis: Axis, layer: int, part: Part = Part.ANSWER) -> RunTable:
    """The same on any axis at a layer whose residual means the run stores. Raises as `load`; `UsageError` where the axis does not have the layer."""
    segment = segments.measured(run.manifest, part)
    entry = AxisEntry(axis.name, layer, axis.digest, axis.note)
    return filled(run, entry, segment, _projector(run, axis, layer, segment))


def filled(run: Run, entry: AxisEntry, segment: Part | None, project: Projector) -> RunTable:
    """The table of a run's committed turns with the projections that `project` gives of each rollout."""
    states = run.states()
    table = replace(_blank(run, entry, states), segment=segment)
    prompts = {
        name: recitals((condition.system, run.manifest.template_adds.get(name))) for name, condition in run.manifest.conditions.items()
    }
    for row, state in enumerate(states):
        if state.done or state.end is not None:
            record = run.record(state.rollout)
            table.projections[row, : len(record.turns)] = project(record)
            _fill(table, row, record, prompts[state.rollout.cell.condition])
    return table


def _blank(run: Run, entry: AxisEntry, states: Sequence[RolloutState]) -> RunTable:
    """The table of these rollouts before any turn is read: every turn missing, nothing flagged."""
    index = {plan.cell: position for position, plan in enumerate(run.manifest.cells)}
    planned = np.array([state.total for state in states], dtype=np.int64)
    shape = (len(states), int(planned.max(initial=0)))
    return RunTable(
        run_id=run.paths.run_id,
        axis=entry.name,
        layer=entry.layer if entry.layer >= 0 else None,  # imports of unknown layer say -1
        cells=tuple(index),
        cell_of=np.array([index[state.rollout.cell] for state in states], dtype=np.intp),
        sample=np.array([state.rollout.sample for state in states], dtype=np.int64),
        projections=np.full(shape, np.nan),
        finish=np.full(shape, "", dtype=_FINISH),
        planned=planned,
        flags=Flags.none(shape),
        replies=Replies.none(shape),
        common_noise=not run.manifest.spec.sampling.independent_noise,
        caution=caution(run.manifest, entry),
    )


def _fill(table: RunTable, row: int, record: RolloutRecord, prompts: Sequence[Recital]) -> None:
    """Write one rollout's finish reasons and flags into its row of the table."""
    for column, turn in enumerate(record.turns):
        table.finish[row, column] = turn.finish.value
        if table.replies is not None:
            table.replies.put(row, column, segments.text_of(turn, table.segment or Part.ANSWER))
        for flag in segments.flags_of(turn, table.segment or Part.ANSWER, prompts):
            table.flags.of(flag)[row, column] = True
    if record.end is not None and record.end.finish is not Finish.COMPLETE:
        table.flags.of(Flag(record.end.finish.value))[row, record.end.turn - 1] = True


def _projector(run: Run, axis: Axis, layer: int, segment: Part | None) -> Projector:
    """How to get a rollout's projections (turns,) from its stored residual means. `StoreError` where the layer is not stored."""
    stored = run.manifest.layers
    axis.at(layer)
    if layer not in stored:
        have = ", ".join(map(str, stored)) or "none"
        raise StoreError(
            f"axis {axis.name} is at layer {layer}, but run {run.paths.run_id} stored layers: {have}",
            mend=f"Generate with that layer stored, or measure at one that is: drift measure {run.paths.run_id} --axis FILE --layer L",
        )
    return lambda record: _projected(run, record, axis, layer, segment or Part.ANSWER)


def _written(run: Run, record: RolloutRecord, axis: str) -> FloatArray:
    """Projections (turns,) that were committed with the turns; NaN for a reply without a single token, which has no mean to project."""
    lacking = [turn.index for turn in record.turns if axis not in turn.projections and turn.text and turn.answered]
    if lacking:
        raise StoreError(
            f"{run.paths.rollout(record.rollout)}: turn {lacking[0]} has no projection on axis {axis}",
            mend=f"drift runs verify {run.paths.run_id}",
        )
    return np.array([turn.projections.get(axis, np.nan) for turn in record.turns], dtype=np.float64)


def _projected(run: Run, record: RolloutRecord, axis: Axis, layer: int, part: Part) -> FloatArray:
    """Projections (turns,) of stored residual means of a part."""
    from drift_cli.store.reader import read_residual_layer

    done, stored = len(record.turns), run.manifest.layers
    if done == 0:
        return np.empty(0)
    residuals = read_residual_layer(run.paths, record.rollout, stored.index(layer), len(stored), axis.width, part)
    if len(residuals) < done:
        raise StoreError(
            f"{run.paths.residuals(record.rollout)}: residuals of {len(residuals)} turns, but {done} turns are committed",
            mend=f"drift runs verify {run.paths.run_id}",
        )
    # A writer at work may have stored the next turn's residuals already: its line is what commits it.
    return axis.project(residuals[:done], layer)
