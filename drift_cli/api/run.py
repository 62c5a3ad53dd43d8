"""A run as a library's user sees it: tables, arrays, comparisons and pictures of what is stored. All it writes to the run are looks at its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from drift_cli.analysis.entries import choose_axis
from drift_cli.analysis.looks import record
from drift_cli.analysis.segments import measured
from drift_cli.analysis.table import RunTable, load, load_on
from drift_cli.api import exporting, frames, html
from drift_cli.api import study as studies
from drift_cli.api.study import Study
from drift_cli.axis import Axis
from drift_cli.errors import UsageError
from drift_cli.interchange.frame import turns_frame
from drift_cli.results.pictures import COMPARING, Picture
from drift_cli.segments import Part
from drift_cli.spec import Condition, Transcript
from drift_cli.store.axes import read_axis
from drift_cli.store.run import Run as Stored

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Run:
    """A run on disk. `drift_cli.open` opens one.

    Tables are read anew at each call, so that a run that is being made shows what is committed by then. Only committed turns count.

    >>> run = drift_cli.open("demo")
    >>> run.turns().groupby("condition")["projection_demo"].mean()
    >>> print(run.compare("simple", "baseline").verdict)
    """

    stored: Stored
    """The run as the store has it, for what is not offered here."""

    @property
    def id(self) -> str:
        """Its id: the name, and 8 hex digits of what makes it comparable."""
        return self.stored.paths.run_id

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.stored.paths.root

    @property
    def model(self) -> str:
        """The model's name."""
        return self.stored.manifest.spec.model

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Its conditions by name: system prompt and placement. The first is the baseline unless another is named."""
        known = self.stored.manifest.conditions
        return {name: known[name] for name in dict.fromkeys(plan.cell.condition for plan in self.stored.manifest.cells)}

    @property
    def transcripts(self) -> Mapping[str, Transcript]:
        """Its scripts by name: user turns."""
        return self.stored.manifest.transcripts

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings it was made with, by name."""
        return {name: setting.value for name, setting in self.stored.manifest.settings.items()}

    @property
    def axes(self) -> Mapping[str, int]:
        """Its axes by name, and the layer (`hidden_states` index) that each is used at."""
        return {entry.name: entry.layer for entry in (*self.stored.manifest.axes, *self.stored.manifest.measured)}

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose residual means are stored."""
        return self.stored.manifest.layers

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: every rollout has its last turn, or ended early."""
        return all(state.ended for state in self.stored.states())

    def axis(self, name: str | None = None) -> Axis:
        """The run's own copy of one of its axes (None: its only one). `StoreError` where the run has no such axis, or no copy of it."""
        return read_axis(self.stored.paths, choose_axis(self.stored.manifest, name, self.id))

    def turns(self, axis: str | None = None, *, residuals: bool = False, segment: str = "answer") -> pd.DataFrame:
        """Every committed turn, a row each: the columns of `drift export --format parquet`.

        Args:
            axis: the one axis to give a column `projection_<axis>` (None: all).
            residuals: add a column `residual_<layer>` for each stored layer: (width,) float32.
            segment: of replies with reasoning, what projections and residuals are of: `answer`, `reasoning` or `all`.

        Returns:
            Columns run, transcript, condition, temperature, sample (from 0), turn (from 1), user, reply, finish, prompt_length and reply_tokens (tokens), and
            projections in the axis's units (dot product of the reply's mean residual with the unit axis). A turn before which a rollout ended early has no
            reply.

        Raises:
            StoreError: no such axis, or a damaged file.
        """
        return turns_frame(self.stored, axes=None if axis is None else [axis], residuals=residuals, part=_part(segment))

    def rollouts(self, axis: str | None = None, *, segment: str = "answer") -> pd.DataFrame:
        """Every planned rollout, a row each.

        Returns:
            Columns transcript, condition, temperature, sample, turns (committed), planned, end (`complete`, `context`, `template`, `unfinished` or `not
            begun`), and one for each measure (`mean`, `change`, `slope`, …) of its projections on the axis; without these where the run has no axis. Of a
            rollout that lacks turns a measure is its part in the condition's estimate (docs/statistics.md), so that means over a condition are those of
            `drift stats`.

        Raises:
            StoreError: no such axis, several of which none is named, or a damaged file.
        """
        return frames.rollouts(self.stored, self.table(axis, segment=segment) if self.axes or axis is not None else None)

    def projections(
        self, axis: str | Axis | None = None, layer: int | None = None, *, segment: str = "answer", foreign_axis: bool = False
    ) -> pd.DataFrame:
        """Projections, a row to a rollout and a column to a turn (from 1), float64; NaN where a turn is missing.

        Args:
            axis: one of the run's by name (None: its only one), or any axis, for which the stored residual means are projected.
            layer: `hidden_states` index; None: where the run uses the axis, or the axis's only layer.
            segment: as in `turns`.
            foreign_axis: accept an axis of another model of the same width.

        Raises:
            UsageError: axis, model and layer do not fit.
            StoreError: no such axis, or the layer's residual means are not stored.
        """
        if isinstance(axis, Axis):
            return frames.wide(self._table_on(axis, layer, segment, foreign_axis))
        entry = choose_axis(self.stored.manifest, axis, self.id)
        if layer in (None, entry.layer):
            return frames.wide(self.table(entry.name, segment=segment))
        return frames.wide(self._table_on(self.axis(entry.name), layer, segment, foreign=foreign_axis or entry.foreign is not None))

    def _table_on(self, axis: Axis, layer: int | None, segment: str, foreign: bool) -> RunTable:
        spec, model = self.stored.manifest.spec, self.stored.manifest.model
        if model is not None:
            axis.check_model(spec.model, model.width, model.layers, revision=spec.identity, foreign=foreign)
        if layer is None and len(axis.layers) > 1:
            raise UsageError(f"axis {axis.name} has {len(axis.layers)} layers", mend="Name one: layer=21.")
        return load_on(self.stored, axis, axis.layers[0] if layer is None else layer, _part(segment))

    def residuals(self, layer: int, *, segment: str = "answer") -> frames.Residuals:
        """Mean residuals of every reply at a layer.

        Returns:
            `.values` (rows, width) float32 and `.index`, a DataFrame that says of each row transcript, condition, temperature, sample and turn. Replies
            without a token of the segment have no row.

        Raises:
            StoreError: the layer is not stored, or a file is damaged.
        """
        part = measured(self.stored.manifest, _part(segment)) or Part.ANSWER
        return frames.residuals(self.stored, layer, part)

    def table(self, axis: str | None = None, *, segment: str = "answer") -> RunTable:
        """The arrays that all statistics and pictures start from: rollouts × turns, with finish reasons and flags. Raises as `projections`."""
        return load(self.stored, axis, _part(segment))

    def compare(
        self,
        condition: str | Sequence[str] | None = None,
        baseline: str | None = None,
        *,
        axis: str | None = None,
        segment: str = "answer",
        reply_measure: str | None = None,
        flagged: bool = True,
        **options: Unpack[studies.Asked],
    ) -> Study:
        """Compare conditions with a baseline, as `drift stats` does.

        Args:
            condition: which; several, or None for all. p values are those of the whole run whichever are shown.
            baseline: None for the run's first condition.
            axis, segment: as in `turns`.
            reply_measure: the name of a measure of replies to compare in place of projections.
            flagged: whether suspect replies (empty, repeating themselves, reciting the prompt) count.
            options: test (welch, bootstrap, permutation, paired, mixed), primary (mean, change, slope, thirds, or an added measure of rollouts), correction
                (maxt, holm, bh, none), equivalence (the smallest difference of interest), turns (first, last), level, seed, resamples.

        Raises:
            UsageError: no such condition, test, measure or turns.
            StoreError: no such axis, or a damaged file.
        """
        asked = studies.asked(baseline, options)
        picture = self._picture(axis, segment, against=baseline, level=asked.level, reply_measure=reply_measure)
        given = [*options, *([] if baseline is None else ["against"])]
        return studies.make(picture, condition, asked, flagged=flagged, given=given)

    def plot(
        self,
        kind: str = "trajectory",
        *,
        axis: str | None = None,
        segment: str = "answer",
        baseline: str | None = None,
        style: str = "paper",
        title: str | None = None,
        reply: str | None = None,
        reply_measure: str | None = None,
        rollout_measure: str | None = None,
    ) -> Figure:
        """Draw the run as `drift plot` does. A matplotlib figure, not shown.

        Args:
            kind: trajectory, difference, forest, heatmap, ridgeline, layers or tokens.
            axis, segment: as in `turns`.
            baseline: the condition that others are compared with (None: the first).
            style: paper, talk, dark or talk-dark.
            title: a heading.
            reply: for tokens: CONDITION/SAMPLE/turn-N.
            reply_measure: a measure of replies to draw in place of projections.
            rollout_measure: for forest: the measure of rollouts (None: their means).

        Raises:
            UsageError: there is no such kind, style, condition or reply.
            StoreError: the run has nothing of the kind.
        """
        given: dict[str, Any] = {"style": style, "title": title, "reply": reply}
        measured = {"reply_measure": reply_measure, "rollout_measure": rollout_measure}
        picture = self._picture(axis, segment, against=baseline, **given, **measured)
        figure = picture.draw(kind)
        if kind in COMPARING:
            record(self.stored, picture.table, picture.options, "api")
        return figure

    def report(self, path: str | Path, *, axis: str | None = None, segment: str = "answer", baseline: str | None = None) -> Path:
        """Write the run as one offline HTML file, as `drift report` does; returns its path."""
        from drift_cli.results.report.gather import write

        picture = self._picture(axis, segment, against=baseline)
        written = write(picture, Path(path))
        record(self.stored, picture.table, picture.options, "api")
        return written

    def export(
        self,
        format: str,
        path: str | Path | None = None,
        *,
        axis: str | None = None,
        residuals: bool = False,
        segment: str = "answer",
    ) -> list[Path]:
        """Write the run for other tools, as `drift export` does; returns the files.

        Args:
            format: seed-json, assistant-axis, csv, parquet, or one that was added (docs/extending.md).
            path: the file or folder (None: under data/exports).
            axis: seed-json: which (None: the only one); csv and parquet: only this one.
            residuals: parquet: the residual means too.
            segment: csv and parquet: as in `turns`.

        Raises:
            UsageError: there is no such format, or it has no place for what is asked.
        """
        return exporting.export(self, format, None if path is None else Path(path), axis=axis, residuals=residuals, part=_part(segment))

    def _picture(self, axis: str | None, segment: str, **given: Any) -> Picture:
        return Picture(self.stored, axis, part=_part(segment), **given)

    @cached_property
    def _facts(self) -> dict[str, str]:
        axes = ", ".join(f"{name} at layer {layer}" if layer >= 0 else name for name, layer in self.axes.items())
        cells = self.stored.manifest.cells
        return {
            "model": self.model,
            "conditions": ", ".join(self.conditions),
            "transcripts": ", ".join(f"{name} ({script.total} turns)" for name, script in self.transcripts.items()),
            "temperatures": ", ".join(f"{value:g}" for value in dict.fromkeys(plan.cell.temperature for plan in cells)),
            "rollouts": f"{sum(plan.samples for plan in cells)} planned",
            "axes": axes or "none",
            "folder": str(self.path),
        }

    def __repr__(self) -> str:
        return f"Run {self.id}: " + "; ".join(f"{name} {text}" for name, text in self._facts.items() if name != "folder")

    def _repr_html_(self) -> str:
        return html.facts(f"Run {self.id}", self._facts)


def _part(segment: str) -> Part:
    return studies.choice(Part, "segment", segment)
