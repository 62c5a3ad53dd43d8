"""`drift measure --transcript`: the reference line of a finished conversation, beside a run or with a model named here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from drift_cli.display import Display, Table
from drift_cli.errors import UsageError
from drift_cli.pool import MEAN, Pool
from drift_cli.spec import shortened_name, split_layer

if TYPE_CHECKING:
    from drift_cli.chat import Chat
    from drift_cli.commands.flags import Flags
    from drift_cli.measuring.axis_use import Use
    from drift_cli.measuring.reference_line import ReferenceLine
    from drift_cli.models import LoadedModel, ModelCard
    from drift_cli.spec import Transcript
    from drift_cli.store.run import Run


@dataclass(frozen=True)
class Reading:
    """A finished conversation to be measured, as the command line asked for it."""

    transcript: str
    output: Path | None
    flags: Flags


@dataclass(frozen=True)
class Reader:
    """What reads it."""

    card: ModelCard
    chat: Chat
    used: Use
    load: Callable[[], LoadedModel]
    pool: Pool = MEAN


def beside(display: Display, run: Run, reading: Reading) -> None:
    """Measure a conversation with a run's own model and chat format, and keep the line in the run."""
    from drift_cli import models
    from drift_cli.commands.measure import axis_of
    from drift_cli.running.experiment import reopen, settings_of

    if run.manifest.model is None:
        raise UsageError(
            f"run {run.paths.run_id} was imported: its model cannot be asked", mend="Name a model instead of the run: --model M"
        )
    settings = settings_of(run.manifest).given({"device": reading.flags["device"]})
    name, used = axis_of(run, *(reading.flags[key] for key in ("axis", "layer", "foreign_axis")))
    script = _script(display, reading)
    _check_script(run, script)
    experiment = reopen(run, settings, display.note)
    load = partial(models.load, experiment.card, dtype=run.manifest.spec.dtype, device=experiment.device)
    line = replace(_measured(display, script, Reader(experiment.card, experiment.chat, used, load, Pool.of(run.manifest.pool))), axis=name)
    _write(display, line, reading.output or run.paths.reference(line.transcript, name))
    if line.transcript not in run.manifest.transcripts:
        display.note(f"run {run.paths.run_id} has no transcript {line.transcript}: {_not_drawn(run, script)}")


def _not_drawn(run: Run, script: Transcript) -> str:
    """What to do so that a line is drawn whose transcript the run does not have."""
    for name, own in run.manifest.transcripts.items():
        length = len(own.users)
        if name == shortened_name(script.name, length) and own.users == script.users[:length]:
            return f"`drift plot` draws the line of {name}: measure it with --turns {length}"
    have = ", ".join(run.manifest.transcripts)
    return f"it has {have}, and `drift plot` draws the line only with --reference FILE"


def alone(display: Display, reading: Reading) -> None:
    """Measure a conversation with a model named here; no run is involved."""
    from drift_cli import models
    from drift_cli.chat import chat_for
    from drift_cli.measuring.axis_use import Subject, named, use
    from drift_cli.models.axes import find
    from drift_cli.running.experiment import card_of
    from drift_cli.settings.config import axes_folder, home, resolve

    settings = resolve({key: reading.flags[key] for key in ("model", "axis", "device", "layer", "foreign_axis", "adapter")})
    display.note(f"model: {settings.model} ({settings.origin('model')})")
    if settings.axis is None:
        raise UsageError("no axis was given", mend="Name one with --axis (`drift axis show` lists them).")
    name, layer = named(settings.axis, settings.layer)
    axis = find(name, axes_folder())
    card = card_of(settings, display.note)
    for notice in card.notices():
        display.note(notice)
    subject = Subject(card.name, card.identity, card.width, card.layers)
    used = use(axis, subject, layer, foreign=settings.foreign_axis)
    device = models.choose_device(settings.device)
    chat = chat_for(card.tokenizer, settings.chat, date=settings.chat_date, options=settings.chat_options)
    load = partial(models.load, card, dtype=models.choose_dtype(settings.dtype.value, device), device=device)
    line = _measured(display, _script(display, reading), Reader(card, chat, used, load))
    _write(display, line, reading.output or home() / "data" / "reference" / f"{line.transcript}.{axis.name}.json")


def _script(display: Display, reading: Reading) -> Transcript:
    from drift_cli import transcripts

    found = transcripts.read(reading.transcript, strip_private=bool(reading.flags["strip_private"]), turns=reading.flags["turns"])
    if found.transcript.replies is None:
        why = " ".join(found.notices)
        raise UsageError(
            f"transcript {found.transcript.name} has no replies to measure{f': {why}' if why else ''}",
            mend="Give a finished conversation, with a reply to every user turn.",
        )
    for notice in found.notices:
        display.note(f"transcript {found.transcript.name}: {notice}")
    return found.transcript


def _check_script(run: Run, script: Transcript) -> None:
    """Refuse a conversation under the name of a script of the run's that says something else: its line would be drawn over other turns."""
    own = run.manifest.transcripts.get(script.name)
    if own is None:
        return
    for turn, (ours, theirs) in enumerate(zip(own.users, script.users, strict=False), 1):
        if ours != theirs:
            raise UsageError(
                f"transcript {script.name} of run {run.paths.run_id} has another user turn {turn} than the conversation to be measured",
                mend="Measure a conversation on the run's own script, or rename the file.",
            )


def _measured(display: Display, script: Transcript, reader: Reader) -> ReferenceLine:
    """Refuse and foresee what can be before the weights are read, then measure."""
    from drift_cli.axis import elsewhere
    from drift_cli.measuring.reference_line import measure_replies, plan
    from drift_cli.spec import Condition

    used = reader.used
    for notice in used.notices():
        display.note(notice)
    reader.chat.check(Condition("reference"), script)
    reading = plan(script, reader.chat, reader.card, reader.pool)
    if reading.note is not None:
        display.note(f"WARNING: {reading.note}: these have no value in the line", kind="warning")
    display.note(f"{len(script.users)} turns to read, {reading.tokens} tokens{_how(len(reading.passages), apart=reading.apart)}")
    model = reader.load()
    with display.progress(reading.tokens, 0, "tokens") as progress:

        def step(done: int) -> None:
            progress.grow(max(progress.total, done))
            progress.reach(done)

        line = measure_replies(script, reader.chat, model, used.axis, used.chosen.layer, reading=reading, step=step)
    if used.foreign is None:
        return line
    said = elsewhere(used.axis.name, used.foreign, used.subject.model)
    return replace(line, note=said if line.note is None else f"{line.note}; {said}")


def _how(passages: int, *, apart: bool) -> str:
    """Why a conversation is not encoded in one go, in words."""
    if apart:
        return ", every turn's conversation by itself, as this model's rotary embeddings depend on its length"
    return f", as the chat template rewrites history in {passages} parts" if passages > 1 else ""


def _write(display: Display, line: ReferenceLine, path: Path) -> None:
    from drift_cli.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, line.to_json())
    rows = [[str(turn), "—" if value is None else f"{value:+.4f}"] for turn, value in enumerate(line.projections, 1)]
    notes = [f"written to {path}", *([line.note] if line.note else [])]
    table = Table(
        f"Reference {line.transcript} on axis {split_layer(line.axis)[0]}, layer {line.layer}", ["turn>", "projection>"], rows, notes
    )
    display.result({**{key: getattr(line, key) for key in line.__dataclass_fields__}, "file": str(path)}, table)
