"""One uniform per token, and the draw it makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from drift_cli.engine.sampling import draw, filtered, noise_key, philox, split_key, uniforms
from drift_cli.spec import Cell, Sampling

# Known answers of Philox4x32-10 published with Random123 (Salmon et al. 2011): counter, key, output.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_generator_gives_the_published_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    assert philox(torch.tensor([key]), torch.tensor([counter])).tolist() == [expected]


def _one(key: int, sample: int, turn: int, token: int) -> float:
    return float(uniforms(torch.tensor([split_key(key)]), torch.tensor([sample]), torch.tensor([turn]), torch.tensor([token]))[0])


@given(st.integers(0, 2**64 - 1), st.integers(0, 9999), st.integers(1, 99), st.integers(0, 4095))
@settings(max_examples=50, deadline=None)
def test_a_row_has_the_same_uniform_alone_and_in_any_batch(key: int, sample: int, turn: int, token: int) -> None:
    rows = 7
    keys = torch.tensor([split_key((key + i) % 2**64) for i in range(rows)])
    batch = uniforms(keys, torch.full((rows,), sample), torch.full((rows,), turn), torch.full((rows,), token))
    alone = [_one((key + i) % 2**64, sample, turn, token) for i in range(rows)]
    assert batch.tolist() == alone
    assert all(0.0 <= u < 1.0 for u in alone)


def test_uniforms_are_uniform() -> None:
    n = 40_000
    u = uniforms(
        torch.tensor([split_key(5)]).expand(n, 2), torch.arange(n), torch.ones(n, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    )
    counts = np.histogram(u.numpy(), bins=20, range=(0, 1))[0]
    chi2 = float(((counts - n / 20) ** 2 / (n / 20)).sum())
    assert chi2 < 43.8  # the 99.9 % quantile of chi-squared with 19 degrees of freedom


def test_conditions_share_noise_unless_it_is_independent() -> None:
    a, b = Cell("t", "baseline", 0.5), Cell("t", "simple", 0.5)
    assert noise_key(1, a, independent=False) == noise_key(1, b, independent=False)
    assert noise_key(1, a, independent=True) != noise_key(1, b, independent=True)
    assert noise_key(1, a, independent=False) != noise_key(2, a, independent=False)
    assert noise_key(1, a, independent=False) != noise_key(1, Cell("other", "baseline", 0.5), independent=False)


def test_draws_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    u = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    drawn = draw(logits.expand(8, 4), torch.ones(8), u, Sampling())
    assert drawn.tolist() == [0, 0, 0, 0, 1, 1, 2, 3]


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert draw(logits, torch.tensor([0.0, 0.0]), torch.tensor([0.999, 0.999], dtype=torch.float64), Sampling()).tolist() == [1, 0]


def test_a_uniform_next_to_one_never_draws_a_filtered_token() -> None:
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    u = torch.full((64,), 1.0 - 2.0**-53, dtype=torch.float64)
    drawn = draw(logits, torch.ones(64), u, Sampling(top_k=5))
    allowed = filtered(logits, torch.ones(64), Sampling(top_k=5)) > 0
    assert bool(allowed.gather(1, drawn[:, None]).all())


@pytest.mark.parametrize(
    ("filters", "warper"),
    [
        (Sampling(top_k=7), TopKLogitsWarper(7)),
        (Sampling(top_p=0.8), TopPLogitsWarper(0.8)),
        (Sampling(top_p=0.05), TopPLogitsWarper(0.05)),
        (Sampling(min_p=0.1), MinPLogitsWarper(0.1)),
    ],
)
def test_filters_keep_what_transformers_keeps(filters: Sampling, warper: object) -> None:
    logits = 3 * torch.randn(50, 200, generator=torch.Generator().manual_seed(3))
    theirs = warper(None, logits.clone())  # type: ignore[operator]
    expected = torch.softmax(theirs, -1)
    ours = filtered(logits, torch.ones(50), filters)
    assert torch.allclose(ours / ours.sum(-1, keepdim=True), expected, atol=1e-6)
