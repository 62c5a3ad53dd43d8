"""What a device does, measured in a few seconds: a copy, a matrix product, an attention, and decode steps of a network so small that only the starting of
its operations costs anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from drift_cli.engine.slots import Slots


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
    slot_step: float
    """The same for slots on torch kernels, for the number of rows asked for."""
    slot_read: float
    """Bytes/s of keys and values that such a step reads."""
    chunk: float
    """Seconds to encode a few tokens in such slots, per decoder block."""
    draw: float
    """Seconds to draw a token for each row from logits over the vocabulary asked for."""


def measure_speeds(device: torch.device, dtype: torch.dtype, rows: int = 8, vocabulary: int = 32768) -> Speeds:
    """Time a copy, a product, an attention and a few decode steps of `rows` rows on the device."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    # Large enough that caches and launches do not count, small enough to take a moment.
    gpu = device.type == "cuda"
    large = torch.zeros((2 << 30) if gpu else (64 << 20), dtype=torch.uint8, device=device)
    side = 8192 if gpu else 1024
    square = torch.randn(side, side, device=device).to(dtype)
    heads, tokens, width = 4, 1024, 64
    query = torch.randn(1, heads, tokens, width, device=device).to(dtype)
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()[None, None]
    into = torch.empty_like(large)
    copy = _fastest(device, lambda: into.copy_(large))
    product = _fastest(device, lambda: square @ square)
    attention = _fastest(device, lambda: scaled_dot_product_attention(query, query, query, attn_mask=mask))
    slot_step, slot_read, chunk = _slot_seconds(device, str(dtype).removeprefix("torch."), rows)
    return Speeds(
        bandwidth=2 * large.numel() / copy,
        flops=2 * side**3 / product,
        attention=4 * tokens**2 * heads * width / attention,
        step=_step_seconds(device, dtype),
        slot_step=slot_step,
        slot_read=slot_read,
        chunk=chunk,
        draw=_draw_seconds(device, rows, vocabulary),
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


_STEPS = 64
"""As many tokens have replies that are timed, at the most."""
_SHORT, _LONG, _PIECE = 16, 1040, 520
"""Tokens that rows hold while their steps are timed, and how many of them are encoded at once: what the difference takes is reading."""


def _slot_seconds(device: torch.device, dtype: str, rows: int) -> tuple[float, float, float]:
    """(a step of `rows` slots on torch kernels per block, bytes/s that it reads of what rows keep, a short chunk per block)."""
    from drift_cli import models
    from drift_cli.engine.slots import make_slots
    from drift_cli.spec import Sampling

    model = models.load(models.describe(models.DEMO), dtype=dtype, device=str(device))
    layers = model.card.layers
    slots = make_slots(model, (layers,), Sampling(), _STEPS, rows, backend="torch")
    try:
        chunk = _fastest(device, lambda: slots.encode(0, [1] * _SHORT, 0, _SHORT), tries=3)
        short, long = (_slot_step_seconds(device, slots, tokens) for tokens in (_SHORT, _LONG))
        kept = rows * (slots.layout.held(_LONG, 0, slack=0) - slots.layout.held(_SHORT, 0, slack=0))
        size = next(model.network.parameters()).itemsize
    finally:
        slots.close()
    return short / layers, kept * size / max(long - short, 1e-9), chunk / layers


def _slot_step_seconds(device: torch.device, slots: Slots, tokens: int) -> float:
    """A step where every row holds `tokens` tokens."""
    from drift_cli.engine.plan import Draw
    from drift_cli.spec import Cell, Rollout

    for row in range(slots.rows):
        for start in range(0, tokens, _PIECE):
            slots.encode(row, [1] * min(_PIECE, tokens - start), start, 0)
        slots.begin(row, Draw(Rollout(Cell("t", "c", 0.0), row), 1, 0, tokens, 10**6, True))
    slots.step()
    return _fastest(device, lambda: _steps(slots, 8)) / 8


def _steps(slots: Slots, times: int) -> None:
    for _ in range(times):
        slots.step()


def _draw_seconds(device: torch.device, rows: int, vocabulary: int) -> float:
    import torch

    from drift_cli.engine.sampling import draw, uniforms
    from drift_cli.spec import Sampling

    logits = torch.randn(rows, vocabulary, device=device)
    heat = torch.ones(rows, device=device)
    counts = torch.arange(rows, device=device)
    keys = torch.ones(rows, 2, dtype=torch.long, device=device)
    return _fastest(device, lambda: draw(logits, heat, uniforms(keys, counts, counts, counts), Sampling(top_p=0.95)).tolist())


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
