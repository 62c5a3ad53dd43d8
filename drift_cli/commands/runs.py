"""`drift runs ls | show | path | watch | verify`: look at what the store holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drift_cli.commands.flags import grouped
from drift_cli.commands.options import Common, RunArgument, StoreOption, open_run
from drift_cli.commands.watch import watch
from drift_cli.display import Display, Table
from drift_cli.errors import EXIT_FAILED, DriftError, StoreError

if TYPE_CHECKING:
    from drift_cli.store.manifest import AxisEntry, Manifest
    from drift_cli.store.paths import Store
    from drift_cli.store.run import Finding, Repair, Run

LAST_EVENTS = 12
"""How many of a run's events `show` shows; `--json` has them all."""

runs = typer.Typer(help="Look at runs: list, show, verify.", no_args_is_help=True)


@runs.command("ls")
@grouped
def list_runs(*, common: Common) -> None:
    """List the store's runs, newest first.

    Example: drift runs ls --json
    """
    found = common.folder()
    rows, document = [], []
    for run_id in found.run_ids():
        row, facts = _listed(found, run_id)
        rows.append(row)
        document.append(facts)
    notes = [] if rows else [f"no run in {found.root}: `drift demo` or `drift generate` makes one"]
    heads = ["run", "model", "cells>", "rollouts ended>", "turns>", "status"]
    common.show().result(document, Table(f"Runs in {found.root}", heads, rows, notes))


def _listed(store: Store, run_id: str) -> tuple[list[str], dict[str, Any]]:
    """A run's row and facts; a damaged one is listed as such and hides no other."""
    from drift_cli.store.run import Run

    try:
        run = Run.open(store, run_id)
        states = run.states()
    except StoreError as error:
        return [run_id, "", "", "", "", f"damaged: {error.what}"], {"run": run_id, "status": "damaged", "problem": error.what}
    done, total = sum(s.done for s in states), sum(s.total for s in states)
    ended = sum(s.ended for s in states)
    status = "imported" if run.manifest.imported else "complete" if ended == len(states) else "unfinished"
    model = run.manifest.spec.model
    facts = {"run": run_id, "model": model, "rollouts": len(states), "ended": ended, "turns": done, "status": status}
    return [run_id, model, str(len(run.manifest.cells)), f"{ended}/{len(states)}", f"{done}/{total}", status], facts


@runs.command()
@grouped
def show(run: RunArgument = None, *, common: Common) -> None:
    """Show a run: what it is made of, where each setting came from, what the chat template adds, how far it is, what happened.

    Example: drift runs show demo-1a2b3c4d
    """
    found = common.open(run)
    document = {**_json(found.manifest), "id": found.paths.run_id, "folder": str(found.paths.root), "events": found.events()}
    common.show().result(document, *_shown(found))


def _json(manifest: Manifest) -> dict[str, Any]:
    import orjson

    made: dict[str, Any] = orjson.loads(manifest.to_json())
    return made


def _shown(run: Run) -> list[Table]:
    """What `show` shows, in its order; tables without rows are left out."""
    manifest = run.manifest
    settings = [[key, _value(setting.value), setting.source] for key, setting in sorted(manifest.settings.items())]
    epochs = [
        [str(index), epoch.device, f"{epoch.engine}, {epoch.batch} at a time", ", ".join(f"{k} {v}" for k, v in epoch.versions.items())]
        for index, epoch in enumerate(manifest.epochs)
    ]
    happened = [[str(event.get("time", "")), str(event.get("kind", "")), _details(event)] for event in run.events()[-LAST_EVENTS:]]
    tables = [
        Table(f"Run {run.paths.run_id}", ["", ""], _identity(manifest), [f"folder: {run.paths.root}"]),
        Table("Conditions", ["name", "placement", "prompt", "the chat template adds"], _conditions(manifest)),
        Table("Cells", ["cell", "rollouts>", "complete>", "turns>"], _cells(run)),
        Table("Settings", ["setting", "value", "from"], settings),
        Table("Software and device, by epoch", ["epoch>", "device", "engine", "versions"], epochs),
        Table("Last events", ["time", "kind", "details"], happened),
    ]
    return [table for table in tables if table.rows]


def _identity(manifest: Manifest) -> list[list[str]]:
    spec = manifest.spec
    told = f", told the date {spec.chat.date}" if spec.chat.date else ""
    options = f", options {spec.chat.options}" if spec.chat.options != "{}" else ""
    return [
        ["model", f"{spec.model} at {spec.revision}"],
        *([["quantization", manifest.model.quantization]] if manifest.model and manifest.model.quantization else []),
        *([["adapter", f"{manifest.model.adapter} ({spec.adapter}), merged into the weights"]] if manifest.model and spec.adapter else []),
        ["dtype", spec.dtype],
        ["chat", f"{spec.chat.kind} {spec.chat.digest[:12]}{told}{options}"],
        ["sampling", f"top_p {spec.sampling.top_p:g}, top_k {spec.sampling.top_k}, min_p {spec.sampling.min_p:g}"],
        ["noise", "each condition its own" if spec.sampling.independent_noise else "shared by sample between conditions"],
        ["seed, longest reply", f"{spec.seed}, {spec.max_new_tokens} tokens"],
        ["residual layers", ", ".join(map(str, manifest.layers)) or "none"],
        *([["segments", "reasoning and answer are kept, and measured, apart"]] if manifest.segments else []),
        *(["axis", _axis(entry)] for entry in manifest.axes),
        *(["axis added later", _axis(entry)] for entry in manifest.measured),
    ]


