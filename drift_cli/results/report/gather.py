"""What a run's report is made from, and its file."""

from __future__ import annotations

from pathlib import Path

from drift_cli import __version__
from drift_cli.analysis.study import analyze
from drift_cli.analysis.tokens import load_traces
from drift_cli.errors import UsageError
from drift_cli.files import atomic_write, create_folder
from drift_cli.results.bands import bands_of
from drift_cli.results.figures.panel import check_drawable
from drift_cli.results.judged import judge
from drift_cli.results.pictures import Picture, references
from drift_cli.results.report.document import Contents, document
from drift_cli.results.report.html import page
from drift_cli.results.report.verdict import verdict
from drift_cli.results.tables.replies import replies_table, reply_differences
from drift_cli.results.tables.study import controls_table, study_tables
from drift_cli.spec import Part


def write(picture: Picture, path: Path) -> Path:
    """Write a run's report as one HTML file; returns its path. `UsageError` for a name that does not end in .html."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path} is no HTML file's name", mend="End it in .html.")
    data = page(document(gather(picture)), title=picture.title or picture.run.paths.run_id, generator=f"drift {__version__}")
    create_folder(path.parent)
    atomic_write(path, data)
    return path


def gather(picture: Picture) -> Contents:
    """Everything the report says of a run."""
    run, table = picture.run, picture.table
    check_drawable(table)
    judged = judge(run, table, study=picture.single)
    study = judged.study
    part = table.segment or Part.ANSWER
    others = () if table.measure is not None else reply_differences(run, study, part)
    short = [*study_tables(study, turns=False), *([controls_table(judged.controls, study.scope)] if judged.controls else [])]
    short += [replies_table(others, study)] if others else []
    folded = study_tables(study)[len(study_tables(study, turns=False)) :]
    if table.flags.suspect.any():
        folded += study_tables(analyze(table.without_suspect(), study.options), turns=False, which=", without flagged replies")
    model = run.manifest.model
    return Contents(
        run=run,
        table=table,
        bands=bands_of(table, picture.bands, picture.level),
        traces=load_traces(run, table),
        references=references(run, table, picture.reference) or {},
        verdict=verdict(judged.answer, () if model is None or model.note is None else (f"{run.manifest.spec.model}: {model.note}.",)),
        tables=short,
        folded=folded,
    )
