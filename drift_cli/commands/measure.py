"""`drift measure`: project on another axis from stored residuals, or measure a finished conversation (the reference line)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drift_cli import models
from drift_cli.commands.options import (
    DeviceOption,
    DisplayOption,
    JsonOption,
    RunArgument,
    SegmentOption,
    StoreOption,
    make_display,
    of_segment,
    open_run,
    part_of,
)
from drift_cli.display import Display, Mode, Table
from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from drift_cli.axes import Axis
    from drift_cli.chat import Chat
    from drift_cli.models import LoadedModel
    from drift_cli.reference_line import ReferenceLine
    from drift_cli.spec import Part
    from drift_cli.store.run import Run


def measure(
    run: RunArgument = None,
    axis: Annotated[str | None, typer.Option(help="The axis to project on, by name or file.")] = None,
    layer: Annotated[int | None, typer.Option(help="The layer to project at (default: the axis's own).")] = None,
    transcript: Annotated[str | None, typer.Option(help="A finished conversation to measure instead: the reference line.")] = None,
    model: Annotated[str | None, typer.Option(help="With --transcript and no RUN: the model that reads it.")] = None,
    adapter: Annotated[str | None, typer.Option(help="With --model: the folder of a LoRA adapter to merge into it.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --transcript: where the reference line goes.")] = None,
    strip_private: Annotated[bool, typer.Option("--strip-private", help="Take auditors' private tags out of user turns.")] = False,
    traces: Annotated[bool, typer.Option("--traces", help="Measure every token of the run's replies, for `drift report`.")] = False,
    controls: Annotated[int | None, typer.Option(help="Also project on this many control axes of each kind.", min=1)] = None,
    segment: SegmentOption = None,
    device: DeviceOption = None,
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Measure on another axis, or a finished conversation.

    `drift measure RUN --axis A` adds the axis to the run: `drift stats RUN --axis A` and `drift plot RUN --axis A` use it from then on.
    `drift measure RUN --transcript FILE` runs the model over FILE's replies; `drift plot RUN` then draws them as the reference line.
    `drift measure RUN --controls N` makes N random unit vectors and N axes of personas with shuffled labels, at the axis's layer; `drift stats
    RUN` says from then on where its differences stand among theirs.
    `drift measure RUN --traces` runs the model over the run's own replies; `drift report RUN` then colours every token.
    """
    shown, part = make_display(display, as_json), part_of(segment)
    if traces:
        of_others = {"transcript": transcript, "model": model, "adapter": adapter, "output": output}
        _refuse_with_traces(**of_others, layer=layer, controls=controls, segment=segment)
        from drift_cli.commands.traces import trace

        trace(shown, open_run(store, run), axis, device)
        return
    if controls is not None:
        _refuse_with_controls(transcript=transcript, model=model, adapter=adapter, layer=layer, output=output)
        _controls(shown, open_run(store, run), axis, controls, part)
        return
    if transcript is None:
        _project(shown, open_run(store, run), axis, layer, part)
        return
    if segment is not None:
        raise UsageError("--segment does not go with --transcript", mend="A reference line is of the given replies, as they are.")
    reading = Reading(transcript, axis, layer, output, strip_private, device, adapter)
    if run is None:
        _alone(shown, model, reading)
        return
    for option, given in (("--model", model), ("--adapter", adapter)):
        if given is not None:
            raise UsageError(f"{option} and RUN were both given", mend=f"A run has its model already: leave {option} out.")
    _beside(shown, open_run(store, run), reading)


def _refuse_with_traces(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{name} does not go with --traces",
                mend="Traces are of all tokens of the run's own replies, by its model, at its axis's layer.",
            )


def _refuse_with_controls(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{name} does not go with --controls", mend="Control axes are for an axis that the run has, at its layer there."
            )


def _controls(display: Display, run: Run, name: str | None, count: int, part: Part) -> None:
    """Make control axes for one of the run's axes, keep them in the run, and show where its differences stand among theirs."""
    from drift_cli.analysis.results import Options
    from drift_cli.analysis.summary import scope
    from drift_cli.analysis.table import choose_axis
    from drift_cli.analysis.table import load as load_table
    from drift_cli.axes import controls, load
    from drift_cli.commands.stats import among_controls
    from drift_cli.tables.study import controls_table

    entry = choose_axis(run.manifest, name, run.paths.run_id)
    if entry.layer not in run.manifest.layers:
        raise UsageError(
            f"run {run.paths.run_id} has no stored residuals of layer {entry.layer}, where axis {entry.name} is",
            mend="Control axes need them: generate with --layers all, or with that layer.",
        )
    axis = load(run.paths.axis(entry.name))
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


