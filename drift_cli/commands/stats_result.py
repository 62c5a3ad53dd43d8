"""What `drift stats` has found, and how it is shown: the answer, tables, a document, a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.display import Display, Table
from drift_cli.files import atomic_write
from drift_cli.results.tables.formats import Format
from drift_cli.segments import Part

if TYPE_CHECKING:
    from drift_cli.analysis.controls import Standing
    from drift_cli.analysis.power import Power
    from drift_cli.analysis.results import Options
    from drift_cli.analysis.study import Study
    from drift_cli.analysis.table import RunTable
    from drift_cli.analysis.verdict import Answer
    from drift_cli.results.judged import Judged
    from drift_cli.results.tables.replies import ReplyDifference
    from drift_cli.store.run import Run


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


def judged_study(table: RunTable, options: Options, wanted: str, run: Run, break_at: float | None) -> Result:
    """Studies of the table, with and without suspect replies as `wanted` says, and the verdict on the first."""
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


def power_study(table: RunTable, options: Options, widths: Sequence[float], wanted: str) -> Result:
    """What more rollouts would show."""
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


def show(display: Display, result: Result, format_: Format, output: Path | None, wanted: Wanted) -> None:
    """Show a result, or write it to `output`."""
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
    atomic_write(output, text.encode())
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