def _axis(entry: AxisEntry) -> str:
    layer = str(entry.layer) if entry.layer >= 0 else "unknown"
    return f"{entry.name}, layer {layer}, {entry.digest[:12]}" + (f" ({entry.note})" if entry.note else "")


def _conditions(manifest: Manifest) -> list[list[str]]:
    """In the order of the cells, which is the one they were asked for in."""
    order = dict.fromkeys([*(plan.cell.condition for plan in manifest.cells), *manifest.conditions])
    unsaid = "unknown" if manifest.imported is not None else "—"
    chosen = (manifest.conditions[name] for name in order)
    return [[c.name, c.placement.value if c.system else "—", c.system or "—", manifest.template_adds.get(c.name, unsaid)] for c in chosen]


def _cells(run: Run) -> list[list[str]]:
    states = run.states()
    rows = []
    for plan in run.manifest.cells:
        mine = [state for state in states if state.rollout.cell == plan.cell]
        turns = f"{sum(state.done for state in mine)}/{sum(state.total for state in mine)}"
        rows.append([str(plan.cell), str(plan.samples), str(sum(state.complete for state in mine)), turns])
    return rows


def _value(value: Any) -> str:
    return "—" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _details(event: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in event.items() if key not in {"time", "kind", "host", "pid"} and value is not None)


@runs.command()
def path(run: RunArgument = None, store: StoreOption = None) -> None:
    """Print a run's folder.

    Example: cd "$(drift runs path demo)"
    """
    typer.echo(str(open_run(store, run).paths.root.absolute()))


@runs.command()
@grouped
def verify(
    run: RunArgument = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged lines of rollouts aside, under quarantine/; nothing is deleted.")
    ] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Also read every byte of the model's local files again.")] = False,
    *,
    common: Common,
) -> None:
    """Check every byte of a run: manifest, lines, chains, checksums, residuals, projections. Exit code 1 where something is wrong.

    With --repair, what is damaged of a rollout is set aside first, and the turns before it stay.

    Example: drift runs verify demo-1a2b3c4d --repair
    """
    from drift_cli.workers import checks

    found = common.open(run)
    repairs, failures = checks.repair(found) if repair else ([], [])
    shown_on = common.show()
    findings = [*checks.verify(found), *(_weights(found, shown_on) if weights else ())]
    fatal = [finding for finding in findings if finding.fatal]
    document = {
        "run": found.paths.run_id,
        "ok": not fatal,
        "findings": [{"file": str(f.file), "problem": f.problem, "fatal": f.fatal} for f in findings],
    }
    if repair:
        document["repairs"] = [_repaired(done) for done in repairs]
        document["not_repaired"] = failures
    shown = _repairs(found, repairs, failures) if repair else []
    shown_on.result(document, *shown, _findings_table(found, findings, repaired=repair))
    if fatal or failures:
        raise typer.Exit(EXIT_FAILED)


def _weights(run: Run, display: Display) -> Iterator[Finding]:
    """Whether the local files of a run's model, and of its adapter, are still what the run was made with; every byte is read."""
    from drift_cli.models.adapters import find_adapter
    from drift_cli.models.sources import content_of
    from drift_cli.store.run import Finding

    spec, settings = run.manifest.spec, run.manifest.settings
    model, adapter = (Path(str(settings[key].value)) if key in settings else None for key in ("model", "adapter"))
    if not spec.by_content or model is None:
        yield Finding(run.paths.manifest, "the model's files are not checked: the run knows no digest of their whole content", fatal=False)
    else:
        yield from _compared(model, spec.revision, lambda: content_of(model, display.note))
    if adapter is not None and spec.adapter is not None:
        yield from _compared(adapter, spec.adapter, lambda: find_adapter(adapter, display.note, remembered=False).digest)


def _compared(place: Path, wanted: str, read: Callable[[], str]) -> Iterator[Finding]:
    from drift_cli.store.run import Finding

    try:
        found = read() if place.exists() else None
    except DriftError as error:
        yield Finding(place, error.what, fatal=True)
        return
    if found is None:
        yield Finding(place, "not checked: it is not there any more", fatal=False)
    elif found != wanted:
        yield Finding(place, f"its content is not what the run was made with: stored {wanted}, found {found}", fatal=True)


def _repaired(done: Repair) -> dict[str, Any]:
    files = [str(file) for file in done.files]
    return {"rollout": str(done.rollout), "problem": done.problem, "turns_kept": done.kept, "lines_set_aside": done.lines, "files": files}


def _repairs(run: Run, repairs: Sequence[Repair], failures: Sequence[str]) -> list[str]:
    """In lines, not in a table: file names stay whole."""
    again = (
        "import the files again to have them back" if run.manifest.imported else f"`drift resume {run.paths.run_id}` makes the turns again"
    )
    done = [f"{repair.problem}\n  {repair}" for repair in repairs]
    return [*done, *failures, again if repairs else "nothing was set aside", ""]


def _findings_table(run: Run, findings: Sequence[Finding], *, repaired: bool) -> Table:
    fatal = sum(finding.fatal for finding in findings)
    rows = [["damage" if f.fatal else "notice", str(f.file), f.problem] for f in findings]
    states = run.states() if not fatal else []
    checked = f"{len(states)} rollouts, {sum(s.done for s in states)} turns checked: everything is as it was written"
    hint = "a repair cannot mend it" if repaired else "nothing was changed; --repair sets damaged lines of rollouts aside"
    return Table(f"Verify {run.paths.run_id}", ["", "file", "what"], rows, [f"{fatal} files are damaged: {hint}" if fatal else checked])


def register(app: typer.Typer) -> None:
    """Add the group."""
    runs.command()(watch)
    app.add_typer(runs, name="runs")