def _project(display: Display, run: Run, name: str | None, layer: int | None, part: Part) -> None:
    from drift_cli.analysis.segments import measured
    from drift_cli.analysis.summary import summarize
    from drift_cli.analysis.table import load
    from drift_cli.axes import find, save
    from drift_cli.experiment import axes_folder
    from drift_cli.store.manifest import AxisEntry
    from drift_cli.tables.study import summary_table

    if name is None:
        raise UsageError("no axis was given", mend="Name one: drift measure RUN --axis NAME (`drift axis show` lists them)")
    measured(run.manifest, part)
    axis = find(name, axes_folder())
    chosen = _layer(axis, layer)
    facts = run.manifest.model
    if facts is None or not run.manifest.layers:
        raise UsageError(
            f"run {run.paths.run_id} has no stored residuals (it was imported)", mend="Only runs made with `drift generate` have them."
        )
    axis.check_model(run.manifest.spec.model, facts.width, facts.layers, revision=run.manifest.spec.identity)
    if chosen not in run.manifest.layers:
        stored = ", ".join(map(str, run.manifest.layers))
        raise UsageError(f"run {run.paths.run_id} stores no residuals of layer {chosen}", mend=f"It stores {stored}; choose with --layer.")
    entry = AxisEntry(axis.name, chosen, axis.digest, axis.note)
    known = {known.name: known for known in (*run.manifest.axes, *run.manifest.measured)}
    if axis.name in known and known[axis.name] != entry:
        raise UsageError(f"run {run.paths.run_id} has another axis called {axis.name}", mend="Import this one under another --name.")
    if axis.name not in known:
        save(axis, run.paths.axis(axis.name))
        run.update(replace(run.manifest, measured=(*run.manifest.measured, entry)))
    summary = summarize(table := load(run, axis.name, part))
    document = {"run": run.paths.run_id, "axis": axis.name, "layer": chosen, **of_segment(table.segment), "summary": summary}
    display.result(document, summary_table(summary, "" if table.segment is None else f", {table.segment.words}"))


def _layer(axis: Axis, asked: int | None) -> int:
    if asked is not None:
        axis.at(asked)
        return asked
    if len(axis.layers) == 1:
        return axis.layers[0]
    raise UsageError(
        f"axis {axis.name} has {len(axis.layers)} layers", mend=f"Choose one of {axis.layers[0]} to {axis.layers[-1]} with --layer."
    )


@dataclass(frozen=True)
class Reading:
    """A finished conversation to be measured, as the command line asked for it."""

    transcript: str
    axis: str | None
    layer: int | None
    output: Path | None
    strip_private: bool
    device: str | None
    adapter: str | None = None


def _beside(display: Display, run: Run, reading: Reading) -> None:
    """Measure a conversation with a run's own model and chat format, and keep the line in the run."""
    from drift_cli.axes import find, load
    from drift_cli.experiment import axes_folder, reopen, settings_of

    entries = {entry.name: entry for entry in (*run.manifest.axes, *run.manifest.measured)}
    name = reading.axis or (next(iter(entries)) if len(entries) == 1 else None)
    if name is None:
        raise UsageError("no axis was given", mend=f"Name one with --axis. The run has: {', '.join(entries) or 'none'}.")
    axis = load(run.paths.axis(name)) if name in entries else find(name, axes_folder())
    layer = entries[name].layer if reading.layer is None and name in entries else _layer(axis, reading.layer)
    settings = settings_of(run.manifest)
    settings = replace(settings, values={**settings.values, **({"device": reading.device} if reading.device else {})})
    experiment = reopen(run, settings, display.note)
    model = partial(models.load, experiment.card, dtype=run.manifest.spec.dtype, device=experiment.device)
    line = _measured(reading, experiment.chat, model, axis, layer)
    _write(display, line, reading.output or run.paths.reference(line.transcript, axis.name))


def _alone(display: Display, model: str | None, reading: Reading) -> None:
    """Measure a conversation with a model named here; no run is involved."""
    from drift_cli.axes import find
    from drift_cli.chat import chat_for
    from drift_cli.config import home, resolve
    from drift_cli.experiment import axes_folder, card_of

    settings = resolve({"model": model, "axis": reading.axis, "device": reading.device, "layer": reading.layer, "adapter": reading.adapter})
    display.note(f"model: {settings['model']} ({settings.origin('model')})")
    if settings["axis"] is None:
        raise UsageError("no axis was given", mend="Name one with --axis (`drift axis show` lists them).")
    axis = find(settings["axis"], axes_folder())
    card = card_of(settings, display.note)
    for notice in card.notices():
        display.note(notice)
    axis.check_model(card.name, card.width, card.layers, revision=card.identity)
    device = models.choose_device(settings["device"])
    layer = _layer(axis, settings["layer"])
    chat = chat_for(card.tokenizer, settings["chat"], date=settings["chat_date"], options=settings["chat_options"])
    load = partial(models.load, card, dtype=models.choose_dtype(settings["dtype"], device), device=device)
    line = _measured(reading, chat, load, axis, layer)
    _write(display, line, reading.output or home() / "data" / "reference" / f"{line.transcript}.{axis.name}.json")


def _measured(reading: Reading, chat: Chat, load: Callable[[], LoadedModel], axis: Axis, layer: int) -> ReferenceLine:
    """Refuse what cannot be measured before the weights are read, then measure."""
    from drift_cli import transcripts
    from drift_cli.reference_line import measure_replies
    from drift_cli.spec import Condition

    script = transcripts.load(reading.transcript, strip_private=reading.strip_private)
    chat.check(Condition("reference"), script)
    return measure_replies(script, chat, load(), axis, layer)


def _write(display: Display, line: ReferenceLine, path: Path) -> None:
    from drift_cli.store.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, line.to_json())
    rows = [[str(turn), "—" if value is None else f"{value:+.4f}"] for turn, value in enumerate(line.projections, 1)]
    notes = [f"written to {path}", *([line.note] if line.note else [])]
    table = Table(f"Reference {line.transcript} on axis {line.axis}, layer {line.layer}", ["turn>", "projection>"], rows, notes)
    display.result({**{key: getattr(line, key) for key in line.__dataclass_fields__}, "file": str(path)}, table)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(measure)
