"""`drift stats`: means, intervals and differences between conditions. The unit is the rollout."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drift_cli.commands.options import (
    DisplayOption,
    JsonOption,
    MeasuredAxisOption,
    ReplyMeasureOption,
    RunArgument,
    SegmentOption,
    StoreOption,
    make_display,
    open_run,
)
from drift_cli.display import Display, Mode, Table
from drift_cli.errors import UsageError
from drift_cli.results.tables.formats import Format
from drift_cli.spec import Part

if TYPE_CHECKING:
    from collections.abc import Sequence
    from enum import StrEnum
    from typing import TypeVar

    from drift_cli.analysis.controls import Standing
    from drift_cli.analysis.power import Power
    from drift_cli.analysis.results import Options
    from drift_cli.analysis.study import Study
    from drift_cli.analysis.table import RunTable
    from drift_cli.analysis.verdict import Answer
    from drift_cli.results.judged import Judged
    from drift_cli.results.tables.replies import ReplyDifference
    from drift_cli.store.run import Run

    E = TypeVar("E", bound=StrEnum)


def stats(
    run: RunArgument = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="How conditions are compared: welch, bootstrap, permutation, paired or mixed (default: paired where samples share their noise, else welch).",
            show_default=False,
        ),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Compare with this condition only (default: all pairs).", show_default=False)] = None,
    correction: Annotated[str, typer.Option(help="For the number of turns: maxt, holm, bh or none.")] = "maxt",
    equivalence: Annotated[
        float | None, typer.Option(help="Also test that differences lie within ± this margin (axis units).", show_default=False)
    ] = None,
    flagged: Annotated[str, typer.Option(help="Suspect replies: include, exclude or both.")] = "both",
    turns: Annotated[str | None, typer.Option(help="Only these turns count, such as 1-14 (default: all).", show_default=False)] = None,
    primary: Annotated[
        str | None,
        typer.Option(
            help="The measure that carries the verdict: mean (default), change, slope, thirds, or one that a package adds.",
            show_default=False,
        ),
    ] = None,
    break_at: Annotated[
        float | None, typer.Option(help="A rollout is broken below this projection (default: the personas' midpoint).", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show all tables and cautions, not only the answer.")] = False,
    measures: Annotated[bool, typer.Option("--measures", help="Also show the differences on every measure.")] = False,
    per_turn: Annotated[
        bool,
        typer.Option("--turns-table/--no-turns-table", "--per-turn/--no-per-turn", help="Also show every turn, each pair with its bands."),
    ] = False,
    power: Annotated[bool, typer.Option("--power", help="Instead: what more rollouts would show.")] = False,
    half_width: Annotated[
        list[float] | None, typer.Option(help="With --power: the n that an interval of ± this needs; may be repeated.", show_default=False)
    ] = None,
    axis: MeasuredAxisOption = None,
    segment: SegmentOption = None,
    reply_measure: ReplyMeasureOption = None,
    ddof: Annotated[int, typer.Option(help="1: sample standard deviation; 0: the population formula.", min=0, max=1)] = 1,
    level: Annotated[
        float | None, typer.Option(help="Level of the intervals (default: 0.95).", min=0.5, max=0.9999, show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.", min=0)] = 0,
    resamples: Annotated[int, typer.Option(help="Permutations or bootstrap samples.", min=99, max=1_000_000)] = 9999,
    format_: Annotated[str | None, typer.Option("--format", help="table, csv, markdown or latex.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of stdout.", show_default=False)] = None,
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Say whether each condition held the model, with the evidence and what limits it.

    The unit is the rollout: every number is over rollouts, and one transcript supports claims about sampling noise only. Differences come from t tests on
    rollout means (of pairs where samples share their noise) unless --test says otherwise; pairs of conditions and turns are tested together, by flipping
    signs of whole rollouts within each condition.

    Example: drift stats demo-1a2b3c4d --against baseline --full
    """
    from drift_cli.analysis.entries import unnamed
    from drift_cli.analysis.looks import record
    from drift_cli.analysis.measure import problems
    from drift_cli.analysis.results import Correction, Flagged, Options, Test
    from drift_cli.results.judged import usual

    options = Options(
        test=Test.WELCH if test is None else _choice(Test, "--test", test),
        against=against,
        primary=primary or "mean",
        level=0.95 if level is None else level,
        correction=_choice(Correction, "--correction", correction),
        equivalence=equivalence,
        turns=_span(turns),
        ddof=ddof,
        seed=seed,
        resamples=resamples,
    )
    wanted, written, part = _choice(Flagged, "--flagged", flagged), _format(format_, output), segment or Part.ANSWER
    widths = _widths(half_width or [], power)
    opened, shown = open_run(store, run), make_display(display, as_json)
    table = _measured(opened, axis, part, reply_measure)
    if axis is None and reply_measure is None and (said := unnamed(opened.manifest, table.axis)) is not None:
        shown.note(said)
    for problem in problems():
        shown.note(problem)
    asked = {"test": test, "primary": primary, "level": level, "against": against, "equivalence": equivalence}
    options = usual(opened, table, options, [name for name, value in asked.items() if value is not None])
    result = _power(table, options, widths, wanted) if power else _study(table, options, wanted, opened, break_at)
    if (unrecorded := record(opened, table, options, "stats")) is not None:
        shown.note(unrecorded)
    _show(shown, result, written, output, Wanted(full, measures, per_turn))


