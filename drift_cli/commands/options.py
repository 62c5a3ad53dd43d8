"""Options that several commands share, each described once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drift_cli.display import Display, Mode
from drift_cli.spec import Part

if TYPE_CHECKING:
    from drift_cli.store.paths import Store
    from drift_cli.store.run import Run

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", envvar="DRIFT_STORE", help="Folder that holds the runs (default: checkpoints/).", show_default=False),
]
DisplayOption = Annotated[Mode, typer.Option("--display", envvar="DRIFT_DISPLAY", help="How progress is shown, on stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The result as one JSON document on stdout, and nothing else there.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it may take; write nothing.")]


@dataclass(frozen=True)
class Output:
    """How a command shows what it does."""

    display: DisplayOption = Mode.AUTO
    as_json: JsonOption = False

    def show(self) -> Display:
        """The command's display."""
        return Display(self.display, self.as_json)


@dataclass(frozen=True)
class Common(Output):
    """Options that nearly every command has: how it shows what it does, and where the runs are."""

    store: StoreOption = None

    def folder(self) -> Store:
        """The store that the command works on."""
        return open_store(self.store)

    def open(self, run: str | None) -> Run:
        """The run that was named, or the newest."""
        return open_run(self.store, run)


RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run's id or the beginning of one (default: the newest).", show_default=False)
]
SameRepliesOption = Annotated[
    bool,
    typer.Option(
        "--same-replies/--no-same-replies",
        help="At the end, read the replies under the prompts they are compared with: presence and words apart.",
        show_default=False,
    ),
]
MeasuredAxisOption = Annotated[
    str | None, typer.Option("--axis", help="Which of the run's axes (default: the only one).", show_default=False)
]


def _reply_measures() -> list[str]:
    """For the shell's completion."""
    from drift_cli.analysis.measure import reply_measures

    return [measure.name for measure in reply_measures()]


ReplyMeasureOption = Annotated[
    str | None,
    typer.Option(
        "--reply-measure",
        help="Instead of projections: a measure of replies that a package adds (docs/extending.md).",
        autocompletion=_reply_measures,
        show_default=False,
    ),
]
SegmentOption = Annotated[
    Part | None,
    typer.Option("--segment", help="Of replies with reasoning, the part to measure (default: answer).", show_default=False),
]


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


def make_display(mode: Mode, as_json: bool = False) -> Display:
    """The command's display."""
    return Display(mode, as_json)
