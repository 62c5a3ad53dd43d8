"""How far residual means in bfloat16 are from float32's, layer by layer: those of slots, and those of one plain forward pass over each conversation.

    python benchmarks/noise.py                                             # the built-in model's shape, on a CPU
    python benchmarks/noise.py --model olmo3-7b --device cuda

Random weights, rounded to the coarser type; the exact network has the same weights and computes in float32. `error` is the distance of a mean from the exact
one as a share of its length. `noise` is the root mean square error of its projections on random unit axes, as a share of their standard deviation over
replies: what a measured difference has to exceed. Slots are as they should be where their columns are the plain forward's.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import recipes
import torch
import world
from numpy.typing import NDArray

from drift_cli.engine.contract import Given, Reply
from drift_cli.engine.kernels import repeatable
from drift_cli.engine.pooling import mean_over
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.models import LoadedModel
from drift_cli.spec import Rollout, Sampling

AXES = 64
Means = NDArray[np.float64]
"""(replies, layers, width)."""


def replies_of(model: LoadedModel, given: world.Lengths, layers: tuple[int, ...], turn: int, rows: int, tokens: int) -> list[Reply]:
    """One turn of some rollouts, generated and measured by slots."""
    plan = world.manifest(model, given, layers, tokens)
    sample = [Rollout(cell.cell, number) for number in range(-(-rows // len(plan.cells))) for cell in plan.cells][:rows]
    engine = SlotEngine(model, layers, Sampling(top_p=0.95), tokens, rows)
    return list(
        engine.run(Given(recipes.jobs_at(model, plan, given, sample, turn)), lambda: False, lambda incident: print(incident.detail))
    )


def plain(network: Any, device: torch.device, replies: Sequence[Reply], layers: tuple[int, ...]) -> Means:
    """The same means from one forward pass over each conversation."""
    found = []
    for reply in replies:
        start, end = len(reply.prompt), len(reply.prompt) + len(reply.ids)
        with repeatable():
            ids = torch.tensor([[*reply.prompt, *reply.ids]], device=device)
            states = network(input_ids=ids, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states
        found.append(mean_over(states, 0, [(start, end)], layers))
    return np.stack(found).astype(np.float64)


def figures(found: Means, exact: Means) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(layers,) errors and noises."""
    error = np.linalg.norm(found - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    axes = np.random.default_rng(0).standard_normal((AXES, exact.shape[-1]))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    off, true = (found - exact) @ axes.T, exact @ axes.T
    noise = np.sqrt((off**2).mean((0, 2)) / true.var(0, ddof=1).mean(-1))
    return error.mean(0), noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, olmo3-7b, or a folder with a config.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--turn", type=int, default=4)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--scale", type=float, default=1.0, help="shortens all texts")
    asked = parser.parse_args()
    tokens = round(512 * asked.scale)
    given = world.lengths().cut(16, asked.turn, asked.scale, tokens)
    model = world.load(asked.model, asked.device, asked.dtype)
    layers = tuple(range(model.card.layers + 1))
    replies = replies_of(model, given, layers, asked.turn, asked.rows, tokens)
    slots = np.stack([reply.residual for reply in replies if reply.residual is not None]).astype(np.float64)
    same = plain(model.network, model.device, replies, layers)
    exact = plain(copy.deepcopy(model.network).float(), model.device, replies, layers)
    longest = max(len(reply.prompt) + len(reply.ids) for reply in replies)
    print(
        f"{asked.model} in {model.dtype} on {model.device.type}: {len(replies)} replies at turn {asked.turn}, conversations of up to {longest} tokens"
    )
    print(f"{'layer':>6}{'slots error':>14}{'plain error':>14}{'slots noise':>14}{'plain noise':>14}")
    columns = zip(*figures(slots, exact), *figures(same, exact), strict=True)
    for layer, (slots_error, slots_noise, plain_error, plain_noise) in zip(layers, columns, strict=True):
        if layer % max(1, model.card.layers // 8) == 0:
            print(f"{layer:>6}{slots_error:>14.5f}{plain_error:>14.5f}{slots_noise:>14.5f}{plain_noise:>14.5f}")


if __name__ == "__main__":
    main()
