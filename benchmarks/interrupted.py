"""Whether interruptions and company change a bit: the same small experiment whole, stopped at random turns, and a condition at a time.

    python benchmarks/interrupted.py --model olmo3-7b --device cuda --rows 48

Prints digests of everything that was stored (ids, texts, residual means); all must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import world

from drift_cli.chat import chat_for
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.models import LoadedModel
from drift_cli.running.runner import run_rollouts
from drift_cli.store.manifest import Manifest
from drift_cli.store.paths import Store
from drift_cli.store.run import Run


def once(model: LoadedModel, plan: Manifest, given: world.Lengths, rows: int, folder: Path, stop: Callable[[], bool]) -> int:
    """One process's worth of work on a run, with slots of its own; turns made."""
    engine = SlotEngine(model, plan.layers, plan.spec.sampling, plan.spec.max_new_tokens, rows, 4096)
    run = Run.create(Store(folder), plan)
    forced = world.Forced(engine, given)
    chat = chat_for(model.card.tokenizer, "template")
    return run_rollouts(run, forced, chat=chat, axis=None, end_ids=model.card.end_ids, stop=stop).turns


def digest(folder: Path) -> str:
    """Of all that was stored of rollouts."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".jsonl", ".f32"} and p.name != "events.jsonl"):
        total.update(str(path.relative_to(folder)).encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--scale", type=float, default=0.2)
    parser.add_argument("--stops", type=int, default=3)
    asked = parser.parse_args()
    given = world.lengths().cut(asked.samples, asked.turns, asked.scale, 128)
    model = world.load(asked.model, asked.device, "bfloat16" if asked.device.startswith("cuda") else "float32")
    plan = world.manifest(model, given, tuple(range(0, model.card.layers + 1, 4)), 128)
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as place:
        whole, stopped, apart = (Path(place) / name for name in ("whole", "stopped", "apart"))
        print(f"whole: {once(model, plan, given, asked.rows, whole, lambda: False)} turns", flush=True)
        for number in range(asked.stops):
            left = chance.randint(20, 120)

            def tired(left: list[int] = [left]) -> bool:  # noqa: B006 (a countdown of its own)
                left[0] -= 1
                return left[0] < 0

            print(f"stop {number + 1} after {left} looks: {once(model, plan, given, asked.rows, stopped, tired)} turns", flush=True)
        print(f"then to the end: {once(model, plan, given, asked.rows, stopped, lambda: False)} turns", flush=True)
        for cell in reversed(plan.cells):
            once(model, replace(plan, cells=(cell,)), given, asked.rows, apart, lambda: False)
        digests = {path.name: digest(path) for path in (whole, stopped, apart)}
    for name, value in digests.items():
        print(f"{name:8} {value}")
    print("all the same" if len(set(digests.values())) == 1 else "NOT the same")


if __name__ == "__main__":
    main()
