"""Slots on Triton kernels against slots on torch ones. On a machine without a GPU plain torch stands for the kernels, and graphs do their work at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import plain_kernels
import pytest
import tiny
import torch
from jobs import advance, jobs, never, replies, run, same_bits, talk_of, text
from thinking import ForgettingChat, ThinkingChat, check_means, means_of, thinking

from drift_cli import models
from drift_cli.engine import slots as slots_module
from drift_cli.engine.contract import Incident
from drift_cli.engine.kernels.triton import backend as triton_backend
from drift_cli.engine.layout import PAGE
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import Slots, make_slots
from drift_cli.models import LoadedModel
from drift_cli.probe import pool_parts
from drift_cli.spec import Finish, Part, Rollout, Sampling, Segment, SegmentKind

GPU = torch.cuda.is_available()
TOKENS = 12
ARCHITECTURES = list(tiny.ARCHITECTURES)
Key = tuple[Rollout, int]


@pytest.fixture(scope="module")
def models_here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    root = tmp_path_factory.mktemp("paged")
    device = "cuda" if GPU else "cpu"
    return {name: models.load(models.describe(str(tiny.save(name, root / name))), dtype="float32", device=device) for name in ARCHITECTURES}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not GPU:
        monkeypatch.setattr(triton_backend, "_kernels", lambda: plain_kernels)
    return


class On(SlotEngine):
    """Slots on one kind of kernels, whatever the device."""

    backend = "triton"

    def prepare(self, report: object) -> Slots:
        if self.slots is None:
            asked = (self.model, self.layers, self.filters, self.max_new_tokens, self.batch)
            self.slots = make_slots(*asked, longest=self.longest, segmented=self.segmented, backend=self.backend)
        return self.slots


class Paged(On):
    """On Triton kernels."""


class Plain(On):
    """On torch kernels."""

    backend = "torch"


def _engine(kind: type[SlotEngine], model: LoadedModel, *, batch: int = 4, tokens: int = TOKENS, segmented: bool = False) -> SlotEngine:
    return kind(model, tuple(range(model.card.layers + 1)), Sampling(top_p=0.9), tokens, batch, 1024, segmented)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_paged_slots_give_the_plain_slots_tokens_and_residuals(name: str, models_here: dict[str, LoadedModel]) -> None:
    model = models_here[name]
    plain, paged = run(_engine(Plain, model), jobs(model)), run(_engine(Paged, model), jobs(model))
    assert {key: reply.ids for key, reply in paged.items()} == {key: reply.ids for key, reply in plain.items()}
    for key, reply in plain.items():
        assert (paged[key].prompt, text(paged[key]), paged[key].finish) == (reply.prompt, text(reply), reply.finish)
        if reply.residual is None:
            assert paged[key].residual is None
            continue
        error = np.linalg.norm(paged[key].residual - reply.residual, axis=1) / np.linalg.norm(reply.residual, axis=1)
        assert error.max() < 1e-4


@pytest.mark.parametrize("name", ["olmo3", "qwen3"])
def test_company_order_and_interruptions_do_not_change_a_bit(name: str, models_here: dict[str, LoadedModel]) -> None:
    model = models_here[name]
    first = run(_engine(Paged, model), jobs(model))
    assert same_bits(first, run(_engine(Paged, model), jobs(model)[::-1]))
    todo = jobs(model)
    for place, job in enumerate(todo):
        for turn in range(1, 2 + place % 2):
            advance(job, first[job.rollout, turn].ids)
    left = {(job.rollout, turn) for job in todo for turn in range(job.turn, talk_of(job).total + 1)}
    assert same_bits(run(_engine(Paged, model), todo), {key: first[key] for key in left})


def test_too_few_pages_for_all_rows_make_some_wait_and_change_nothing(
    models_here: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models_here["olmo3"]
    expected = run(_engine(Paged, model), jobs(model))
    # Conversations come to have 2 or 3 pages in each of 4 groups: room for two of them, not for four.
    monkeypatch.setattr(slots_module, "page_count", lambda *args: 26)
    incidents: list[Incident] = []
    got = [*replies(_engine(Paged, model), jobs(model), never, incidents.append)]
    assert same_bits({(reply.rollout, reply.turn): reply for reply in got}, expected)
    assert "no-room" in {incident.kind for incident in incidents}


def test_a_conversation_that_memory_cannot_hold_ends_as_for_context(
    models_here: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models_here["olmo3"]
    monkeypatch.setattr(slots_module, "page_count", lambda *args: 5)
    got = [*replies(_engine(Paged, model), jobs(model, samples=1), never, lambda incident: None)]
    ends = [reply for reply in got if reply.finish is Finish.CONTEXT]
    assert len(ends) == 2
    assert all(len(reply.prompt) + TOKENS > PAGE for reply in ends)


def test_replies_of_given_lengths(models_here: dict[str, LoadedModel]) -> None:
    model = models_here["llama"]
    todo = [
        replace(job, lengths=tuple(1 + (place + turn) % TOKENS for turn in range(talk_of(job).total)))
        for place, job in enumerate(jobs(model))
    ]
    wanted = {(job.rollout, turn + 1): length for job in todo for turn, length in enumerate(job.lengths or ())}
    assert {key: len(reply.ids) for key, reply in run(_engine(Paged, model), todo).items()} == wanted


@pytest.mark.parametrize("chat", [ThinkingChat, ForgettingChat])
def test_the_means_of_all_parts_are_the_plain_slots_and_a_direct_forwards(
    chat: type[ThinkingChat], models_here: dict[str, LoadedModel]
) -> None:
    model = models_here["olmo3"]
    plain = run(_engine(Plain, model, segmented=True), thinking(jobs(model), chat))
    paged = run(_engine(Paged, model, segmented=True), thinking(jobs(model), chat))
    assert {key: (reply.ids, reply.segments) for key, reply in paged.items()} == {
        key: (reply.ids, reply.segments) for key, reply in plain.items()
    }
    assert {"plain", "both", "no answer"} <= set(check_means(model, paged, 1e-4))
    for key, reply in plain.items():
        found, expected = means_of(paged[key]), means_of(reply)
        assert set(found) == set(expected)
        assert all(np.linalg.norm(found[part] - expected[part]) < 1e-4 * np.linalg.norm(expected[part]) for part in expected)


def test_graphs_with_sums_of_parts_give_replies_without_segments_the_bits_of_graphs_without(models_here: dict[str, LoadedModel]) -> None:
    model = models_here["olmo3"]
    plain, parted = (run(_engine(Paged, model, segmented=segmented), jobs(model, samples=1)) for segmented in (False, True))
    assert same_bits(plain, parted)
    with pytest.raises(ValueError, match="made for replies without"):
        run(_engine(Paged, model), thinking(jobs(model, samples=1)))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_parts_of_a_reply_that_is_cut_into_pieces_add_up(backend: str, models_here: dict[str, LoadedModel]) -> None:
    model, layers = models_here["gemma"], (0, 2)
    ids = torch.randint(4, 60, (640,), generator=torch.Generator().manual_seed(2)).tolist()
    before, counted = 40, 580
    segments = (
        Segment(SegmentKind.REASONING, 3, 500),
        Segment(SegmentKind.ANSWER, 502, 530),
        Segment(SegmentKind.REASONING, 530, 540),
        Segment(SegmentKind.ANSWER, 541, 580),
    )
    slots = make_slots(model, layers, Sampling(), 8, 2, longest=1024, segmented=True, backend=backend)
    try:
        slots.encode(1, ids[:before], 0, 0)
        found = slots.encode(1, ids[before:], before, counted, segments=segments)
        assert found is not None
        means = found.value()
    finally:
        slots.close()
    with torch.inference_mode():
        states = model.network(input_ids=torch.tensor([ids], device=model.device), output_hidden_states=True).hidden_states
    expected = pool_parts(states, 0, (before, before + counted), segments, layers)
    assert set(means) == set(expected) == set(Part)
    assert all(np.abs(means[part] - expected[part]).max() < 1e-4 for part in Part)
