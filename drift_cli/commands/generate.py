"""`drift generate`: make and measure rollouts. The same line again goes on; a longer one adds cells or samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from drift_cli.commands.options import (
    AdapterOption,
    BatchOption,
    DeviceOption,
    DisplayOption,
    DryRunOption,
    EngineOption,
    ForeignOption,
    JsonOption,
    SameRepliesOption,
    StoreOption,
    make_display,
    open_store,
)
from drift_cli.display import Mode
from drift_cli.errors import UsageError
from drift_cli.settings.config import Settings, resolve
from drift_cli.settings.config import placement as read_placement
from drift_cli.settings.keys import KEYS
from drift_cli.settings.plan import read_plan
from drift_cli.spec import Condition

_Texts = list[str] | None


def generate(
    condition: Annotated[_Texts, Option(help="A condition's name; repeat for several (default: all that are defined).")] = None,
    system: Annotated[str | None, Option(help="Define the one --condition here: its system prompt.")] = None,
    placement: Annotated[str | None, Option(help="Where --system goes: start, first-user, every-turn or user-suffix.")] = None,
    transcript: Annotated[_Texts, Option(help="A transcript's file, or the name of one of drift's own; repeat for several.")] = None,
    turns: Annotated[int | None, Option(help="The first N user turns of each transcript only (it is called NAME-N then).")] = None,
    temperature: Annotated[list[float] | None, Option(help="Sampling temperature, 0 for greedy; repeat for several.")] = None,
    samples: Annotated[int | None, Option(help="Rollouts per cell.")] = None,
    model: Annotated[str | None, Option(help="A hub id, a local folder, a GGUF file, a LoRA adapter's folder, or demo.")] = None,
    revision: Annotated[str | None, Option(help="The hub revision of the model.")] = None,
    adapter: AdapterOption = None,
    preset: Annotated[str | None, Option(help="An experiment that comes with drift: demo, olmo3-003b, smollm2.")] = None,
    name: Annotated[str | None, Option(help="The run's name (default: the preset's or the model's).")] = None,
    axis: Annotated[str | None, Option(help="The axis to project on, by name or file.")] = None,
    layer: Annotated[int | None, Option(help="The layer to project at (default: the one that the axis suggests).")] = None,
    foreign_axis: ForeignOption = None,
    layers: Annotated[str | None, Option(help="Residual layers to store: auto, all, or numbers such as 20,21.")] = None,
    max_new_tokens: Annotated[int | None, Option(help="The longest reply, in tokens.")] = None,
    seed: Annotated[int | None, Option(help="The run's seed.")] = None,
    top_p: Annotated[float | None, Option(help="Nucleus sampling (default: the model's own).")] = None,
    top_k: Annotated[int | None, Option(help="Keep the k likeliest tokens, 0 for all (default: the model's own).")] = None,
    min_p: Annotated[float | None, Option(help="Drop tokens below this share of the likeliest (default: the model's own).")] = None,
    independent_noise: Annotated[
        bool | None, Option("--independent-noise/--common-noise", help="Whether each condition draws noise of its own.", show_default=False)
    ] = None,
    chat: Annotated[str | None, Option(help="Chat format: template, or raw for base models.")] = None,
    chat_option: Annotated[_Texts, Option(help="A variable for the chat template, KEY=VALUE; repeat for several.")] = None,
    chat_date: Annotated[str | None, Option(help="The day that a template which asks is told (ISO).")] = None,
    strip_private: Annotated[bool | None, Option("--strip-private", help="Take auditors' private tags out of user turns.")] = None,
    dtype: Annotated[str | None, Option(help="auto, bfloat16, float16 or float32.")] = None,
    device: DeviceOption = None,
    batch: BatchOption = None,
    engine: EngineOption = None,
    traces: Annotated[bool, Option("--traces", help="Measure every token of the replies too, for `drift report`.")] = False,
    same_replies: SameRepliesOption = True,
    plan: Annotated[
        Path | None,
        Option(
            help="Before there is data: a TOML file with the primary measure, the looks and their α, kept in the run.", show_default=False
        ),
    ] = None,
    until_half_width: Annotated[
        float | None,
        Option(help="Add rollouts until the always-valid interval of every primary comparison is ± this or narrower.", show_default=False),
    ] = None,
    max_samples: Annotated[
        int | None, Option(help="With --until-half-width: the most rollouts per cell.", min=2, show_default=False)
    ] = None,
    config: Annotated[Path | None, Option(help="A drift.toml other than ./drift.toml.")] = None,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    display: DisplayOption = Mode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Make rollouts and measure them.

    Without options this runs the demo on the built-in model. Every turn is on disk when it is done: run the same line again to go on after
    an interruption, or a longer one (more --samples, another --condition) to add to the run.
    """
    settings = settings_from(locals())
    from drift_cli.commands.until import until
    from drift_cli.commands.work import Work

    declared = None if plan is None else read_plan(plan)
    if declared is not None and settings.origin("samples") != "flag --samples":
        settings = replace(settings, values={**settings.values, "samples": declared.looks[0]})
    working = Work(make_display(display, as_json), open_store(store), traces, same_replies=same_replies, plan=declared)
    if until_half_width is None:
        if max_samples is not None:
            raise UsageError("--max-samples goes with --until-half-width", mend="Without it, --samples says how many rollouts there are.")
        working.start(settings, dry_run=dry_run)
        return
    until(working, settings, until_half_width, max_samples, dry_run=dry_run)


def settings_from(options: Mapping[str, Any]) -> Settings:
    """The settings that options of `generate` ask for, by the names of its parameters."""
    plural = {"transcript": "transcripts", "temperature": "temperatures", "chat_option": "chat_options"}
    named = {plural.get(name, name): tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    flags = {key: named[key] for key in KEYS if key in named}
    ad_hoc = _ad_hoc(options["condition"] or [], options["system"], options["placement"])
    return resolve(flags, chosen=options["condition"] or (), ad_hoc=ad_hoc, config=options["config"])


def _ad_hoc(names: list[str], system: str | None, placement: str | None) -> Condition | None:
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
    return Condition(names[0], system, read_placement(placement or "start", "--placement"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(generate)
