"""`drift axis build`: every persona answers every question, and an axis comes out."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from drift_cli.commands.flags import Flags, with_settings
from drift_cli.commands.options import Common, DryRunOption
from drift_cli.commands.work import Work
from drift_cli.display import Display, duration
from drift_cli.errors import UsageError
from drift_cli.settings.config import resolve
from drift_cli.settings.settings import Settings, keys
from drift_cli.spec import Condition, Placement, Transcript

MODELS_OWN = ("model", "revision", "adapter", "dtype", "device", "chat", "chat_date", "chat_options", "preset", "engine", "batch")
"""Settings that a build takes from wherever experiments have them: which model it is, how it is spoken to, and on what it runs."""
_SHAPING = ("revision", "adapter", "dtype", "chat", "chat_date", "chat_options")
_FILTERS = ("top_p", "top_k", "min_p", "independent_noise")

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drift_cli.axis import Axis
    from drift_cli.measuring.personas import Personas
    from drift_cli.running.experiment import Experiment
    from drift_cli.running.runner import Outcome
    from drift_cli.store.run import Run


@with_settings(*MODELS_OWN)
def build(
    flags: Flags,
    name: Annotated[str | None, Option(help="The axis's name (default: the model's).")] = None,
    personas: Annotated[Path | None, Option(help="A file of personas and questions (default: drift's own; `drift axis personas`).")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help="The axis's file (default: data/axes/NAME.safetensors).")] = None,
    samples: Annotated[int, Option(help="Replies of each persona to each question.", min=1)] = 1,
    temperature: Annotated[float, Option(help="Sampling temperature.")] = 1.0,
    max_new_tokens: Annotated[int, Option(help="The longest reply, in tokens.", min=1)] = 256,
    seed: Annotated[int, Option(help="The run's seed.", min=0)] = 0,
    *,
    dry_run: DryRunOption = False,
    common: Common,
) -> None:
    """Build an axis for a model.

    Personas, on the assistant's side and in other parts, answer questions; the axis is the mean of the ones minus the mean of the others, at
    every layer. The replies are a run like any other: the same line goes on where it was stopped, and more --samples add to it.

    Example: drift axis build --model org/model --samples 2
    """
    from drift_cli.measuring.build import made_from, transcripts
    from drift_cli.measuring.personas import read

    asked = read(personas)
    settings = resolve(flags)
    title = _title(name, settings.adapter or settings.model, output)
    own = {"name": f"axis-{title}", "samples": samples, "temperatures": (temperature,), "max_new_tokens": max_new_tokens, "seed": seed}
    shown = common.show()
    work = Building(shown, common.folder())
    settled = _settled(settings, asked, own)
    # A name that was given stands for one run; one made of the model's name may stand for several.
    settled = settled if name is None else settled.changed("flag --name", name=settled.name)
    for line in _inherited(settings, settled):
        shown.note(line)
    run = work.start(settled, transcripts(asked), dry_run=dry_run)
    if run is not None:
        _write(shown, made_from(run, asked, samples, title), run.paths.run_id, output)


def _write(shown: Display, made: Axis, run_id: str, output: Path | None) -> None:
    """Write the axis to its file and show it."""
    from drift_cli.commands.axis_tables import axis_facts, axis_tables
    from drift_cli.settings.config import axes_folder

    path = output or axes_folder() / f"{made.name}.safetensors"
    made.save(path)
    named = made.name if output is None else path
    use = f'written to {path}; use it with --axis {named}, or in drift.toml: axis = "{named}"'
    shown.result({**axis_facts(made), "run": run_id, "file": str(path)}, *axis_tables(made), use)


def _title(name: str | None, model: str, output: Path | None) -> str:
    """The axis's name. The built-in axis's own is taken, unless the file goes where no name is looked for."""
    from drift_cli.models import DEMO
    from drift_cli.spec import plain_name

    if name == DEMO and output is None:
        raise UsageError(f"axis name {DEMO!r} is the built-in axis's", mend="Choose another --name.")
    return name or (f"{DEMO}-rebuilt" if model == DEMO else plain_name(model.rstrip("/").rsplit("/", 1)[-1]))


def _settled(settings: Settings, asked: Personas, own: dict[str, object]) -> Settings:
    """The settings of the run: what the model needs as resolved, everything else as `drift axis build` has it, whatever drift.toml says of experiments."""
    from drift_cli.measuring.build import conditions

    defaults = {key: entry.default for key, entry in keys().items() if key not in MODELS_OWN}
    settled = settings.changed("drift axis build", **{**defaults, **own, "layers": "all"})
    return replace(settled, conditions=conditions(asked, _placement(settings)))


def _inherited(settings: Settings, settled: Settings) -> list[str]:
    """What drift.toml, the environment or a preset say that shapes the replies: what is taken of it, and which sampling filters are not."""
    given = {
        key: settings.origin(key) for key in keys() if settings.origin(key) != "default" and not settings.origin(key).startswith("flag")
    }
    taken = [f"{key} {getattr(settled, key)} ({given[key]})" for key in _SHAPING if key in given]
    left = [
        f"{key} {getattr(settings, key)} ({given[key]})"
        for key in _FILTERS
        if key in given and getattr(settings, key) != getattr(settled, key)
    ]
    lines = [f"as for your experiments: {', '.join(taken)}"] if taken else []
    said = "not used for an axis, whose personas are sampled as the model's own generation_config asks"
    return lines + ([f"{said}: {', '.join(left)}"] if left else [])


def _placement(settings: Settings) -> Placement:
    """Where the personas' prompts go: first, or, where the chat template takes no system message, at the end of the question."""
    from drift_cli.chat import chat_for
    from drift_cli.running.experiment import card_of

    card = card_of(settings)
    made = chat_for(card.tokenizer, settings.chat, date=settings.chat_date, options=settings.chat_options)
    try:
        made.check(Condition("persona", "You are somebody.", Placement.START), Transcript("question", ("Who are you?",)))
    except UsageError:
        return Placement.USER_SUFFIX
    return Placement.START


@dataclass(frozen=True)
class Building(Work):
    """Work on a run that becomes an axis."""

    def resume_command(self, run: Run) -> str:
        """The same line: `drift resume` would finish the replies and make no axis of them."""
        return shlex.join(["drift", *sys.argv[1:]])

    def lacking(self, experiment: Experiment) -> Sequence[str]:
        """Nothing: the axis is what is made here."""
        return ()

    def finished(self, run: Run, outcome: Outcome) -> None:
        """A line in place of a table of hundreds of cells."""
        self.display.note(f"run {run.paths.run_id}: {outcome.turns} replies made in {duration(outcome.seconds)}")
