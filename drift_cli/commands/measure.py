"""`drift measure`: project on another axis from stored residuals, or measure a finished conversation (the reference line)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drift_cli.commands.flags import Flags, with_settings
from drift_cli.commands.options import Common, RunArgument, SegmentOption, of_segment
from drift_cli.commands.reference import Reading, alone, beside
from drift_cli.commands.traces import trace
from drift_cli.display import Display
from drift_cli.errors import UsageError
from drift_cli.spec import Part, at_layer

if TYPE_CHECKING:
    from drift_cli.axis import Axis
    from drift_cli.measuring.axis_use import Subject, Use
    from drift_cli.store.run import Run

_HELP = {
    "layer": "The layer to project at (default: as the run has the axis, else the one that the axis suggests).",
    "turns": "With --transcript: its first N user turns only.",
    "model": "With --transcript and no RUN: the model that reads it.",
    "adapter": "With --model: the folder of a LoRA adapter to merge into it.",
}


@with_settings("axis", "layer", "foreign_axis", "turns", "model", "adapter", "strip_private", "device", **_HELP)
def measure(
    flags: Flags,
    run: RunArgument = None,
    transcript: Annotated[str | None, typer.Option(help="A finished conversation to measure instead: the reference line.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --transcript: where the reference line goes.")] = None,
    traces: Annotated[bool, typer.Option("--traces", help="Measure every token of the run's replies, for `drift report`.")] = False,
    same_replies: Annotated[
        bool,
        typer.Option("--same-replies", help="Read the run's replies under the prompts they are compared with: presence and words apart."),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(help="With --same-replies: the condition that others are compared with (default: the first).", show_default=False),
    ] = None,
    controls: Annotated[int | None, typer.Option(help="Also project on this many control axes of each kind.", min=1)] = None,
    segment: SegmentOption = None,
    *,
    common: Common,
) -> None:
    """Measure on another axis, or a finished conversation.

    `drift measure RUN --axis A` adds the axis to the run: `drift stats RUN --axis A` and `drift plot RUN --axis A` use it from then on. An axis that the run
    has already is added at another --layer L as `A@L`.
    `drift measure RUN --transcript FILE` runs the model over FILE's replies; `drift plot RUN` then draws them as the reference line.
    `drift measure RUN --controls N` makes N random unit vectors and N axes of personas with shuffled labels; `drift stats RUN` then ranks among them.
    `drift measure RUN --same-replies` reads each condition's replies under the baseline's prompt and the baseline's under each condition's;
    `drift stats RUN` then tells what a prompt's presence does from what it does to the words. `drift generate` does this by itself.
    `drift measure RUN --traces` runs the model over the run's own replies; `drift report RUN` then colours every token.

    Example: drift measure demo-1a2b3c4d --axis mine --layer 4
    """
    shown, part, axis, layer = common.show(), segment or Part.ANSWER, flags["axis"], flags["layer"]
    of_line = {key: flags[key] for key in ("model", "adapter", "turns")} | {"output": output}
    if transcript is None:
        _refuse_without_transcript(of_line)
    if same_replies:
        others = {"transcript": transcript, **of_line, "axis": axis, "layer": layer, "controls": controls, "segment": segment}
        _refuse_with_same_replies({**others, "traces": traces or None})
        from drift_cli.commands.same_replies import same_replies as read_again

        read_again(shown, common.open(run), against, flags["device"])
        return
    if against is not None:
        raise UsageError("--against goes with --same-replies", mend="It names the condition that others are compared with.")
    if traces:
        _refuse_with_traces({"transcript": transcript, **of_line, "layer": layer, "controls": controls, "segment": segment})
        trace(shown, common.open(run), axis, flags["device"])
    elif controls is not None:
        _refuse_with_controls({"transcript": transcript, **of_line, "layer": layer})
        _controls(shown, common.open(run), axis, controls, part)
    elif transcript is None:
        _project(shown, common.open(run), axis, layer, flags["foreign_axis"], part)
    elif segment is not None:
        raise UsageError("--segment does not go with --transcript", mend="A reference line is of the given replies, as they are.")
    elif run is None:
        alone(shown, Reading(transcript, output, flags))
    else:
        _refuse_with_run({key: flags[key] for key in ("model", "adapter")})
        beside(shown, common.open(run), Reading(transcript, output, flags))


def _refuse_without_transcript(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name} goes with --transcript", mend="It is about a reference line: drift measure --transcript FILE")


def _refuse_with_run(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name} and RUN were both given", mend=f"A run has its model already: leave --{name} out.")


def _refuse_with_traces(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{name} does not go with --traces",
                mend="Traces are of all tokens of the run's own replies, by its model, at its axis's layer.",
            )


def _refuse_with_same_replies(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{name} does not go with --same-replies",
                mend="It reads the run's own replies, by its model, at all layers that the run stores.",
            )


def _refuse_with_controls(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{name} does not go with --controls", mend="Control axes are for an axis that the run has, at its layer there."
            )


def _controls(display: Display, run: Run, name: str | None, count: int, part: Part) -> None:
    """Make control axes for one of the run's axes, keep them in the run, and show where its differences stand among theirs."""
    from drift_cli.analysis.entries import choose_axis
    from drift_cli.analysis.results import Options
    from drift_cli.analysis.summary import scope
    from drift_cli.analysis.table import load as load_table
    from drift_cli.measuring import controls
    from drift_cli.results.judged import among_controls
    from drift_cli.results.tables.study import controls_table
    from drift_cli.store.axes import read_axis

    entry = choose_axis(run.manifest, name, run.paths.run_id)
    if entry.layer not in run.manifest.layers:
        raise UsageError(
            f"run {run.paths.run_id} has no stored residuals of layer {entry.layer}, where axis {entry.name} is",
            mend="Control axes need them: generate with --layers all, or with that layer.",
        )
    axis = read_axis(run.paths, entry)
    drawn_from = controls.activations(run, entry.layer, width=axis.width)
    controls.save(controls.make(axis, entry.layer, count, activations=drawn_from), run.paths.controls(entry.name))
    table = load_table(run, entry.name, part)
    found = among_controls(run, table, Options())
    notes = [] if axis.means is not None else [f"axis {axis.name} does not know its personas: no shuffled ones"]
    display.result(
        {"run": run.paths.run_id, "axis": entry.name, "layer": entry.layer, **of_segment(table.segment), "controls": found},
        controls_table(found, scope(table)),
        *notes,
    )


