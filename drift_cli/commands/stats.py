"""`drift stats`: means, intervals and differences between conditions. The unit is the rollout."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from drift_cli.analysis.results import Correction, Flagged, Options, Test
from drift_cli.commands.flags import grouped
from drift_cli.commands.options import Common, MeasuredAxisOption, ReplyMeasureOption, RunArgument, SegmentOption
from drift_cli.commands.stats_result import Wanted, judged_study, power_study, show
from drift_cli.errors import UsageError
from drift_cli.results.tables.formats import Format
from drift_cli.segments import Part

if TYPE_CHECKING:
    from drift_cli.analysis.table import RunTable
    from drift_cli.store.run import Run


@dataclass(frozen=True)
class Compared:
    """Options that say how conditions are compared."""

    test: Annotated[
        Test | None, Option(help="How conditions are compared (default: paired where samples share their noise, else welch).")
    ] = None
    against: Annotated[str | None, Option(help="Compare with this condition only (default: all pairs).")] = None
    correction: Annotated[Correction, Option(help="Adjustment for the number of turns.")] = Correction.MAXT
    equivalence: Annotated[float | None, Option(help="Also test that differences lie within ± this margin (axis units).")] = None
    turns: Annotated[str | None, Option(help="Only these turns count, such as 1-14 (default: all).")] = None
    primary: Annotated[
        str | None,
        Option(
            help="The measure that carries the verdict: mean (default), change, slope, thirds, or one that a package adds.",
            autocompletion=lambda: ["mean", "change", "slope", "thirds"],
        ),
    ] = None
    ddof: Annotated[int, Option(help="1: sample standard deviation; 0: the population formula.", min=0, max=1)] = 1
    level: Annotated[float | None, Option(help="Level of the intervals (default: 0.95).", min=0.5, max=0.9999)] = None
    seed: Annotated[int, Option(help="Seed of the resampling.", min=0)] = 0
    resamples: Annotated[int, Option(help="Permutations or bootstrap samples.", min=99, max=1_000_000)] = 9999

    @property
    def options(self) -> Options:
        """As the analysis takes them."""
        return Options(
            test=self.test or Test.WELCH,
            against=self.against,
            primary=self.primary or "mean",
            level=0.95 if self.level is None else self.level,
            correction=self.correction,
            equivalence=self.equivalence,
            turns=_span(self.turns),
            ddof=self.ddof,
            seed=self.seed,
            resamples=self.resamples,
        )

    @property
    def given(self) -> list[str]:
        """Those that a plan may have declared, and that were given here."""
        return [name for name in ("test", "primary", "level", "against", "equivalence") if getattr(self, name) is not None]


@dataclass(frozen=True)
class Shown:
    """Options that say what is shown, and where."""

    full: Annotated[bool, Option("--full", help="Show all tables and cautions, not only the answer.")] = False
    measures: Annotated[bool, Option("--measures", help="Also show the differences on every measure.")] = False
    per_turn: Annotated[
        bool, Option("--turns-table/--no-turns-table", "--per-turn/--no-per-turn", help="Also show every turn, each pair with its bands.")
    ] = False
    format_: Annotated[Format | None, Option("--format", help="How it is written (default: by the file's name, else table).")] = None
    output: Annotated[Path | None, Option("--output", "-o", help="Write to this file instead of stdout.")] = None


@grouped
def stats(
    run: RunArgument = None,
    *,
    compared: Compared,
    flagged: Annotated[Flagged, Option(help="What becomes of suspect replies.")] = Flagged.BOTH,
    break_at: Annotated[float | None, Option(help="A rollout is broken below this projection (default: the personas' midpoint).")] = None,
    wanted: Shown,
    power: Annotated[bool, Option("--power", help="Instead: what more rollouts would show.")] = False,
    half_width: Annotated[
        list[float] | None, Option(help="With --power: the n that an interval of ± this needs; repeat for several.")
    ] = None,
    axis: MeasuredAxisOption = None,
    segment: SegmentOption = None,
    reply_measure: ReplyMeasureOption = None,
    common: Common,
) -> None:
    """Say whether each condition held the model, with the evidence and what limits it.

    The unit is the rollout: every number is over rollouts, and one transcript supports claims about sampling noise only. Differences come from t tests on
    rollout means (of pairs where samples share their noise) unless --test says otherwise; pairs of conditions and turns are tested together, by flipping
    signs of whole rollouts within each condition.

    Example: drift stats demo-1a2b3c4d --against baseline --full
    """
    from drift_cli.analysis.looks import record
    from drift_cli.results.judged import usual

    options, written, widths = compared.options, _format(wanted.format_, wanted.output), _widths(half_width or [], power)
    opened, shown = common.open(run), common.show()
    table = _measured(opened, axis, segment or Part.ANSWER, reply_measure)
    for said in _remarks(opened, table, named=axis is not None or reply_measure is not None):
        shown.note(said)
    options = usual(opened, table, options, compared.given)
    result = power_study(table, options, widths, flagged) if power else judged_study(table, options, flagged, opened, break_at)
    if (unrecorded := record(opened, table, options, "stats")) is not None:
        shown.note(unrecorded)
    show(shown, result, written, wanted.output, Wanted(wanted.full, wanted.measures, wanted.per_turn))


def _remarks(run: Run, table: RunTable, *, named: bool) -> list[str]:
    """What is to be said first: which axis is meant where none was named, and which added measures cannot be computed."""
    from drift_cli.analysis.entries import unnamed
    from drift_cli.analysis.measure import problems

    said = None if named else unnamed(run.manifest, table.axis)
    return [*([] if said is None else [said]), *problems()]


def _measured(run: Run, axis: str | None, part: Part, measure: str | None) -> RunTable:
    """Projections, or what a measure of replies gives in their place."""
    from drift_cli.analysis.measured import load_measure
    from drift_cli.analysis.table import load

    return load(run, axis, part) if measure is None else load_measure(run, measure, part)


def _format(given: Format | None, output: Path | None) -> Format:
    """The format that was asked for, else what the file's name says."""
    if given is not None:
        return given
    by_name = {".csv": Format.CSV, ".md": Format.MARKDOWN, ".tex": Format.LATEX}
    if output is None:
        return Format.TABLE
    if output.suffix.lower() not in by_name:
        raise UsageError(f"{output}: its name does not say in which format", mend="End it in .csv, .md or .tex, or give --format.")
    return by_name[output.suffix.lower()]


def _span(text: str | None) -> tuple[int, int] | None:
    """`1-14` or `3` as first and last turn."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2] or found[1]):
        raise UsageError(f"--turns {text!r} is not a range of turns", mend="Give the first and last that count, such as --turns 1-14.")
    return int(found[1]), int(found[2] or found[1])


def _widths(given: Sequence[float], power: bool) -> Sequence[float]:
    if given and not power:
        raise UsageError("--half-width goes with --power", mend="drift stats --power --half-width W")
    for width in given:
        if not (math.isfinite(width) and width > 0):
            raise UsageError(f"--half-width is {width:g}", mend="Give a positive number, in the axis's units.")
    return given


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(stats)
