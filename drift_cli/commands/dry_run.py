"""`--dry-run`: what a run would do, what would not fit, and how long it may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from drift_cli.display import Display, Table, duration
from drift_cli.running.estimate import Fit, Work, fits, longest, seconds
from drift_cli.running.loading import work_of

if TYPE_CHECKING:
    from drift_cli.running.experiment import Experiment
    from drift_cli.store.manifest import Manifest
    from drift_cli.store.paths import Store
    from drift_cli.store.run import RolloutState, Run


@dataclass(frozen=True)
class Plan:
    """What a run would do. Its fields are the document's."""

    run: str
    exists: bool
    turns_left: int
    turns: int
    seconds_estimated: float
    weight_bytes: int
    kv_bytes_at_most: int
    residual_bytes: int
    context: int
    """Tokens."""
    lacking: Sequence[str]
    """What statistics and pictures will lack, one sentence each."""
    cells: Sequence[Mapping[str, Any]]


def dry_run(display: Display, store: Store, experiment: Experiment, existing: Run | None, engine: str, batch: int) -> None:
    """Render the plan of an experiment. Nothing is written."""
    from drift_cli.store.merge import merge
    from drift_cli.store.run import Run

    manifest = experiment.manifest if existing is None else merge(existing.manifest, experiment.manifest)
    states = Run(store.run(manifest.spec.id), manifest).states()
    lengths = fits(manifest, experiment.chat, experiment.card.context)
    together = min(batch, sum(not state.ended for state in states))
    plan = _plan(manifest, experiment, states, lengths, work_of(manifest, experiment, batch, engine), (engine, together))
    plan = replace(plan, exists=existing is not None)
    needed = plan.weight_bytes + plan.kv_bytes_at_most
    notes = [
        f"{plan.turns_left} of {plan.turns} turns left, about {duration(plan.seconds_estimated)} if every reply is as long as it may be, "
        f"on {experiment.device} ({manifest.spec.dtype}, {batch} at a time, engine {engine})",
        f"memory: weights {_size(plan.weight_bytes)}, keys and values of {together} rollouts up to {_size(plan.kv_bytes_at_most)}"
        f"{_room(experiment.device, needed)}",
        f"residual means {'up to ' if manifest.segments else ''}{_size(plan.residual_bytes)} on disk; context {plan.context} tokens",
        *(f"WARNING: {sentence}" for sentence in plan.lacking),
    ]
    heads = ["cell", "rollouts>", "turns left>", "last prompt at least>", "context"]
    display.result(plan, Table(f"Plan of run {plan.run}", heads, [_row(fit, states) for fit in lengths], notes))


def _plan(
    manifest: Manifest, experiment: Experiment, states: list[RolloutState], lengths: Sequence[Fit], work: Work, on: tuple[str, int]
) -> Plan:
    """`on`: the engine, and the rollouts that it makes at the same time."""
    engine, together = on
    assert manifest.model is not None
    left = sum(state.total - state.done for state in states if not state.ended)
    held = work.layout.held(longest(manifest, lengths, experiment.card.context), manifest.spec.max_new_tokens)
    # Of a reply with segments: the answer's, the reasoning's, and those of all its tokens.
    residuals = len(manifest.layers) * manifest.model.width * 4 * left * (3 if manifest.segments else 1)
    cells = [
        {
            "cell": str(fit.cell),
            "last_prompt_at_least": fit.prompt_lengths[-1],
            "ends_before_turn": fit.certain,
            "may_end_before_turn": fit.possible,
        }
        for fit in lengths
    ]
    return Plan(
        run=manifest.spec.id,
        exists=False,
        turns_left=left,
        turns=sum(state.total for state in states),
        seconds_estimated=round(seconds(engine, states, lengths, work), 1),
        weight_bytes=work.weight_bytes,
        kv_bytes_at_most=together * held * work.itemsize,
        residual_bytes=residuals,
        context=experiment.card.context,
        lacking=list(experiment.lacking),
        cells=cells,
    )


def _room(device: str, needed: int) -> str:
    """What to expect where a GPU's free memory is less than may be needed."""
    import torch

    if not device.startswith("cuda"):
        return ""
    free = torch.cuda.mem_get_info(torch.device(device))[0]
    return f" ({_size(free)} free)" if free > needed else f" ({_size(free)} free: if replies are long, some rollouts wait for others)"


def _row(fit: Fit, states: list[RolloutState]) -> list[str]:
    mine = [state for state in states if state.rollout.cell == fit.cell]
    left = sum(state.total - state.done for state in mine if not state.ended)
    if fit.certain == 1:
        room = "NO TURN FITS"
    elif fit.certain is not None:
        room = f"ends before turn {fit.certain}"
    elif fit.possible is not None:
        room = f"may end before turn {fit.possible} if replies are long"
    else:
        room = "fits"
    return [str(fit.cell), str(len(mine)), str(left), str(fit.prompt_lengths[-1]), room]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
