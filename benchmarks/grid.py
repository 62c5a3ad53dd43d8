"""The whole experiment, several ways, from one run on one machine: seconds, tokens/s, and how far from what the machine's memory and arithmetic allow.

    python benchmarks/grid.py                                            # small, for a CPU: minutes
    python benchmarks/grid.py --scale 1                                  # the real lengths, on a CPU: a quarter of an hour
    python benchmarks/grid.py --preset gpu --model olmo3-7b              # the real one: 48 rollouts × 18 turns on a GPU

Ways: `slots` is drift as it is used, store and all. `recipe` is what drift grew from; `continuous` is transformers' continuous batching; `reference` is drift's
plain engine. Only `slots` is run whole; of the others the turns named by --turns-timed are run, and the turns between are interpolated by the length of their
prompts, which is said. The limit is the time in which this machine reads every byte and does every operation once, at the speeds measured here and now.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import recipes
import torch
import world

from drift_cli.chat import chat_for
from drift_cli.commands.progress import Shown
from drift_cli.display import Display, Mode
from drift_cli.engine.attention import layout_of
from drift_cli.engine.layout import Layout, layout_from
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.models import LoadedModel
from drift_cli.running.estimate import Work, fits, prompt_lengths, seconds
from drift_cli.running.runner import run_rollouts
from drift_cli.running.speeds import measure_speeds
from drift_cli.spec import Rollout
from drift_cli.store.manifest import Manifest
from drift_cli.store.paths import Store
from drift_cli.store.run import RolloutState, Run


@dataclass(frozen=True)
class Limit:
    """What the work needs at least."""

    kv_bytes: float
    weight_bytes: float
    operations: float
    seconds: float


def say(text: str) -> None:
    print(text, flush=True)


def rollouts(plan: Manifest) -> list[Rollout]:
    """All of them, cells in order."""
    return [Rollout(cell.cell, sample) for cell in plan.cells for sample in range(cell.samples)]


def prompts(model: LoadedModel, plan: Manifest, given: world.Lengths, rollout: Rollout) -> Iterator[tuple[int, int]]:
    """(prompt, reply) lengths of every turn."""
    empty = prompt_lengths(chat_for(model.card.tokenizer, "template"), plan.transcripts["script"], plan.conditions[rollout.cell.condition])
    said = 0
    for turn, length in enumerate(world.reply_lengths(given, rollout)):
        yield empty[turn] + said, length
        said += length


def limit(model: LoadedModel, plan: Manifest, given: world.Lengths, layout: Layout, rows: int) -> Limit:
    """Read the weights once per step and a row's keys and values once per token; encode every token once (logits are needed of a turn's last one only)."""
    speeds = measure_speeds(model.device, next(model.network.parameters()).dtype)
    say(f"measured: copies {speeds.bandwidth / 1e9:.0f} GB/s, multiplies {speeds.flops / 1e12:.2f} TFLOP/s")
    size = next(model.network.parameters()).itemsize
    windows, per_token = np.array(layout.windows), np.array([h * sum(w) for h, w in zip(layout.heads, layout.widths, strict=True)]) * size
    kv, operations, steps = 0.0, 0.0, []
    body = model.parameters - model.network.get_input_embeddings().weight.numel()
    head = model.network.get_output_embeddings().weight.numel()
    for rollout in rollouts(plan):
        turns = list(prompts(model, plan, given, rollout))
        steps.append(sum(reply for _, reply in turns))
        for prompt, reply in turns:
            places = prompt + np.arange(reply)[:, None]
            kv += float((np.where(windows > 0, np.minimum(places, np.where(windows > 0, windows, 0)), places) * per_token).sum())
        whole = turns[-1][0] + turns[-1][1]
        seen = np.minimum(np.where(windows > 0, windows, whole), whole)
        operations += (
            2.0 * (body - head) * whole + 2.0 * float((per_token / size * seen * (whole - seen / 2)).sum()) + 2.0 * head * len(turns)
        )
    weights = body * size * max(*steps, sum(steps) / rows)
    return Limit(kv, weights, operations, (kv + weights) / speeds.bandwidth + operations / speeds.flops)


def estimated(model: LoadedModel, plan: Manifest, given: world.Lengths, rows: int) -> float:
    """What `--dry-run` would say if it knew the replies' lengths."""
    speeds = measure_speeds(model.device, next(model.network.parameters()).dtype, rows, int(model.card.config.get_text_config().vocab_size))
    states = [RolloutState(rollout, 0, len(given.users), None) for rollout in rollouts(plan)]
    lengths = fits(plan, chat_for(model.card.tokenizer, "template"), model.card.context)
    size = next(model.network.parameters()).itemsize
    assert plan.model is not None
    work = Work(plan.model, 0, rows, size, layout_from(model.card.config), speeds, graphs=model.device.type == "cuda")
    return seconds("slots", states, lengths, work, lambda rollout: world.reply_lengths(given, rollout))


def slots(model: LoadedModel, plan: Manifest, given: world.Lengths, rows: int) -> tuple[float, float, str]:
    """(set-up, seconds, digest of everything that was stored) of drift's own run."""
    chat = chat_for(model.card.tokenizer, "template")
    longest = max(sum(turn) for rollout in rollouts(plan) for turn in [list(prompts(model, plan, given, rollout))[-1]])
    engine = SlotEngine(model, plan.layers, plan.spec.sampling, plan.spec.max_new_tokens, rows, longest + 1)
    started = recipes.clock(model)
    engine.prepare(lambda incident: say(f"  {incident.detail}"))
    ready = recipes.clock(model) - started
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Store(Path(folder)), plan)
        with Shown(Display(Mode.PLAIN)) as shown:
            forced, never = world.Forced(engine, given), shown.ticking(lambda: False)
            outcome = run_rollouts(run, forced, chat=chat, axis=None, end_ids=model.card.end_ids, stop=never, tell=shown.tell)
        assert all(state.complete for state in run.states())
        for event in run.events():
            if event["kind"] in {"no-room", "out-of-memory"}:
                say(f"  {event['kind']}: {event['detail']}")
        digest = hashlib.sha256()
        for path in sorted(p for p in Path(folder).rglob("*") if p.suffix in {".jsonl", ".f32"} and p.name != "events.jsonl"):
            digest.update(path.read_bytes())
    return ready, outcome.seconds, digest.hexdigest()[:16]