def _measured(run: Run, axis: str | None, part: Part, measure: str | None) -> RunTable:
    """Projections, or what a measure of replies gives in their place."""
    from drift_cli.analysis.measured import load_measure
    from drift_cli.analysis.table import load

    return load(run, axis, part) if measure is None else load_measure(run, measure, part)


@dataclass(frozen=True)
class Wanted:
    """What is to be shown beside the answer."""

    full: bool = False
    measures: bool = False
    turns: bool = False


@dataclass(frozen=True)
class Result:
    """What there is to show: studies by what they say of the replies, as all or without suspect ones; power, where it was asked for."""

    studies: dict[str, Study]
    remark: str
    """On suspect replies."""
    controls: Sequence[Standing] = ()
    """The first study's differences among those on control axes, where the run has some."""
    power: Sequence[Power] | None = None
    judged: Judged | None = None
    """The first study's verdict and what stands beside it; not beside power."""

    replies: Sequence[ReplyDifference] = ()
    """Differences on other measures of replies, where others added some."""

    @property
    def answer(self) -> Answer | None:
        """The verdict."""
        return None if self.judged is None else self.judged.answer


def _study(table: RunTable, options: Options, wanted: str, run: Run, break_at: float | None) -> Result:
    from drift_cli.analysis.looked import study_as_of
    from drift_cli.analysis.looks import looking
    from drift_cli.analysis.study import analyze
    from drift_cli.results.judged import judge
    from drift_cli.results.tables.replies import reply_differences

    tables, remark = _tables(table, options, wanted)
    studies = {name: analyze(chosen, options) for name, chosen in tables.items()}
    judged = judge(run, next(iter(tables.values())), study=next(iter(studies.values())), break_at=break_at)
    found, part = looking(run, table), table.segment or Part.ANSWER
    others = () if table.measure is not None else reply_differences(run, judged.study, part)
    return Result({name: study_as_of(one, found) for name, one in studies.items()}, remark, judged.controls, judged=judged, replies=others)


def _power(table: RunTable, options: Options, widths: Sequence[float], wanted: str) -> Result:
    from drift_cli.analysis.power import power
    from drift_cli.analysis.study import analyze

    tables, remark = _tables(table, options, "include" if wanted == "both" else wanted)
    ((name, chosen),) = tables.items()
    study = analyze(chosen, options)
    return Result(
        {name: study}, remark, power=power(chosen if options.turns is None else chosen.window(*options.turns), options, half_widths=widths)
    )


def _tables(table: RunTable, options: Options, wanted: str) -> tuple[dict[str, RunTable], str]:
    """The table with all replies, without suspect ones, or both; and what there is to say about it."""
    from drift_cli.analysis.segments import remark

    seen = table if options.turns is None else table.window(*options.turns)
    tables, said = _with_and_without(table, seen, wanted)
    return tables, " ".join(filter(None, (said, remark(seen))))


def _with_and_without(table: RunTable, seen: RunTable, wanted: str) -> tuple[dict[str, RunTable], str]:
    """The same without what there is to say about segments; `seen` is the part of the table that counts."""
    suspect = seen.flags.suspect & (seen.finish != "")
    count, rollouts = int(suspect.sum()), int(suspect.any(axis=1).sum())
    if not count:
        return {"include": table}, "No reply is flagged as suspect."
    said = f"{count} replies in {rollouts} rollouts are suspect (empty, repeating themselves, or reciting the system prompt)"
    kept, left = {"include": table}, {"exclude": table.without_suspect()}
    if wanted == "include":
        return kept, f"{said}; they are included."
    if wanted == "exclude":
        return left, f"{said}; they are left out."
    return kept | left, f"{said}; every table comes with them and without."


def _show(display: Display, result: Result, format_: Format, output: Path | None, wanted: Wanted) -> None:
    if output is None and format_ is Format.TABLE:
        if result.answer is not None and not wanted.full:
            _brief(display, result, wanted)
        else:
            display.result(_document(result), *_shown(result, wanted), "\n".join(_closing(result)))
        return
    text = _text(result, format_, wanted)
    if output is None:
        display.result(_document(result), text.rstrip("\n"))
        return
    output.write_text(text, encoding="utf-8")
    display.result({"run": _first(result).provenance.run, "files": [str(output)]}, f"written: {output}")


