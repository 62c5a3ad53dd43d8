"""How long a run will take and what will not fit, before it starts.

Prompts are rendered by the real chat format; replies are taken to be as long as they may be, so the time is an upper estimate. The cost of the plain
engine is: every prompt encoded once per turn to generate and once more, with its reply, to measure (2 operations per parameter and token, and attention
over all pairs of tokens), and per token one pass over the weights and the keys and values so far, but never less than starting a block's operations takes.
Speeds are measured on the device in a few seconds: a copy, a matrix product, an attention, and decode steps of a network so small that only the starting
costs anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from drift_cli.chat import Chat
from drift_cli.spec import Cell, Condition, Transcript
from drift_cli.store.manifest import Manifest
from drift_cli.store.run import RolloutState

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Speeds:
    """What a device does."""

    bandwidth: float
    """Bytes/s, read and written, of a copy."""
    flops: float
    """Operations/s of a matrix product."""
    attention: float
    """Operations/s of a masked attention."""
    step: float
    """Seconds of one decode step per decoder block, however small."""


@dataclass(frozen=True)
class Fit:
    """Whether a cell's conversations fit the context. Turns count from 1; None where it never happens."""

    cell: Cell
    prompt_lengths: tuple[int, ...]
    """Tokens of each turn's prompt if every reply before it were empty."""
    certain: int | None
    """The first turn that cannot fit even if every reply is empty: every rollout ends there with `finish="context"`."""
    possible: int | None
    """The first turn that may not fit if every reply is as long as it may be."""


def fits(manifest: Manifest, chat: Chat, context: int) -> list[Fit]:
    """Foresee, for every cell of a plan, where its prompts outgrow `context` tokens."""
    lengths: dict[tuple[str, str], tuple[int, ...]] = {}
    found = []
    for plan in manifest.cells:
        cell = plan.cell
        key = (cell.transcript, cell.condition)
        if key not in lengths:
            lengths[key] = prompt_lengths(chat, manifest.transcripts[cell.transcript], manifest.conditions[cell.condition])
        found.append(_fit(cell, lengths[key], manifest.spec.max_new_tokens, context))
    return found


def prompt_lengths(chat: Chat, script: Transcript, condition: Condition) -> tuple[int, ...]:
    """Tokens of each turn's prompt if every reply before it were empty."""
    users = script.users
    return tuple(len(chat.prompt(users[:turn], [""] * (turn - 1), condition)) for turn in range(1, len(users) + 1))


def _fit(cell: Cell, lengths: tuple[int, ...], reply: int, context: int) -> Fit:
    certain = next((turn for turn, length in enumerate(lengths, 1) if length + reply > context), None)
    possible = next((turn for turn, length in enumerate(lengths, 1) if length + turn * reply > context), None)
    return Fit(cell, lengths, certain, possible)


def seconds(
    states: Sequence[RolloutState], lengths: Sequence[Fit], manifest: Manifest, speeds: Speeds, batch: int, weight_bytes: int
) -> float:
    """Upper estimate, in seconds, for what is left of a plan on the plain engine."""
    assert manifest.model is not None
    by_cell = {fit.cell: fit.prompt_lengths for fit in lengths}
    model, reply = manifest.model, manifest.spec.max_new_tokens
    per_token = 2.0 * model.parameters / speeds.flops
    step_seconds = max(weight_bytes / speeds.bandwidth, model.layers * speeds.step)
    kv_bytes = 4.0 * model.layers * model.width  # keys and values at 2 bytes a number; fewer with grouped queries
    total = 0.0
    for _, group in groupby(enumerate(states), key=lambda item: item[0] // batch):
        rows = [state for _, state in group if not state.ended]
        for turn in range(min((row.done for row in rows), default=0), max((row.total for row in rows), default=0)):
            prompts = [by_cell[row.rollout.cell][turn] + turn * reply for row in rows if row.done <= turn < row.total]
            longest = max(prompts)
            encoded = len(prompts) * longest + sum(prompts) + reply * len(prompts)
            pairs = len(prompts) * longest**2 + sum((prompt + reply) ** 2 for prompt in prompts)
            total += encoded * per_token + 4.0 * pairs * model.width * model.layers / speeds.attention
            total += reply * (step_seconds + len(prompts) * longest * kv_bytes / speeds.bandwidth)
            total += (1 + len(prompts)) * model.layers * speeds.step
    return total


def measure_speeds(device: torch.device, dtype: torch.dtype) -> Speeds:
    """Time a copy, a product, an attention and a few decode steps on the device."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    large = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    square = torch.randn(1024, 1024, device=device).to(dtype)
    heads, tokens, width = 4, 1024, 64
    query = torch.randn(1, heads, tokens, width, device=device).to(dtype)
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()[None, None]
    copy = _fastest(device, large.clone)
    product = _fastest(device, lambda: square @ square)
    attention = _fastest(device, lambda: scaled_dot_product_attention(query, query, query, attn_mask=mask))
    return Speeds(
        bandwidth=2 * large.numel() / copy,
        flops=2 * 1024**3 / product,
        attention=4 * tokens**2 * heads * width / attention,
        step=_step_seconds(device, dtype),
    )


def _step_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Decode steps of the built-in network, per block: it is so small that its time is the starting of operations."""
    import torch
    from transformers import GenerationConfig

    from drift_cli.demo_model import LAYERS, network

    tiny = network().to(device=device, dtype=dtype).eval()
    ids = torch.ones(8, 16, dtype=torch.long, device=device)
    steps = 24
    config = GenerationConfig(do_sample=False, max_new_tokens=steps, min_new_tokens=steps, eos_token_id=0, pad_token_id=0)
    with torch.inference_mode():
        took = _fastest(device, lambda: tiny.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config), tries=3)
    return took / steps / LAYERS


def _fastest(device: torch.device, work: Callable[[], object], tries: int = 5) -> float:
    import torch

    best = float("inf")
    for _ in range(tries):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
