"""The kinds of picture that `drift plot` draws of a run, each by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from drift_cli.errors import UsageError
from drift_cli.results.bands import bands_of
from drift_cli.segments import Part

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from drift_cli.analysis.presence import Presence
    from drift_cli.analysis.results import Options
    from drift_cli.analysis.study import Study
    from drift_cli.analysis.table import RunTable
    from drift_cli.results.figures.trajectory import Mark
    from drift_cli.store.run import Run

PULLS = "pulls"


@dataclass(frozen=True)
class Picture:
    """A run, and how it is to be drawn."""

    run: Run
    axis: str | None = None
    style: str = "paper"
    title: str | None = None
    against: str | None = None
    """The baseline (default: the first condition)."""
    annotate: Sequence[str] = ()
    """User turns to quote: numbers, or `pulls`."""
    reply: str | None = None
    """What `tokens` shows: `condition/sample/turn-N`."""
    reference: Path | None = None
    bands: str = "simultaneous"
    level: float = 0.95
    part: Part = Part.ANSWER
    """What of each reply is measured, where replies have segments."""
    reply_measure: str | None = None
    """A measure of replies, by name, in place of projections."""
    rollout_measure: str | None = None
    """What a forest compares of rollouts (default: their means)."""

    @cached_property
    def table(self) -> RunTable:
        """The run's projections on the axis, or what the measure of replies gives."""
        if self.reply_measure is not None:
            from drift_cli.analysis.measured import load_measure

            return load_measure(self.run, self.reply_measure, self.part)
        from drift_cli.analysis.table import load

        return load(self.run, self.axis, self.part)

    @cached_property
    def options(self) -> Options:
        """Of the statistics: the plan's, where the run has one."""
        from drift_cli.analysis.results import Options
        from drift_cli.results.judged import usual

        given = Options(level=self.level, against=None if self.against is None else self.baseline)
        return usual(self.run, self.table, given, () if self.against is None else ("against",))

    @cached_property
    def single(self) -> Study:
        """All pairs of conditions as if this were the only look; where a baseline was named, those with it."""
        from drift_cli.analysis.study import analyze

        return analyze(self.table, self.options)

    @cached_property
    def study(self) -> Study:
        """The same with the intervals and p that apply at this look."""
        from drift_cli.analysis.looked import study_as_of
        from drift_cli.analysis.looks import looking

        return study_as_of(self.single, looking(self.run, self.table))

    @property
    def presence(self) -> Presence:
        """The differences from the baseline, split into the prompt's presence and words, with the intervals that apply at this look."""
        from drift_cli.analysis.looked import presence_as_of
        from drift_cli.analysis.looks import looking
        from drift_cli.analysis.presence import Presence, presence

        if self.table.measure is not None:
            return Presence()
        return presence_as_of(presence(self.run, self.table, self.options), looking(self.run, self.table), self.options.level)

    @cached_property
    def from_baseline(self) -> Study:
        """The same study, of which only the pairs with the baseline: a comparison has one p, wherever it is shown."""
        return self.study.with_baseline()

    @property
    def baseline(self) -> str:
        """The condition that others are compared with."""
        names = self.table.conditions
        if self.against is not None and self.against not in names:
            raise UsageError(f"condition {self.against!r} is not in this run", mend=f"It has: {', '.join(names)}.")
        return self.against or names[0]

    def draw(self, kind: str) -> Figure:
        """One of `KINDS` but `text`. Raises `Unavailable` where the run has nothing of the kind, `UsageError` where there is no such kind."""
        from drift_cli.results.figures.panel import check_drawable

        if kind not in _DRAW:
            raise UsageError(f"there is no kind {kind!r}", mend=f"Use one of: {', '.join(_DRAW)}.")
        check_drawable(self.table)
        return _DRAW[kind](self)

    def text(self, *, color: bool) -> str:
        """The trajectory in characters."""
        from drift_cli.results.figures.terminal import terminal

        return terminal(self.table, reference=references(self.run, self.table, self.reference), color=color)


def references(run: Run, table: RunTable, given: Path | None) -> dict[str, NDArray[np.float64]] | None:
    """Reference lines by transcript: the one given, else those measured in the run on this axis."""
    import numpy as np

    from drift_cli.measuring.reference_line import check_pool, read

    names = dict.fromkeys(cell.transcript for cell in table.cells)
    if table.measure is not None:
        return None
    if given is not None:
        line = read(given)
        name = line.transcript if line.transcript in names else next(iter(names))
        lines = {name: line}
    else:
        lines = {name: read(path) for name in names if (path := run.paths.reference(name, table.axis)).exists()}
    drawn = {}
    for name, line in lines.items():
        check_pool(line, run)
        values = np.full(table.length(name), np.nan)
        known = line.projections[: len(values)]
        values[: len(known)] = [np.nan if value is None else value for value in known]
        drawn[name] = values
    return drawn or None


