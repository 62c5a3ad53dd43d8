"""`drift generate`: make and measure rollouts. The same line again goes on; a longer one adds cells or samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from drift_cli.commands.flags import Flags, with_settings
from drift_cli.commands.options import Common, DryRunOption, SameRepliesOption
from drift_cli.errors import UsageError
from drift_cli.settings.config import resolve
from drift_cli.settings.plan import read_plan
from drift_cli.settings.settings import Settings, keys
from drift_cli.spec import Condition, Placement

PlanOption = Annotated[
    Path | None,
    Option(help="Before there is data: a TOML file with the primary measure, the looks and their α, kept in the run.", show_default=False),
]
UntilOption = Annotated[
    float | None,
    Option(help="Add rollouts until the always-valid interval of every primary comparison is ± this or narrower.", show_default=False),
]
MostOption = Annotated[int | None, Option(help="With --until-half-width: the most rollouts per cell.", min=2, show_default=False)]


@with_settings(*keys())
def generate(
    flags: Flags,
    condition: Annotated[
        list[str] | None, Option(help="A condition's name; repeat for several (default: all that are defined).", show_default=False)
    ] = None,
    system: Annotated[str | None, Option(help="Define the one --condition here: its system prompt.", show_default=False)] = None,
    placement: Annotated[Placement | None, Option(help="Where --system goes.", show_default=False)] = None,
    traces: Annotated[bool, Option("--traces", help="Measure every token of the replies too, for `drift report`.")] = False,
    same_replies: SameRepliesOption = True,
    plan: PlanOption = None,
    until_half_width: UntilOption = None,
    max_samples: MostOption = None,
    config: Annotated[Path | None, Option(help="A drift.toml other than ./drift.toml.", show_default=False)] = None,
    *,
    dry_run: DryRunOption = False,
    common: Common,
) -> None:
    """Make rollouts and measure them.

    Without options this runs the demo on the built-in model. Every turn is on disk when it is done: run the same line again to go on after
    an interruption, or a longer one (more --samples, another --condition) to add to the run.

    Example: drift generate --model org/model --transcript lonely --condition polite --system "Be polite." --samples 16
    """
    settings = settings_from(flags, condition or (), system, placement, config)
    from drift_cli.commands.until import until
    from drift_cli.commands.work import Work

    declared = None if plan is None else read_plan(plan)
    if declared is not None and settings.origin("samples") != "flag --samples":
        settings = settings.changed(f"plan {plan}", samples=declared.looks[0])
    working = Work(common.show(), common.folder(), traces, same_replies=same_replies, plan=declared)
    until(working, settings, until_half_width, max_samples, dry_run=dry_run)


def settings_from(flags: Flags, condition: Sequence[str], system: str | None, placement: Placement | None, config: Path | None) -> Settings:
    """The settings that options of `generate` ask for."""
    return resolve(flags, chosen=condition, ad_hoc=_ad_hoc(condition, system, placement), config=config)


def _ad_hoc(names: Sequence[str], system: str | None, placement: Placement | None) -> Condition | None:
    if system is None:
        if placement is not None:
            raise UsageError(
                "--placement was given without --system", mend='Define a condition: --condition NAME --system "…" --placement …'
            )
        return None
    if len(names) != 1:
        raise UsageError(
            f"--system defines one condition, but {len(names)} were named",
            mend="Name one with --condition; the same run can gain others with further calls, or define them in drift.toml.",
        )
    if not system.strip():
        raise UsageError("--system is empty", mend="Leave it out for a condition without a prompt.")
    return Condition(names[0], system, placement or Placement.START)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(generate)
