"""Options that several commands share, each described once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drift_cli.display import Display, Mode

if TYPE_CHECKING:
    from drift_cli.settings.config import Settings
    from drift_cli.spec import Part
    from drift_cli.store.paths import Store
    from drift_cli.store.run import Run

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", envvar="DRIFT_STORE", help="Folder that holds the runs (default: checkpoints/).", show_default=False),
]
DisplayOption = Annotated[Mode, typer.Option("--display", envvar="DRIFT_DISPLAY", help="How progress is shown, on stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The result as one JSON document on stdout, and nothing else there.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it may take; write nothing.")]
RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run's id or the beginning of one (default: the newest).", show_default=False)
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Rollouts generated together: slots, or rows of a batch.")]
EngineOption = Annotated[str | None, typer.Option("--engine", help="auto, slots (fast) or reference (plain; runs every model).")]
AdapterOption = Annotated[str | None, typer.Option("--adapter", help="The folder of a LoRA adapter to merge into the model.")]
ModelPlaceOption = Annotated[
    str | None, typer.Option("--model", help="Where the run's model is now, if it was moved or renamed.", show_default=False)
]
AdapterPlaceOption = Annotated[
    str | None, typer.Option("--adapter", help="Where the run's adapter is now, if it was moved or renamed.", show_default=False)
]
SameRepliesOption = Annotated[
    bool,
    typer.Option(
        "--same-replies/--no-same-replies",
        help="At the end, read the replies under the prompts they are compared with: presence and words apart.",
        show_default=False,
    ),
]
ForeignOption = Annotated[
    bool | None,
    typer.Option("--foreign-axis", help="Accept an axis that was built on another model of the same width.", show_default=False),
]
MeasuredAxisOption = Annotated[
    str | None, typer.Option("--axis", help="Which of the run's axes (default: the only one).", show_default=False)
]
SegmentOption = Annotated[
    str | None,
    typer.Option(
        "--segment", help="Of replies with reasoning: measure the answer, reasoning or all (default: answer).", show_default=False
    ),
]


def part_of(given: str | None) -> Part:
    """The part of replies that `--segment` names. `UsageError` lists them."""
    from drift_cli.errors import UsageError
    from drift_cli.spec import Part

    if given is None:
        return Part.ANSWER
    try:
        return Part(given)
    except ValueError:
        raise UsageError(f"there is no --segment {given!r}", mend=f"Use one of: {', '.join(Part)}.") from None


def of_segment(segment: Part | None) -> dict[str, str]:
    """For a document: the part of replies that was measured; nothing where they have no segments."""
    return {} if segment is None else {"segment": segment.value}


def open_store(folder: Path | None) -> Store:
    """The store a command works on."""
    from drift_cli.settings.config import store_folder
    from drift_cli.store.paths import Store

    return Store(store_folder(folder))


def open_run(folder: Path | None, run: str | None) -> Run:
    """The run that was named, or the newest."""
    from drift_cli.store.run import Run

    store = open_store(folder)
    return Run.newest(store) if run is None else Run.open(store, run)


def with_given(settings: Settings, **given: Any) -> Settings:
    """Settings with those replaced that were given on this command line."""
    return replace(settings, values={**settings.values, **{key: value for key, value in given.items() if value is not None}})


def make_display(mode: Mode, as_json: bool = False) -> Display:
    """The command's display."""
    return Display(mode, as_json)
