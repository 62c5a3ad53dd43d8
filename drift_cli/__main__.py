"""The command line's entry point: commands, and the outermost edge where errors become one message and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from drift_cli import __version__
from drift_cli.commands import axis, demo, doctor, exchange, generate, init, launch, measure, plot, report, resume, runs, stats, worker
from drift_cli.display import Display, Mode
from drift_cli.errors import EXIT_FAILED, DriftError

app = typer.Typer(
    name="drift",
    help="Measure how far a chat model drifts from its assistant persona over a conversation, and what prevents it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode=None,  # plain help: it takes half the time and reads the same in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `drift demo`. Exit codes: 0 done, 1 failed, 2 usage, 75 interrupted but resumable.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"drift {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Measure how far a chat model drifts from its assistant persona over a conversation, and what prevents it."""


for module in (demo, generate, resume, launch, worker, measure, stats, plot, report, runs, axis, exchange, init, doctor):
    module.register(app)


def main() -> None:
    """Run the command line. What the user can mend is shown without a traceback; anything else is a defect and keeps its own."""
    # Progress bars and advice of the libraries would mix with ours; a user who wants them sets these variables.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except DriftError as error:
        Display(_mode()).error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        Display(_mode()).error(
            f"{error.strerror or error}{where}\nCommitted turns are on disk; go on with `drift resume` once this is mended."
        )
        sys.exit(EXIT_FAILED)


def _mode() -> Mode:
    """The display mode for an error, read without the parser, which may be what failed."""
    given = [b for a, b in zip(sys.argv, sys.argv[1:], strict=False) if a == "--display"]
    given += [argument.partition("=")[2] for argument in sys.argv if argument.startswith("--display=")]
    name = given[-1] if given else os.environ.get("DRIFT_DISPLAY", "")
    return Mode.JSON if name == "json" else Mode.PLAIN


if __name__ == "__main__":
    main()
