"""The torch kernels: pages that stay together, rings, and chunks in bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jobs import jobs, run
from numpy.typing import NDArray

from drift_cli.engine.kernels.torch import backend as torch_backend
from drift_cli.engine.kernels.torch.backend import TorchKernels
from drift_cli.engine.kernels.torch.pools import Pool
from drift_cli.engine.kernels.torch.ring import Ring
from drift_cli.engine.kernels.torch.step import Owners, added
from drift_cli.engine.layout import PAGE, SLACK, Layout
from drift_cli.engine.pages import Pages
from drift_cli.engine.plan import Draw
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import make_slots
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Rollout, Sampling

KEY = torch.zeros(1, 2, 1, 3)
"""As a network hands keys and values over: (rows, kv heads, tokens, width)."""


def test_a_rows_pages_add_up_to_the_same_bits_whatever_the_longest_row_has() -> None:
    parts = torch.rand(1000, 2, 3, generator=torch.Generator().manual_seed(0)) * (torch.arange(1000) > 0)[:, None, None]
    for own in range(1, 40):
        sums = []
        for others in (1, 3, 17, 60):
            pages = Pages((0,), 2)
            pages.reserve(0, own * PAGE)
            pages.reserve(1, others * PAGE)
            sums.append(added(parts, Owners.of(pages, 0).order)[0])
        assert all(torch.equal(sums[0], other) for other in sums[1:]), own


def test_a_rows_pages_add_up_to_the_same_bits_whatever_was_given_back_of_its_beginning() -> None:
    parts = torch.rand(100, 2, 3, generator=torch.Generator().manual_seed(0))
    pages = Pages((PAGE,), 1)
    pages.reserve(0, 40 * PAGE)
    parts[:22] = 0.0
    whole = added(parts, Owners.of(pages, 0).order)
    for start in range(0, 23 * PAGE, PAGE // 2):
        pages.trim(0, start)
        order = Owners.of(pages, 0).order
        assert torch.equal(added(parts * (torch.arange(100) > 0)[:, None, None], order), whole)
    assert pages.kept[0, 0] == 20


class _Held:
    """One layer's pages, and what tests write into them."""

    def __init__(self, model: LoadedModel, rows: int, window: int) -> None:
        self.kernels = TorchKernels(model, Layout((window,), (2,), ((3, 3),)), rows)
        self.pages = self.kernels.pages
        self.kernels.pools[0][0] = Pool(KEY, KEY)

    @property
    def pools(self) -> dict[int, Pool]:
        return self.kernels.pools[0]

    @torch.inference_mode()
    def write(self, row: int, start: int, end: int, value: float) -> None:
        self.pages.reserve(row, end)
        self.kernels.flush()
        told = (value + torch.arange(start, end, dtype=torch.float32))[:, None, None].expand(-1, 2, 3)
        self.pools[0].write(*(torch.from_numpy(kind) for kind in self.pages.of(0, row, start, end)), told, -told)

    def read(self, row: int) -> NDArray[np.float32]:
        """What a row's pages hold, in order: of the keys, one number a token."""
        kept = self.pages.held[0, row, self.pages.kept[0, row] : self.pages.upto[row]]
        keys, values = self.pools[0].read(torch.from_numpy(kept.astype("int64")))
        assert torch.equal(keys, -values)
        return np.asarray(keys[0, :, 0].numpy())


