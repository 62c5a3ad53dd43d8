"""What plain slots are made of: pages that stay together, rings, and chunks in bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jobs import jobs, run
from numpy.typing import NDArray

from drift_cli.engine.attention import installed
from drift_cli.engine.plain import attention as plain_attention
from drift_cli.engine.plain.attention import ATTENTION, Keeper, put
from drift_cli.engine.plain.pages import PAGE, Shelf, Table
from drift_cli.engine.plain.ring import Ring
from drift_cli.engine.plain.slots import PlainSlots
from drift_cli.engine.plain.step import added
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import SLACK, Draw
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Rollout, Sampling

KEY = torch.zeros(1, 2, 1, 3)
"""As a network hands keys and values over: (rows, kv heads, tokens, width)."""


def test_a_rows_pages_add_up_to_the_same_bits_whatever_the_longest_row_has() -> None:
    parts = torch.rand(1000, 2, 3, generator=torch.Generator().manual_seed(0)) * (torch.arange(1000) > 0)[:, None, None]
    for own in range(1, 40):
        sums = []
        for others in (1, 3, 17, 60):
            table = Table(2)
            table.reserve(0, own * PAGE)
            table.reserve(1, others * PAGE)
            sums.append(added(parts, torch.from_numpy(table.order()))[0])
        assert all(torch.equal(sums[0], other) for other in sums[1:]), own


@torch.inference_mode()
def _write(shelf: Shelf, row: int, start: int, end: int, value: float) -> None:
    shelf.table.reserve(row, end)
    pool = shelf.pool(0, KEY, KEY)
    pages, places = (torch.tensor(kind) for kind in shelf.table.places(row, start, end))
    told = (value + torch.arange(start, end, dtype=torch.float32))[:, None, None].expand(-1, 2, 3)
    pool.write(pages, places, told, -told)


def _held(shelf: Shelf, row: int) -> NDArray[np.float32]:
    """What a row's pages hold, in order: of the keys, one number a token."""
    keys, values = shelf.pools[0].read(torch.tensor(shelf.table.pages[row], dtype=torch.long))
    assert torch.equal(keys, -values)
    return np.asarray(keys[0, :, 0].numpy())


@pytest.mark.parametrize("window", [0, 100])
def test_pages_in_use_stay_the_first_ones_and_every_row_keeps_its_own(window: int) -> None:
    draw, rows = np.random.default_rng(7), 6
    shelf, told = Shelf(rows, window), [0] * rows
    for _ in range(400):
        row = int(draw.integers(rows))
        if draw.random() < 0.15:
            shelf.release(row)
            told[row] = 0
            continue
        more = int(draw.integers(1, 300))
        _write(shelf, row, told[row], told[row] + more, 10_000.0 * row)
        shelf.trim(row, told[row])
        kept = max(0, told[row] - window + 1 - SLACK) if window else 0
        told[row] += more
        assert shelf.table.first[row] == kept // PAGE
        for other in range(rows):
            first = shelf.table.first[other] * PAGE
            held = _held(shelf, other)[: max(0, told[other] - first)]
            assert held.tolist() == [10_000.0 * other + at for at in range(first, told[other])]
        used = sum(map(len, shelf.table.pages))
        assert shelf.table.count <= 1 + used + max(4, shelf.table.count // 32)
    assert window == 0 or max(map(len, shelf.table.pages)) * PAGE < window + SLACK + 300 + 2 * PAGE


@torch.inference_mode()
def test_a_ring_holds_what_the_next_tokens_may_see() -> None:
    window, shelf, ring = 100, Shelf(2, 100), Ring(2, 100)
    _write(shelf, 1, 0, 530, 0.0)
    ring.follow(1, shelf, 530)
    for at in range(530, 760):
        key = torch.full((2, 2, 1, 3), float(at))
        seen = ring.attend(0, torch.zeros(2, 2, 1, 3), key, key, ring.turn([0, at]), 1.0)
        assert sorted(ring.keys[0][1, 0, :, 0].tolist()) == [float(place) for place in range(at - window + 1, at + 1)]
        assert seen.shape == (2, 1, 2, 3)
    _write(shelf, 0, 0, 30, 0.0)
    ring.follow(0, shelf, 30)
    key = torch.full((2, 2, 1, 3), 30.0)
    # Equal scores: the mean of the values seen, and values are keys with the sign turned but for the newest.
    seen = ring.attend(0, torch.zeros(2, 2, 1, 3), key, key, ring.turn([30, 0]), 1.0)
    assert seen[0, 0, 0, 0].item() == pytest.approx((30.0 - sum(range(30))) / 31)


@pytest.mark.parametrize("name", ["olmo3", "gemma"])
def test_windows_too_wide_for_a_ring_give_the_plain_engines_tokens(
    name: str, loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_attention, "NARROW", 0)
    model, filters = loaded[name], Sampling(top_p=0.9)
    plain = run(ReferenceEngine(model, (1,), filters, 12, 4), jobs(model))
    slots = run(SlotEngine(model, (1,), filters, 12, 4), jobs(model))
    assert {key: reply.ids for key, reply in slots.items()} == {key: reply.ids for key, reply in plain.items()}


@pytest.mark.parametrize("name", ["olmo3", "llama", "qwen3", "gemma"])
def test_a_long_chunk_gives_a_plain_forwards_logits(name: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    ids = torch.randint(4, 60, (1, min(700, model.card.context)), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = model.network(input_ids=ids, use_cache=False).logits[0]
    keeper = Keeper()
    with installed(model, ATTENTION, keeper.attend):
        first, second = (put(model, keeper, 0, a, ids[:, a:b]).logits[0] for a, b in ((0, 90), (90, ids.shape[1])))
    assert torch.allclose(torch.cat([first, second]), plain, atol=1e-4, rtol=1e-4)


def test_rows_that_left_cost_the_others_nothing(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    slots = PlainSlots(model, (), Sampling(), 4)
    try:
        for row in range(4):
            slots.encode(row, [5] * 600, 0, 0)
        for row in range(3):
            slots.free(row)
        slots.begin(3, Draw(Rollout(Cell("t", "c", 1.0), 0), 1, 7, 600, 8, forced=True))
        slots.step()
        shelf = slots.keeper.shelves[0]
        assert shelf.table.count <= 1 + 10 + 4
        assert slots.keeper.rings
    finally:
        slots.close()


def test_a_ring_does_not_go_on_with_another_conversation_of_the_same_length(loaded: dict[str, LoadedModel]) -> None:
    model, rings = loaded["olmo3"], []
    for before in ([], [5] * 600):
        slots = PlainSlots(model, (), Sampling(), 1)
        try:
            for ids in [before, [9] * 603]:
                if ids:
                    slots.encode(0, ids, 0, 0)
                    slots.begin(0, Draw(Rollout(Cell("t", "c", 0.0), 0), 1, 7, len(ids), 9, forced=True))
                    for _ in range(3):
                        slots.step()
            rings += [ring.keys for ring in slots.keeper.rings.values()]
        finally:
            slots.close()
    assert all(torch.equal(rings[0][layer], rings[1][layer]) for layer in rings[0])
