"""Batches of the corpus, made by several processes. Batch k of a seed is the same however many processes there are."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drift_cli.demo_model import corpus, tokens

LENGTHS, SHARES = (256, 768, 2048, 4096), (30, 30, 25, 15)
"""Conversations of a batch are about equally long; shares are of batches."""


class Batch(NamedTuple):
    """Ids (rows, length) int16 and weights (rows, length) float16: how much each token counts as something to be predicted."""

    ids: NDArray[np.int16]
    weights: NDArray[np.float16]


@dataclass(frozen=True)
class Plan:
    """Which batches."""

    seed: int
    tokens: int
    """Per batch, padding included."""
    tokenizer: str
    """As JSON, so that every process has the same one."""


def stream(plan: Plan, count: int, processes: int) -> Iterator[Batch]:
    """Batches 0 to count - 1 in order; `processes` 0 makes them here."""
    if processes == 0:
        _start(plan.tokenizer)
        yield from map(partial(_batch, plan.seed, plan.tokens), range(count))
        return
    with multiprocessing.get_context("fork").Pool(processes, _start, (plan.tokenizer,)) as pool:
        yield from pool.imap(partial(_batch, plan.seed, plan.tokens), range(count))


_encoders: list[tokens.Encoder] = []


def _start(tokenizer: str) -> None:
    from tokenizers import Tokenizer

    _encoders[:] = [tokens.Encoder(Tokenizer.from_str(tokenizer))]


def _batch(seed: int, size: int, index: int) -> Batch:
    random, encoder = Random(f"{seed}/batch/{index}"), _encoders[0]
    length = random.choices(LENGTHS, SHARES)[0]
    rows = [encoder.row(corpus.fit(random, length, encoder.size), length) for _ in range(max(1, size // length))]
    return Batch(np.stack([ids for ids, _ in rows]), np.stack([weights for _, weights in rows]))