def _trajectory(picture: Picture) -> Figure:
    from drift_cli.results.figures.palette import style_named
    from drift_cli.results.figures.trajectory import trajectory

    # Differences belong to the picture where they fit it: several scripts have a figure of their own for them.
    differences = picture.from_baseline.turns if len(picture.table.groups) == 1 and len(picture.table.conditions) > 1 else ()
    return trajectory(
        picture.table,
        reference=references(picture.run, picture.table, picture.reference),
        differences=differences,
        title=picture.title,
        bands=bands_of(picture.table, picture.bands, picture.level),
        marks=_marks(picture),
        scope=picture.from_baseline.scope,
        style=style_named(picture.style),
    )


def _difference(picture: Picture) -> Figure:
    from drift_cli.results.figures.difference import difference
    from drift_cli.results.figures.palette import style_named

    return difference(
        picture.table, picture.from_baseline, presence=picture.presence, title=picture.title, style=style_named(picture.style)
    )


def _forest(picture: Picture) -> Figure:
    from drift_cli.results.figures.forest import forest
    from drift_cli.results.figures.palette import style_named

    return forest(
        picture.table,
        picture.study,
        picture.rollout_measure,
        presence=picture.presence,
        title=picture.title,
        style=style_named(picture.style),
    )


def _marks(picture: Picture) -> list[Mark]:
    """The user turns to annotate, in each transcript that has them."""
    from drift_cli.results.figures.trajectory import Mark, pulls

    table, marks = picture.table, []
    for name in dict.fromkeys(cell.transcript for cell in table.cells):
        users = picture.run.manifest.transcripts[name].users
        turns: set[int] = set()
        for asked in picture.annotate:
            if asked == PULLS:
                turns.update(pulls(table, name))
            elif asked.isdecimal() and int(asked) >= 1:
                turns.add(int(asked))
            else:
                raise UsageError(
                    f"--annotate {asked!r} is no turn", mend=f"Give a turn's number, or {PULLS} for those where the script pulls hardest."
                )
        marks += [Mark(name, turn, users[turn - 1]) for turn in sorted(turns) if turn <= len(users)]
    if picture.annotate and not marks:
        raise UsageError(
            f"no transcript has turn {', '.join(picture.annotate)}", mend=f"The longest has {table.projections.shape[1]} turns."
        )
    return marks


def _heatmap(picture: Picture) -> Figure:
    from drift_cli.results.figures.heatmap import heatmap
    from drift_cli.results.figures.palette import style_named

    return heatmap(picture.table, title=picture.title, style=style_named(picture.style))


def _ridgeline(picture: Picture) -> Figure:
    from drift_cli.results.figures.palette import style_named
    from drift_cli.results.figures.ridgeline import ridgeline

    return ridgeline(picture.table, title=picture.title, style=style_named(picture.style))


def _layers(picture: Picture) -> Figure:
    from drift_cli.analysis.layers import load_layers
    from drift_cli.results.figures.layers import layers
    from drift_cli.results.figures.palette import style_named

    found = load_layers(picture.run, picture.table)
    return layers(found, against=picture.baseline, title=picture.title, style=style_named(picture.style))


def _tokens(picture: Picture) -> Figure:
    from drift_cli.analysis.layers import Unavailable
    from drift_cli.analysis.tokens import load_traces
    from drift_cli.results.figures.palette import style_named
    from drift_cli.results.figures.panel import axis_label
    from drift_cli.results.figures.tokens import tokens
    from drift_cli.results.named_reply import find_reply, lowest

    traces = load_traces(picture.run, picture.table)
    run_id, axis = picture.run.paths.run_id, picture.table.axis
    mend = f"Measure them: drift measure {run_id} --axis {axis} --traces"
    if not traces.of:
        raise Unavailable(f"run {run_id} has no token traces on axis {axis}", mend=mend)
    rollout, turn = find_reply(picture.run, picture.reply) if picture.reply else lowest(picture.table, list(traces.of))
    found = traces.of.get(rollout, {}).get(turn)
    if found is None:
        raise UsageError(f"{rollout} turn {turn} is not traced", mend=mend)
    part = picture.table.segment or Part.ANSWER
    pieces, values = found.of(picture.run.record(rollout).turns[turn - 1], part)
    if not pieces:
        raise UsageError(f"{rollout} turn {turn} has no token of {part.words}", mend="Name another reply, or another --segment.")
    return tokens(
        pieces,
        values.astype(float),
        label=axis_label(picture.table),
        middle=traces.middle,
        half=traces.half,
        title=picture.title or f"{rollout.cell.condition}, rollout {rollout.sample}, turn {turn}",
        style=style_named(picture.style),
    )


_DRAW: dict[str, Callable[[Picture], Figure]] = {
    "trajectory": _trajectory,
    "difference": _difference,
    "forest": _forest,
    "heatmap": _heatmap,
    "ridgeline": _ridgeline,
    "layers": _layers,
    "tokens": _tokens,
}
KINDS = (*_DRAW, "text")
ALL = "all"
COMPARING = frozenset({"trajectory", "difference", "forest"})
"""Kinds of picture that show a comparison: looking at one is a look at results."""