def _brief(display: Display, result: Result, wanted: Wanted) -> None:
    """The answer, and the parts of the tables that were asked for."""
    from drift_cli.results.tables.answer import lines
    from drift_cli.results.tables.comparisons import added_table, drift_table, pairs_table
    from drift_cli.results.tables.dynamics import dynamics_table
    from drift_cli.results.tables.replies import replies_table
    from drift_cli.results.tables.turns import all_turns

    assert result.judged is not None
    study, moves = _first(result), result.judged.dynamics
    moved = [dynamics_table(moves, study.options.level, study.scope)] if moves else []
    others = [replies_table(result.replies, study)] if result.replies else []
    tables = [
        *([pairs_table(study), drift_table(study), added_table(study), *others, *moved] if wanted.measures else []),
        *(all_turns(study) if wanted.turns else []),
    ]
    closing = [str(study.provenance)] if tables else []
    display.result(
        _document(result), *lines(result.judged.answer, display.width), *([""] if tables else []), *(t for t in tables if t.rows), *closing
    )


def _text(result: Result, format_: Format, wanted: Wanted) -> str:
    """The result for a file or a pipe."""
    from drift_cli.results.tables.formats import csv_text, latex, markdown
    from drift_cli.results.tables.records import records

    if format_ is Format.CSV:
        return csv_text([record for name, study in result.studies.items() for record in records(study, name, result.power or ())])
    write = latex if format_ is Format.LATEX else markdown
    closing = _closing(result)
    sourced = (Table(t.title, t.heads, t.rows, [*t.notes, *closing]) for t in _shown(result, wanted))
    return "\n".join(write(table) for table in sourced)


def _shown(result: Result, wanted: Wanted) -> list[Table]:
    from drift_cli.results.tables.answer import verdict_table
    from drift_cli.results.tables.power import power_tables
    from drift_cli.results.tables.replies import replies_table
    from drift_cli.results.tables.study import controls_table, study_tables

    if result.power is not None:
        return power_tables(result.power, _first(result).scope, _first(result).first)
    tables: list[Table] = [] if result.answer is None else [verdict_table(result.answer)]
    others = [replies_table(result.replies, _first(result))] if result.replies else []
    for name, study in result.studies.items():
        which = " (without suspect replies)" if name == "exclude" else ""
        tables += study_tables(study, turns=wanted.turns and study is _first(result), which=which)
    if result.judged is not None:
        tables += _beside(result.judged)
    return tables + others + ([controls_table(result.controls, _first(result).scope)] if result.controls else [])


def _beside(judged: Judged) -> list[Table]:
    """What stands behind the tables of the differences."""
    from drift_cli.results.tables.breaks import breaks_table
    from drift_cli.results.tables.dynamics import dynamics_table
    from drift_cli.results.tables.scripts import reach_table

    level, scope = judged.study.options.level, judged.study.scope
    found = [breaks_table(judged.answer.breaks, level, scope)] if judged.answer.breaks else []
    found += [reach_table(judged.reach, level, judged.study.baseline)] if judged.reach else []
    return found + ([dynamics_table(judged.dynamics, level, scope)] if judged.dynamics else [])


def _first(result: Result) -> Study:
    return next(iter(result.studies.values()))


def _closing(result: Result) -> list[str]:
    """What stands below everything: suspect replies, where the numbers come from, and how to get more."""
    lines = [result.remark, str(_first(result).provenance)]
    return lines + (["More rollouts extend this run in place: drift generate --samples N"] if result.power is not None else [])


def _document(result: Result) -> dict[str, Any]:
    """The result as JSON: the first study's fields at the top, the other's, if there is one, under `without_flagged`."""
    from drift_cli.analysis.results import PartProvenance

    ((name, first), *others) = result.studies.items()
    document = {
        "run": first.provenance.run,
        "test": first.options.test,
        "seed": first.options.seed,
        "flagged": name,
        "remark": result.remark,
    }
    if isinstance(first.provenance, PartProvenance):
        document["segment"] = first.provenance.segment
    if result.answer is not None:
        document["verdict"] = result.answer
    document |= vars(first)
    if result.replies:
        document["reply_measures"] = list(result.replies)
    if result.judged is not None:
        document |= {name: list(found) for name in ("reach", "dynamics") if (found := getattr(result.judged, name))}
    if result.controls:
        document["controls"] = list(result.controls)
    if others:
        document["without_flagged"] = others[0][1]
    if result.power is not None:
        document["power"] = list(result.power)
    return document


def _choice(kind: type[E], option: str, given: str) -> E:
    """The member of that value. `UsageError` lists them."""
    try:
        return kind(given)
    except ValueError:
        raise UsageError(f"there is no {option} {given!r}", mend=f"Use one of: {', '.join(kind)}.") from None


def _format(given: str | None, output: Path | None) -> Format:
    """The format that was asked for, else what the file's name says."""
    if given is not None:
        return _choice(Format, "--format", given)
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
