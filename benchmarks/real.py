"""The experiment of the preset olmo3-003b on a real model, as a user runs it: the same bytes however it is made, and how fast.

    python benchmarks/real.py MODEL                  # 3 conditions × 16 rollouts × 18 turns, replies of up to 512 tokens
    python benchmarks/real.py MODEL --short          # a small form of it, for a CPU

One process makes it whole; another is killed twice and gone on with; two workers share it, each on a GPU of its own where there are two. The digest is of every
line and every residual mean on disk. Then slots and the reference engine make the first turns of it in the same sitting, which gives their tokens per second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift_cli import transcripts
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

CONDITIONS = ("baseline", "simple", "complex")


@dataclass(frozen=True)
class Plan:
    """What is run."""

    model: str
    turns: int
    samples: int
    tokens: int
    more: tuple[str, ...]

    def line(self, store: Path, turns: int, *more: str) -> list[str]:
        """The arguments of `drift generate`."""
        script = store.parent / f"lonely{turns}.json"
        users = transcripts.load("lonely").users
        script.write_text(json.dumps({"users": [users[turn % len(users)] for turn in range(turns)]}))
        chosen = [part for name in CONDITIONS for part in ("--condition", name)]
        how = ["--preset", "olmo3-003b", "--model", self.model, "--name", "real", "--transcript", str(script), "--store", str(store)]
        return [*how, *chosen, "--samples", str(self.samples), "--max-new-tokens", str(self.tokens), "--layers", "all", *self.more, *more]


def say(text: str) -> None:
    print(text, flush=True)


def drift(*arguments: str) -> Any:
    """What `drift ... --json` prints; its errors go to the terminal."""
    made = subprocess.run(
        [sys.executable, "-m", "drift_cli", *arguments, "--json", "--display", "none"], stdout=subprocess.PIPE, check=False
    )
    if made.returncode:
        raise SystemExit(f"drift {' '.join(arguments[:2])} ended with {made.returncode}")
    return json.loads(made.stdout)


def digest(store: Path) -> str:
    """Of all that a run's rollouts hold."""
    found = hashlib.sha256()
    for path in sorted(store.rglob("rollouts/**/*")):
        if path.suffix in {".jsonl", ".f32"}:
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def tokens(store: Path) -> int:
    """Sampled tokens."""
    run = Run.newest(Store(store))
    return sum(len(turn.ids or ()) for state in run.states() for turn in run.record(state.rollout).turns)


def lines(store: Path) -> int:
    """Turns on disk."""
    return sum(path.read_bytes().count(b'{"turn":') for path in store.rglob("rollouts/**/*.jsonl"))


def whole(plan: Plan, root: Path) -> str:
    store = root / "whole" / "store"
    store.parent.mkdir()
    started = time.monotonic()
    made = drift("generate", *plan.line(store, plan.turns))
    took, said = time.monotonic() - started, tokens(store)
    say(
        f"one process: {len(CONDITIONS) * plan.samples} rollouts × {plan.turns} turns, {said} sampled tokens in {made['seconds']:.1f} s "
        f"({said / made['seconds']:.0f} tokens/s; with loading, trial and set-up {took:.1f} s), stored bytes {digest(store)}"
    )
    return digest(store)


def killed(plan: Plan, root: Path) -> str:
    store = root / "killed" / "store"
    store.parent.mkdir()
    total = len(CONDITIONS) * plan.samples * plan.turns
    for share in (0.2, 0.6):
        process = subprocess.Popen([sys.executable, "-m", "drift_cli", "generate", *plan.line(store, plan.turns), "--display", "none"])
        while process.poll() is None and lines(store) < share * total:
            time.sleep(0.05)
        process.kill()
        process.wait()
        say(f"killed with SIGKILL at {lines(store)} of {total} turns")
    drift("generate", *plan.line(store, plan.turns))
    say(f"killed twice and gone on with: stored bytes {digest(store)}")
    return digest(store)


def shared(plan: Plan, root: Path) -> str:
    store = root / "shared" / "store"
    store.parent.mkdir()
    started = time.monotonic()
    made = subprocess.run(
        [sys.executable, "-m", "drift_cli", "launch", "--launcher", "local", "--workers", "2", *plan.line(store, plan.turns)],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    took = time.monotonic() - started
    drift("generate", *plan.line(store, plan.turns))
    say(f"two workers (exit {made.returncode}): {took:.1f} s with loading, trial and set-up, stored bytes {digest(store)}")
    return digest(store)


def engines(plan: Plan, root: Path, turns: int) -> None:
    rates = {}
    for engine in ("slots", "reference", "slots"):
        store = root / f"{engine}{len(rates)}" / "store"
        store.parent.mkdir()
        made = drift("generate", *plan.line(store, turns, "--engine", engine))
        rates[engine] = tokens(store) / made["seconds"]
        say(f"{engine}, first {turns} turns: {tokens(store)} tokens in {made['seconds']:.1f} s, {rates[engine]:.0f} tokens/s")
    say(f"slots / reference: {rates['slots'] / rates['reference']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--reference-turns", type=int, default=2)
    asked = parser.parse_args()
    model = str(Path(asked.model).resolve()) if Path(asked.model).exists() else asked.model
    more = ("--dtype", asked.dtype, "--batch", "12" if asked.short else "48")
    plan = Plan(model, 3, 4, 24, more) if asked.short else Plan(model, 18, 16, 512, more)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = {whole(plan, root), killed(plan, root), shared(plan, root)}
        say("stored bytes are the same" if len(made) == 1 else "STORED BYTES DIFFER")
        engines(plan, root, asked.reference_turns)
    raise SystemExit(len(made) > 1)


if __name__ == "__main__":
    main()
