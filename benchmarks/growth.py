"""How cost grows: time of a decode step against context and rows, time of a chunk against its length, memory against context.

    python benchmarks/growth.py --model olmo3-7b --device cuda --rows 48

Prints every time beside the time in which the device could read the same bytes (or do the same operations), both measured here and now.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import world

from drift_cli.engine.contract import Incident
from drift_cli.engine.layout import Layout
from drift_cli.engine.plan import Draw
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import Slots
from drift_cli.models import LoadedModel
from drift_cli.running.speeds import measure_speeds
from drift_cli.spec import Cell, Rollout, Sampling


def say(text: str) -> None:
    print(text, flush=True)


def timed(device: torch.device, work: Callable[[], object], times: int) -> float:
    """Seconds of one call, of several in a row."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / times


def fill(slots: Slots, row: int, length: int, vocabulary: int) -> None:
    """Bring a row to `length` tokens and let it go on for as long as it may."""
    ids = np.random.default_rng(row).integers(4, vocabulary, length).tolist()
    slots.encode(row, ids, 0, 0)
    slots.begin(row, Draw(Rollout(Cell("t", "c", 0.5), row), 1, 7, length, 10**6, True))


def step_bytes(slots: Slots, model: LoadedModel, rows: int, context: int) -> float:
    """Bytes a step must read: the weights (input embeddings apart) and what each row keeps."""
    size = next(model.network.parameters()).itemsize
    embeddings = model.network.get_input_embeddings().weight.numel()
    tied = model.network.get_output_embeddings() is None or model.card.config.get_text_config().tie_word_embeddings
    seen = [context if w == 0 else min(w, context) for w in slots.layout.windows]
    kept = sum(n * h * sum(pair) for n, h, pair in zip(seen, slots.layout.heads, slots.layout.widths, strict=True))
    return (model.parameters - (0 if tied else embeddings) + rows * kept) * size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--contexts", default="512,1024,2048,3600,5600")
    parser.add_argument("--filled", default=None, help="of the rows, how many are in use: 1,4,16,48")
    parser.add_argument("--chunks", default="32,64,128,256,384,512,1024")
    parser.add_argument("--steps", type=int, default=30)
    asked = parser.parse_args()
    dtype = asked.dtype or ("bfloat16" if asked.device.startswith("cuda") else "float32")
    model = world.load(asked.model, asked.device, dtype)
    vocabulary = int(model.card.config.get_text_config().vocab_size)
    speeds = measure_speeds(model.device, getattr(torch, dtype))
    say(f"{asked.model} {dtype} on {asked.device}: copies {speeds.bandwidth / 1e9:.0f} GB/s, multiplies {speeds.flops / 1e12:.1f} TFLOP/s")
    engine = SlotEngine(model, (model.card.layers * 2 // 3,), Sampling(top_p=0.95), 512, asked.rows, longest=12288)
    notes: list[Incident] = []
    took = timed(model.device, lambda: engine.prepare(notes.append), 1)
    say(f"set-up {took:.1f} s: {'; '.join(note.detail for note in notes)}")
    slots = engine.prepare(notes.append)
    contexts = [int(n) for n in asked.contexts.split(",")]
    size = next(model.network.parameters()).itemsize
    full = Layout(tuple(0 for _ in slots.layout.windows), slots.layout.heads, slots.layout.widths)
    for context in [*contexts, 4 * contexts[-1]]:
        kept, whole = slots.layout.held(context, 0), full.held(context, 0)
        say(f"memory: a row of {context} tokens keeps {kept * size / 1e6:.1f} MB, {kept / whole:.2f} of what it would without windows")
    for filled in [int(n) for n in (asked.filled or str(asked.rows)).split(",")]:
        for context in contexts:
            for row in range(filled):
                fill(slots, row, context, vocabulary)
            for _ in range(4):
                slots.step()
                slots.ended()
            seconds = timed(model.device, lambda: (slots.step(), slots.ended()), asked.steps)
            least = step_bytes(slots, model, filled, context + asked.steps // 2) / speeds.bandwidth
            say(
                f"step: {filled} of {asked.rows} rows at {context} tokens {seconds * 1e3:.2f} ms, bytes {least * 1e3:.2f} ms, {seconds / least:.2f}"
            )
            for row in range(filled):
                slots.free(row)
    context = contexts[len(contexts) // 2]
    for size in [int(n) for n in asked.chunks.split(",")]:
        ids = np.random.default_rng(0).integers(4, vocabulary, context + size).tolist()
        slots.encode(0, ids[:context], 0, 0)
        chunk = ids[context:]

        def encode(chunk: list[int] = chunk, start: int = context) -> None:
            slots.encode(0, chunk, start, len(chunk))

        encode()
        seconds = timed(model.device, encode, 10)
        least = max(2 * model.parameters * size / speeds.flops, step_bytes(slots, model, 1, context) / speeds.bandwidth)
        say(f"chunk: {size} tokens behind {context} {seconds * 1e3:.2f} ms, least {least * 1e3:.2f} ms, {seconds / least:.2f}")
        slots.free(0)
    engine.close()


if __name__ == "__main__":
    main()