def _project(display: Display, run: Run, asked: str | None, layer: int | None, foreign: bool | None, part: Part) -> None:
    from drift_cli.analysis.missing import commands_for
    from drift_cli.analysis.segments import measured
    from drift_cli.analysis.summary import summarize
    from drift_cli.analysis.table import load
    from drift_cli.results.tables.study import summary_table

    run_id, stored = run.paths.run_id, run.manifest.layers
    if asked is None:
        raise UsageError("no axis was given", mend=f"Name one (`drift axis show` lists them): {commands_for(run.manifest)}")
    if run.manifest.model is None or not stored:
        raise UsageError(f"run {run_id} has no stored residuals (it was imported)", mend="Only runs made with `drift generate` have them.")
    measured(run.manifest, part)
    name, used = axis_of(run, asked, layer, foreign)
    if used.chosen.layer not in stored:
        raise UsageError(
            f"run {run_id} stores no residuals of layer {used.chosen.layer} ({used.chosen.why})",
            mend=f"It stores {', '.join(map(str, stored))}; choose with --layer.",
        )
    for notice in used.notices():
        display.note(notice)
    if name not in {entry.name for entry in (*run.manifest.axes, *run.manifest.measured)}:
        if not run.paths.axis(name).exists():
            used.axis.save(run.paths.axis(name))
        run.update(replace(run.manifest, measured=(*run.manifest.measured, replace(used.entry, name=name))))
    summary = summarize(table := load(run, name, part))
    document = {"run": run_id, "axis": name, "layer": used.chosen.layer, **of_segment(table.segment), "summary": summary}
    title = "" if table.segment is None else f", {table.segment.words}"
    display.result(document, summary_table(summary, title), f"next: drift stats {run_id} --axis {name}   drift plot {run_id} --axis {name}")


def axis_of(run: Run, asked: str | None, layer: int | None, foreign: bool | None) -> tuple[str, Use]:
    """One of a run's axes, or one that it may gain: what the run calls it, and how it is used there.

    Args:
        run: one with a model.
        asked: a name or a file; `demo@3` is axis demo at layer 3; None for the run's only one.
        layer: the layer that was asked for; None: the one at which the run has the axis, else the rule of `axes.layer`.
        foreign: whether an axis of another model is meant; None: as drift.toml says.

    Raises:
        UsageError: the run has another axis of this name, or the axis does not fit its model.
    """
    from drift_cli.analysis.entries import choose_axis
    from drift_cli.measuring.axis_use import Subject, named, use

    manifest = run.manifest
    assert manifest.model is not None
    entry = choose_axis(manifest, None, run.paths.run_id) if asked is None else None
    name, wanted = named(entry.axis if entry is not None else str(asked), layer)
    axis = _found(run, name)
    ours = [known for known in (*manifest.axes, *manifest.measured) if known.axis == axis.name]
    if any(known.digest != axis.digest for known in ours):
        raise UsageError(f"run {run.paths.run_id} has another axis called {axis.name}", mend="Import this one under another --name.")
    kept = entry.layer if entry is not None else ours[0].layer if ours else None
    subject = Subject(manifest.spec.model, manifest.spec.identity, manifest.model.width, manifest.model.layers)
    allowed = bool(foreign) or any(known.foreign for known in ours) or _allowed(axis, subject, foreign)
    used = use(axis, subject, wanted, foreign=allowed, kept=kept if wanted is None else None)
    same = next((known.name for known in ours if known.layer == used.chosen.layer), None)
    return same or (at_layer(axis.name, used.chosen.layer) if ours else axis.name), used


def _found(run: Run, name: str) -> Axis:
    """An axis by name or file; by name also the run's own copy, should it be nowhere else any more."""
    from drift_cli.axis import Axis
    from drift_cli.measuring.axis_use import is_name
    from drift_cli.models import DEMO
    from drift_cli.models.axes import find
    from drift_cli.settings.config import axes_folder

    copies = {entry.axis for entry in (*run.manifest.axes, *run.manifest.measured)}
    gone = name != DEMO and is_name(name) and not (axes_folder() / f"{name}.safetensors").exists()
    return Axis.load(run.paths.axis(name)) if gone and name in copies else find(name, axes_folder())


def _allowed(axis: Axis, subject: Subject, foreign: bool | None) -> bool:
    """Whether drift.toml or the environment allow the axis of another model; they are read where it is one."""
    from drift_cli.settings.config import resolve

    if foreign is not None or axis.foreign_to(subject.model, subject.revision) is None:
        return False
    return bool(resolve({}).foreign_axis)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(measure)
