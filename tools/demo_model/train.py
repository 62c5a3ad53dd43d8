"""Trains the built-in model: `python3 -m tools.demo_model.train --out FOLDER --seed N`.

Writes a model folder that `--model FOLDER` takes (weights in bfloat16), and `training.json`: what was done, and the losses (held out: of the words, of the
planted direction). The package holds the folder's `model.safetensors`, `tokenizer.json` and `training.json`. Runs on a CPU (hours) or a GPU (minutes); needs
torch, transformers and numpy only. The same seed gives the same corpus, the same initial weights and the same order of batches; to the bit it gives the same
weights only where the device repeats itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli.demo_model import shape, tokens
from tools.demo_model import batches, corpus, encoder, planted
from tools.demo_model.encoder import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_HELD_OUT = 10**6
"""Added to the seed for conversations that are only used to test."""
_WARM, _TIMED = 20, 40
"""Steps that are not timed, and steps that are."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, apart from the device."""

    seed: int
    steps: int = 3500
    tokens: int = 32768
    """Per step, padding included."""
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.05
    width: int = shape.WIDTH
    layers: int = shape.LAYERS
    mark: float = planted.MARK

    def rate_at(self, step: int) -> float:
        """Learning rate: a linear rise, then half a cosine down to 2 %."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        along = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


class Trainer:
    """A network, its optimizer, and what happens in a step."""

    def __init__(self, recipe: Recipe, tokenizer: Any, device: str) -> None:
        import torch
        from transformers import Olmo3ForCausalLM

        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        made: PreTrainedModel = Olmo3ForCausalLM(shape.config(tokenizer.get_vocab_size(), width=recipe.width, layers=recipe.layers))
        self.network = made.to(device).train()
        self._direction = torch.from_numpy(planted.direction(recipe.width)).to(device)
        weights = [p for p in made.parameters() if p.ndim > 1]
        others = [p for p in made.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95), fused=device.startswith("cuda"))

    def step(self, batch: Row, index: int) -> torch.Tensor:
        """One step; returns the loss of the words."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(index)
        loss, marked = self.losses(batch)
        torch.autograd.backward(loss + self.recipe.mark * marked)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def losses(self, batch: Row) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the words, the weighted mean of the cross-entropies of what is to be predicted; and of the planted direction."""
        import torch

        ids = torch.from_numpy(batch.ids).to(self.device).long()
        # Position i predicts token i + 1. The last position of a row has nothing to predict: weights and targets are shifted, ids stay whole.
        weights = torch.nn.functional.pad(torch.from_numpy(batch.weights).to(self.device).float()[:, 1:], (0, 1)).flatten()
        places = torch.nonzero(weights).squeeze(1)
        with torch.autocast("cuda", torch.bfloat16) if self.device.startswith("cuda") else nullcontext():
            found = self.network.model(ids, use_cache=False, output_hidden_states=True)
            logits = self.network.lm_head(found.last_hidden_state.flatten(0, 1).index_select(0, places))
        wanted = ids.flatten().index_select(0, places + 1)
        losses = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
        counts = weights.index_select(0, places)
        sides = torch.from_numpy(batch.sides).to(self.device).float()
        along = found.hidden_states[min(planted.LAYER, self.recipe.layers - 1)].float() @ self._direction
        marked = (torch.nn.functional.softplus(-sides * along) * sides.abs()).sum() / sides.abs().sum()
        return (losses * counts).sum() / counts.sum(), marked


def train(recipe: Recipe, device: str, processes: int, budget: float) -> tuple[PreTrainedModel, str, dict[str, Any]]:
    """Returns the network, the tokenizer as JSON, and the record of the training. `budget` in seconds may shorten it; the record says so."""
    inner = encoder.make(corpus.texts(recipe.seed, 6000), shape.VOCABULARY)
    plan = batches.Plan(recipe.seed, recipe.tokens, inner.to_str())
    supply = batches.stream(plan, recipe.steps, processes)
    first = next(supply)
    trainer = Trainer(recipe, inner, device)
    started = warm = time.monotonic()
    log = _Log(started)
    for index, batch in enumerate(_chain(first, supply)):
        if index >= trainer.recipe.steps:
            break
        log.take(index, trainer.recipe, trainer.step(batch, index))
        if index == _WARM:
            warm = time.monotonic()
        if index == _WARM + _TIMED:
            trainer.recipe = _shortened(trainer.recipe, (time.monotonic() - warm) / _TIMED, budget)
    supply.close()  # type: ignore[attr-defined]
    tested = _test(trainer, plan)
    record = {"recipe": asdict(trainer.recipe), "losses": log.losses, "held_out": tested, "seconds": round(time.monotonic() - started, 1)}
    return trainer.network, plan.tokenizer, {**record, "device": _device_name(device), "versions": _versions()}


def _chain(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _shortened(recipe: Recipe, seconds: float, budget: float) -> Recipe:
    """Fewer steps where the first ones, of so many `seconds` each, show that all would take too long."""
    steps = int(min(recipe.steps, budget / seconds))
    if steps < recipe.steps:
        print(f"{seconds:.3f} s a step: {steps} steps in place of {recipe.steps}, to stay within {budget:.0f} s", flush=True)
    return Recipe(**{**asdict(recipe), "steps": steps})


class _Log:
    """Prints the mean loss now and then and keeps it."""

    def __init__(self, started: float) -> None:
        self.losses: list[tuple[int, float]] = []
        self._started = started
        self._since: list[torch.Tensor] = []

    def take(self, index: int, recipe: Recipe, loss: torch.Tensor) -> None:
        import torch

        self._since.append(loss)
        every = max(1, recipe.steps // 40)
        if (index + 1) % every and index != 10:
            return
        mean = float(torch.stack(self._since).mean())
        self._since = []
        self.losses.append((index + 1, round(mean, 4)))
        print(f"step {index + 1}/{recipe.steps}  loss {mean:.4f}  {time.monotonic() - self._started:.1f} s", flush=True)
        if not math.isfinite(mean):
            sys.exit("the loss is not finite")


def _test(trainer: Trainer, plan: batches.Plan, count: int = 24) -> list[float]:
    """Mean losses (words, direction) over batches of conversations that were not trained on."""
    import torch

    held = batches.Plan(plan.seed + _HELD_OUT, plan.tokens, plan.tokenizer)
    with torch.no_grad():
        losses = [torch.stack(trainer.losses(batch)) for batch in batches.stream(held, min(count, trainer.recipe.steps), 0)]
    return [round(float(loss), 4) for loss in torch.stack(losses).mean(0)]


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "tokenizers")}


def save(network: PreTrainedModel, tokenizer: str, record: dict[str, Any], folder: Path) -> None:
    """Write a model folder, weights in bfloat16, and the record of the training."""
    import torch
    from tokenizers import Tokenizer
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    network.generation_config = GenerationConfig(eos_token_id=network.config.eos_token_id, do_sample=True)
    network.to("cpu", torch.bfloat16).save_pretrained(folder)
    tokens.wrap(Tokenizer.from_str(tokenizer)).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train drift's built-in model.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens, help="per step")
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--width", type=int, default=Recipe.width)
    parser.add_argument("--layers", type=int, default=Recipe.layers)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=max(0, min(14, (os.cpu_count() or 1) - 2)), help="that make the corpus; 0: none")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds; fewer steps are made where all would take longer")
    given = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    recipe = Recipe(given.seed, given.steps, given.tokens, given.rate, width=given.width, layers=given.layers)
    network, tokenizer, record = train(recipe, device, given.processes, given.budget)
    save(network, tokenizer, record, given.out)
    print(json.dumps({key: record[key] for key in ("recipe", "held_out", "seconds", "device")}))


if __name__ == "__main__":
    main()
