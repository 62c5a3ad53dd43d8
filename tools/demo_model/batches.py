"""Batches of the corpus, made by several processes. Batch k of a seed is the same however many processes there are."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np

from tools.demo_model import corpus, encoder
from tools.demo_model.encoder import Row

LENGTHS, SHARES = (256, 768, 2048, 4096), (30, 30, 25, 15)
"""Conversations of a batch are about equally long; shares are of batches."""


@dataclass(frozen=True)
class Plan:
    """Which batches."""

    seed: int
    tokens: int
    """Per batch, padding included."""
    tokenizer: str
    """As JSON, so that every process has the same one."""


def stream(plan: Plan, count: int, processes: int) -> Iterator[Row]:
    """Batches 0 to count - 1 in order; `processes` 0 makes them here."""
    if processes == 0:
        _start(plan.tokenizer)
        yield from map(partial(_batch, plan.seed, plan.tokens), range(count))
        return
    with multiprocessing.get_context("fork").Pool(processes, _start, (plan.tokenizer,)) as pool:
        yield from pool.imap(partial(_batch, plan.seed, plan.tokens), range(count))


_encoders: list[encoder.Encoder] = []


def _start(tokenizer: str) -> None:
    from tokenizers import Tokenizer

    _encoders[:] = [encoder.Encoder(Tokenizer.from_str(tokenizer))]


def _batch(seed: int, size: int, index: int) -> Row:
    random, encoder = Random(f"{seed}/batch/{index}"), _encoders[0]
    length = random.choices(LENGTHS, SHARES)[0]
    rows = [encoder.row(corpus.fit(random, length, encoder.size), length) for _ in range(max(1, size // length))]
    return Row(*map(np.stack, zip(*rows, strict=True)))