def other(way: str, model: LoadedModel, plan: Manifest, given: world.Lengths, timed: list[int], samples: list[list[Rollout]]) -> float:
    """Seconds of the whole experiment another way: some turns of some groups of rollouts stand for all, the turns between are interpolated."""
    total = sum(_group(way, model, plan, given, timed, sample) for sample in samples)
    return total * len(rollouts(plan)) / sum(map(len, samples))


def _group(way: str, model: LoadedModel, plan: Manifest, given: world.Lengths, timed: list[int], sample: list[Rollout]) -> float:
    """Seconds of one group of rollouts."""
    work: recipes.Way = getattr(recipes, way)
    lengths = np.array([list(prompts(model, plan, given, rollout)) for rollout in sample])
    prompt, steps = lengths[:, :, 0].mean(0), lengths[:, :, 1].max(0)
    costs = []
    for turn in timed:
        took = work(model, recipes.jobs_at(model, plan, given, sample, turn), turn)
        costs.append(took / steps[turn - 1])
        of = f"{len(sample)} rollouts of {sample[0].cell.condition}"
        say(f"  {way} turn {turn}: {of}, {took:.1f} s, {costs[-1] * 1e3:.1f} ms a step")
    return float((steps * np.interp(prompt, prompt[[turn - 1 for turn in timed]], costs)).sum())


def memory(device: torch.device) -> str:
    """The peak since the last call."""
    if device.type != "cuda":
        import resource

        return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of the process"
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return f"peak {peak:.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--model", default="demo", help="demo, olmo3-7b, or a folder with a config.json")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--turns", type=int, default=18)
    parser.add_argument("--scale", type=float, default=None, help="shortens all texts")
    parser.add_argument("--turns-timed", default="1,9,18", help="of the ways that are not run whole")
    parser.add_argument("--group", type=int, default=16, help="rollouts that reference and continuous batching go through at once")
    parser.add_argument("--conditions", type=int, default=3, help="conditions of which such groups are timed, and one of the recipe's")
    parser.add_argument("--ways", default="slots,recipe,reference,continuous")
    parser.add_argument("--twice", action="store_true", help="run slots twice and compare what was stored, byte for byte")
    asked = parser.parse_args()
    gpu = asked.preset == "gpu"
    scale = asked.scale or (1.0 if gpu else 0.1)
    tokens = round(512 * scale)
    given = world.lengths().cut(asked.samples, asked.turns, scale, tokens)
    started = time.perf_counter()
    model = world.load(asked.model, "cuda" if gpu else "cpu", asked.dtype or ("bfloat16" if gpu else "float32"))
    say(
        f"{asked.model}, {model.parameters / 1e9:.2f} billion parameters, {model.dtype} on {model.device}, made in {time.perf_counter() - started:.0f} s"
    )
    plan = world.manifest(model, given, (model.card.layers * 2 // 3,), tokens)
    least = limit(model, plan, given, layout_of(model), asked.rows)
    say(
        f"{len(rollouts(plan))} rollouts × {len(given.users)} turns, {given.sampled} sampled tokens; limit {least.seconds:.1f} s "
        f"({least.kv_bytes / 1e12:.2f} TB of keys and values, {least.weight_bytes / 1e12:.2f} TB of weights, {least.operations / 1e15:.3f} PFLOP)"
    )
    guess = estimated(model, plan, given, asked.rows)
    found: dict[str, float] = {}
    timed = [int(turn) for turn in asked.turns_timed.split(",") if int(turn) <= len(given.users)]
    for way in asked.ways.split(","):
        if way == "slots":
            digests = []
            for _ in range(2 if asked.twice else 1):
                ready, found[way], digest = slots(model, plan, given, asked.rows)
                digests.append(digest)
                say(f"  slots: estimated {guess:.1f} s before it ran, {guess / found[way]:.2f} of what it took")
                say(f"  slots: set-up {ready:.1f} s, run {found[way]:.1f} s, {memory(model.device)}, stored bytes {digest}")
            if asked.twice:
                say(f"  twice the same bytes: {len(set(digests)) == 1}")
        else:
            try:
                per = recipes.PER_BATCH if way == "recipe" else asked.group
                cells = plan.cells[: asked.conditions]
                samples = [[Rollout(cell.cell, sample) for sample in range(min(per, cell.samples))] for cell in cells]
                found[way] = other(way, model, plan, given, timed, samples)
                of = f"turns {asked.turns_timed} of {per} rollouts of {len(cells)} conditions"
                say(f"  {way}: {found[way]:.0f} s, extrapolated from {of}, {memory(model.device)}")
            except (RuntimeError, AttributeError, ImportError, TypeError, ValueError) as error:
                say(f"  {way}: does not run here: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
    say(f"\n{'':12}{'seconds':>10}{'tokens/s':>10}{'of limit':>10}{'of recipe':>10}")
    for name, took in [("limit", least.seconds), *found.items()]:
        times = f"{found['recipe'] / took:>9.1f}×" if "recipe" in found else ""
        say(f"{name:12}{took:>10.1f}{given.sampled / took:>10.0f}{took / least.seconds:>9.2f}×{times}")


if __name__ == "__main__":
    main()
