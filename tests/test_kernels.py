"""The Triton kernels against plain torch: on a GPU as they are, elsewhere in Triton's interpreter."""

from __future__ import annotations

import importlib
from types import ModuleType

import plain_kernels
import pytest
import torch

from drift_cli.engine import sampling
from drift_cli.engine.layout import PAGE
from drift_cli.spec import Sampling

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytest.importorskip("triton", reason="Triton has no build for this platform")


@pytest.fixture(scope="module")
def kernels() -> tuple[ModuleType, ModuleType]:
    return importlib.import_module("drift_cli.engine.kernels.triton.attention_kernel"), importlib.import_module(
        "drift_cli.engine.kernels.triton.draw_kernel"
    )


LENGTHS = (0, 261, 38)


@pytest.mark.parametrize(("kv", "group", "width", "window"), [(2, 2, 8, 0), (1, 4, 16, 24), (2, 3, 24, 150)])
def test_attention_over_pages_is_attention(kernels: tuple[ModuleType, ModuleType], kv: int, group: int, width: int, window: int) -> None:
    attention = kernels[0]
    draw = torch.Generator().manual_seed(kv * width + window)
    pages, layers, rows, row_pages = 12, 3, 3, 3
    pool = torch.randn((pages, layers, 2, kv, PAGE, width), generator=draw).to(DEVICE)
    table = torch.zeros((2, rows, row_pages), dtype=torch.int32, device=DEVICE)
    table[1] = (torch.randperm(pages - 1, generator=draw)[: rows * row_pages] + 1).view(rows, row_pages).int().to(DEVICE)
    address = torch.tensor([1, 2], dtype=torch.int32, device=DEVICE)
    expected = pool.clone()
    for row, length in enumerate(LENGTHS):
        key, value = (torch.randn((length, kv, width), generator=draw).to(DEVICE) for _ in range(2))
        items = (torch.full((length,), row, dtype=torch.int32, device=DEVICE), torch.arange(length, dtype=torch.int32, device=DEVICE))
        if length:
            attention.write(key, value, pool, address, table, *items)
            plain_kernels.write(key, value, expected, address, table, *items)
    assert torch.equal(pool, expected)
    places = torch.tensor([length - 1 for length in LENGTHS], dtype=torch.int32, device=DEVICE)
    query = torch.randn((rows, kv * group, width), generator=draw).to(DEVICE)
    how = (pool, address, table)
    torch.testing.assert_close(
        attention.decode(query, *how, places, 0.3, window), plain_kernels.decode(query, *how, places, 0.3, window), atol=1e-5, rtol=1e-5
    )
    tokens, counted = 64, 50
    chunk = torch.randn((tokens, kv * group, width), generator=draw).to(DEVICE)
    row = torch.ones(tokens, dtype=torch.int32, device=DEVICE)
    bounds = torch.tensor([LENGTHS[1] - counted, LENGTHS[1]], dtype=torch.int32, device=DEVICE)
    ours = attention.chunk(chunk, *how, row, bounds, 0.3, window)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours[:counted], plain_kernels.chunk(chunk, *how, row, bounds, 0.3, window)[:counted], atol=1e-5, rtol=1e-5)


def test_splits_are_joined(kernels: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    attention = kernels[0]
    draw = torch.Generator().manual_seed(5)
    pool = torch.randn((4, 1, 2, 1, PAGE, 16), generator=draw).to(DEVICE)
    table = torch.tensor([[[1, 2, 3]]], dtype=torch.int32, device=DEVICE)
    how = (pool, torch.zeros(2, dtype=torch.int32, device=DEVICE), table, torch.tensor([300], dtype=torch.int32, device=DEVICE), 0.5)
    query = torch.randn((1, 2, 16), generator=draw).to(DEVICE)
    for window in (0, 200):
        monkeypatch.setattr(attention, "SPLIT", 128)
        split = attention.decode(query, *how, window)
        torch.testing.assert_close(split, plain_kernels.decode(query, *how, window), atol=1e-5, rtol=1e-5)


FILTERS = [
    Sampling(),
    Sampling(top_p=0.9),
    Sampling(top_k=20),
    Sampling(min_p=0.05),
    Sampling(top_p=0.8, top_k=50, min_p=0.01),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_the_kernel_draws_what_is_drawn_elsewhere(kernels: tuple[ModuleType, ModuleType], filters: Sampling, dtype: torch.dtype) -> None:
    seeded = torch.Generator().manual_seed(3)
    logits = (torch.randn((8, 700), generator=seeded) * 3).to(dtype)
    heat, u = torch.tensor([0.0, 0.5, 1.0, 0.7] * 2), torch.rand(8, dtype=torch.float64, generator=seeded)
    ours = kernels[1].draw(logits.to(DEVICE), heat.to(DEVICE), u.to(DEVICE), filters)
    assert ours.tolist() == sampling.draw(logits, heat, u, filters).tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_of_logits_that_are_not_numbers_some_token_is_given(kernels: tuple[ModuleType, ModuleType], temperature: float) -> None:
    """The next step looks its embedding up before the host knows: beyond the vocabulary there is none."""
    for logits in (torch.full((1, 300), torch.nan), torch.full((1, 300), -torch.inf)):
        given = (logits.to(DEVICE), torch.tensor([temperature], device=DEVICE), torch.tensor([0.5], dtype=torch.float64, device=DEVICE))
        for made in (kernels[1].draw(*given, Sampling(top_p=0.9)), sampling.draw(*(it.cpu() for it in given), Sampling(top_p=0.9))):
            assert 0 <= int(made) < 300
