"""`drift plot`: a run as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from drift_cli.commands.flags import grouped
from drift_cli.commands.options import Common, MeasuredAxisOption, ReplyMeasureOption, RunArgument, SegmentOption, of_segment
from drift_cli.display import Display, Drawing
from drift_cli.errors import UsageError
from drift_cli.results.pictures import ALL, COMPARING, KINDS, Picture
from drift_cli.segments import Part

if TYPE_CHECKING:
    from drift_cli.store.run import Run

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Drawn:
    """Options that say how a picture is drawn."""

    style: Annotated[str, Option(help="paper, talk, dark or talk-dark.", autocompletion=lambda: ["paper", "talk", "dark", "talk-dark"])] = (
        "paper"
    )
    against: Annotated[str | None, Option(help="The condition that others are compared with (default: the first).")] = None
    bands: Annotated[
        str, Option(help="Bands of the trajectory: simultaneous or pointwise.", autocompletion=lambda: ["simultaneous", "pointwise"])
    ] = "simultaneous"
    level: Annotated[float, Option(help="Level of bands and intervals.", min=0.5, max=0.9999)] = 0.95
    annotate: Annotated[
        list[str] | None,
        Option(help="Mark and quote a user turn, by number; repeat for several. pulls: where the script pulls hardest."),
    ] = None
    reply: Annotated[str | None, Option(help="For tokens: CONDITION/SAMPLE/turn-N (default: the lowest projection).")] = None
    reply_measure: ReplyMeasureOption = None
    rollout_measure: Annotated[
        str | None, Option(help="For forest: what is compared of rollouts (default: their means).", show_default=False)
    ] = None
    reference: Annotated[Path | None, Option(help="A reference line to draw, made by `drift measure --transcript`.")] = None
    title: Annotated[str | None, Option(help="A heading.")] = None

    def picture(self, run: Run, axis: str | None, part: Part) -> Picture:
        """A run, to be drawn like this."""
        named = {name: value for name, value in vars(self).items() if name != "annotate"}
        return Picture(run, axis, part=part, annotate=tuple(self.annotate or ()), **named)


@grouped
def plot(
    run: RunArgument = None,
    *,
    kind: Annotated[str, Option(help=f"{', '.join(KINDS)}, or {ALL} of them.", autocompletion=lambda: [*KINDS, ALL])] = "trajectory",
    axis: MeasuredAxisOption = None,
    segment: SegmentOption = None,
    drawn: Drawn,
    output: Annotated[Path | None, Option("--output", "-o", help="The picture's file (default: images/RUN-KIND.png and .svg).")] = None,
    format_: Annotated[str, Option("--format", help="Formats, such as png,svg,pdf.")] = "png,svg",
    common: Common,
) -> None:
    """Draw a run.

    trajectory: each condition's mean over turns. difference: from a baseline, with the turns that differ. forest: effects of all pairs. heatmap: every
    rollout and turn. ridgeline: distributions by turn. layers: where conditions come apart. tokens: one reply, token by token. text: for terminals.

    Example: drift plot demo-1a2b3c4d --kind difference --format png,pdf
    """
    formats = _formats(format_)
    if kind not in (*KINDS, ALL):
        raise UsageError(f"there is no kind {kind!r}", mend=f"Use one of: {', '.join((*KINDS, ALL))}")
    picture = drawn.picture(common.open(run), axis, segment or Part.ANSWER)
    shown = common.show()
    if kind == "text":
        _text(shown, picture)
        return
    kinds = [name for name in KINDS if name != "text"] if kind == ALL else [kind]
    written = draw(picture, kinds, output, formats, shown)
    from drift_cli.analysis.looks import record

    if COMPARING.intersection(kinds) and (problem := record(picture.run, picture.table, picture.options, "plot")) is not None:
        shown.note(problem)
    document = {"run": picture.run.paths.run_id, **of_segment(picture.table.segment), "files": [str(path) for path in written]}
    shown.result(document, *(f"written: {path}" for path in written))


def _formats(given: str) -> list[str]:
    """`png,svg` as a list."""
    formats = [name.strip().lower() for name in given.split(",") if name.strip()]
    if not formats or any(name not in FORMATS for name in formats):
        raise UsageError(f"format {given!r} is unknown", mend=f"Use {', '.join(FORMATS)}, one or several.")
    return formats


def draw(picture: Picture, kinds: Sequence[str], output: Path | None, formats: Sequence[str], display: Display) -> list[Path]:
    """Draw a run and write its files; returns their paths. With several kinds, those that the run has nothing for are left out, and it says why."""
    from drift_cli.analysis.layers import Unavailable
    from drift_cli.results.figures.canvas import save

    if output is not None and output.suffix.lower().lstrip(".") not in FORMATS:
        raise UsageError(f"{output} has no known picture format", mend=f"End its name in {', '.join('.' + name for name in FORMATS)}.")
    written = []
    for kind in kinds:
        try:
            figure = picture.draw(kind)
        except Unavailable as error:
            if len(kinds) == 1:
                raise
            display.note(f"no {kind}: {error.what}. {error.mend}")
            continue
        for path in _paths(picture.run, kind, output, formats, several=len(kinds) > 1):
            path.parent.mkdir(parents=True, exist_ok=True)
            save(figure, path)
            written.append(path)
    return written


def _paths(run: Run, kind: str, output: Path | None, formats: Sequence[str], *, several: bool) -> list[Path]:
    from drift_cli.settings.config import home

    if output is not None:
        return [output.with_name(f"{output.stem}-{kind}{output.suffix}") if several else output]
    return [home() / "images" / f"{run.paths.run_id}-{kind}.{name}" for name in formats]


def _text(display: Display, picture: Picture) -> None:
    """To the terminal as it is: colours where it shows them, characters in a pipe."""
    color = display.out.isatty()
    document = {"run": picture.run.paths.run_id, **of_segment(picture.table.segment), "text": picture.text(color=False)}
    display.result(document, Drawing(picture.text(color=color)))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plot)