@pytest.mark.parametrize("window", [0, 100])
def test_pages_in_use_stay_the_first_ones_and_every_row_keeps_its_own(window: int, loaded: dict[str, LoadedModel]) -> None:
    draw, rows = np.random.default_rng(7), 6
    held, told = _Held(loaded["llama"], rows, window), [0] * rows
    pages = held.pages
    for _ in range(400):
        row = int(draw.integers(rows))
        if draw.random() < 0.15:
            pages.release(row)
            told[row] = 0
            continue
        more = int(draw.integers(1, 600))
        held.write(row, told[row], told[row] + more, 10_000.0 * row)
        pages.trim(row, told[row])
        held.kernels.flush()
        kept = max(0, told[row] - window + 1 - SLACK) if window else 0
        told[row] += more
        assert pages.kept[0, row] == kept // PAGE
        for other in range(rows):
            first = int(pages.kept[0, other]) * PAGE
            found = held.read(other)[: max(0, told[other] - first)]
            assert found.tolist() == [10_000.0 * other + at for at in range(first, told[other])]
        used, count = int((pages.held > 0).sum()), pages.stocks[0].count
        assert count <= 1 + used + max(4, count // 32)
    assert window == 0 or (np.asarray(pages.upto) - pages.kept[0]).max() * PAGE < window + SLACK + 600 + 2 * PAGE


@torch.inference_mode()
def test_a_ring_holds_what_the_next_tokens_may_see(loaded: dict[str, LoadedModel]) -> None:
    window, ring = 100, Ring(2, 100)
    held = _Held(loaded["llama"], 2, window)
    held.write(1, 0, 530, 0.0)
    ring.follow(1, held.pages, 0, held.pools, 530)
    for at in range(530, 760):
        key = torch.full((2, 2, 1, 3), float(at))
        seen = ring.attend(0, torch.zeros(2, 2, 1, 3), key, key, ring.step(np.array([-1, at])), 1.0)
        assert sorted(ring.keys[0][1, 0, :, 0].tolist()) == [float(place) for place in range(at - window + 1, at + 1)]
        assert seen.shape == (2, 1, 2, 3)
    held.write(0, 0, 30, 0.0)
    ring.follow(0, held.pages, 0, held.pools, 30)
    key = torch.full((2, 2, 1, 3), 30.0)
    # Equal scores: the mean of the values seen, and values are keys with the sign turned but for the newest.
    seen = ring.attend(0, torch.zeros(2, 2, 1, 3), key, key, ring.step(np.array([30, -1])), 1.0)
    assert seen[0, 0, 0, 0].item() == pytest.approx((30.0 - sum(range(30))) / 31)


@pytest.mark.parametrize("name", ["olmo3", "gemma"])
def test_windows_too_wide_for_a_ring_give_the_plain_engines_tokens(
    name: str, loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_backend, "NARROW", 0)
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
    slots, found = make_slots(model, (), Sampling(), 8, 1), []
    try:
        for start, end in ((0, 90), *((at, at + 1) for at in range(90, 100)), (100, ids.shape[1])):
            slots.encode(0, ids[0, start:end].tolist(), start, 0)
            found.append((end - 1, slots.newest(0).clone()))
    finally:
        slots.close()
    for place, logits in found:
        assert torch.allclose(logits, plain[place], atol=1e-4, rtol=1e-4)


def test_rows_that_left_cost_the_others_nothing(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    slots = make_slots(model, (), Sampling(), 8, 4)
    try:
        for row in range(4):
            slots.encode(row, [5] * 600, 0, 0)
        for row in range(3):
            slots.free(row)
        slots.begin(3, Draw(Rollout(Cell("t", "c", 1.0), 0), 1, 7, 600, 8, forced=True))
        slots.step()
        kernels = slots.kernels
        assert isinstance(kernels, TorchKernels)
        assert kernels.pages.stocks[kernels.groups[0]].count <= 1 + 5 + 4
        assert kernels.rings
    finally:
        slots.close()


def test_a_ring_does_not_go_on_with_another_conversation_of_the_same_length(loaded: dict[str, LoadedModel]) -> None:
    model, rings = loaded["olmo3"], []
    for before in ([], [5] * 600):
        slots = make_slots(model, (), Sampling(), 9, 1)
        try:
            for ids in [before, [9] * 603]:
                if ids:
                    slots.encode(0, ids, 0, 0)
                    slots.begin(0, Draw(Rollout(Cell("t", "c", 0.0), 0), 1, 7, len(ids), 9, forced=True))
                    for _ in range(3):
                        slots.step()
            assert isinstance(slots.kernels, TorchKernels)
            rings += [ring.keys for ring in slots.kernels.rings.values()]
        finally:
            slots.close()
    assert all(torch.equal(rings[0][layer], rings[1][layer]) for layer in rings[0])
