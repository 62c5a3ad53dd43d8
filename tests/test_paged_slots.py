"""Slots on Triton kernels beyond the contract that every engine keeps (`contract`): few pages, and sums of parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import tiny
import torch
from contract.engines import GPU, engine, stand_in
from jobs import jobs, never, replies, run, same_bits
from thinking import thinking

from drift_cli import models
from drift_cli.engine import slots as slots_module
from drift_cli.engine.contract import Engine, Incident
from drift_cli.engine.kernels.triton.backend import TritonKernels
from drift_cli.engine.layout import PAGE
from drift_cli.engine.pooling import pool_parts
from drift_cli.engine.slots import make_slots
from drift_cli.models import LoadedModel
from drift_cli.spec import Finish, Part, Sampling, Segment, SegmentKind

TOKENS = 12
ARCHITECTURES = list(tiny.ARCHITECTURES)


@pytest.fixture(scope="module")
def models_here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    root = tmp_path_factory.mktemp("paged")
    device = "cuda" if GPU else "cpu"
    return {name: models.load(models.describe(str(tiny.save(name, root / name))), dtype="float32", device=device) for name in ARCHITECTURES}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


def _engine(model: LoadedModel, *, segmented: bool = False) -> Engine:
    return engine("triton", model, tokens=TOKENS, segmented=segmented)


def test_too_few_pages_for_all_rows_make_some_wait_and_change_nothing(
    models_here: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models_here["olmo3"]
    expected = run(_engine(model), jobs(model))
    # Conversations come to have 2 or 3 pages in each of 4 groups: room for two of them, not for four.
    monkeypatch.setattr(slots_module, "page_count", lambda *args: 26)
    incidents: list[Incident] = []
    got = [*replies(_engine(model), jobs(model), never, incidents.append)]
    assert same_bits({(reply.rollout, reply.turn): reply for reply in got}, expected)
    assert "no-room" in {incident.kind for incident in incidents}


def test_a_conversation_that_memory_cannot_hold_ends_as_for_context(
    models_here: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models_here["olmo3"]
    monkeypatch.setattr(slots_module, "page_count", lambda *args: 5)
    got = [*replies(_engine(model), jobs(model, samples=1), never, lambda incident: None)]
    ends = [reply for reply in got if reply.finish is Finish.CONTEXT]
    assert len(ends) == 2
    assert all(len(reply.prompt) + TOKENS > PAGE for reply in ends)


def test_graphs_with_sums_of_parts_give_replies_without_segments_the_bits_of_graphs_without(models_here: dict[str, LoadedModel]) -> None:
    model = models_here["olmo3"]
    plain, parted = (run(_engine(model, segmented=segmented), jobs(model, samples=1)) for segmented in (False, True))
    assert same_bits(plain, parted)
    with pytest.raises(ValueError, match="made for replies without"):
        run(_engine(model), thinking(jobs(model, samples=1)))


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


def test_blocks_that_do_not_compile_run_as_they_are_and_it_is_said(
    models_here: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    @contextmanager
    def compiled(self: TritonKernels, *, dynamic: bool) -> Iterator[None]:
        if dynamic:
            raise TorchDynamoException("a loop\nand more")
        yield

    monkeypatch.setattr(TritonKernels, "compiled", compiled)
    model, said = models_here["llama"], list[Incident]()
    make_slots(model, (1,), Sampling(), 8, 2, longest=256, backend="triton", report=said.append).close()
    assert [(it.kind, it.detail) for it in said if it.kind != "set-up"] == [
        ("not-compiled", "its blocks do not compile (a loop): it runs as it is, somewhat slower")
    ]


def test_what_cannot_be_captured_is_not_for_triton_and_the_network_has_its_own_attention_again(
    models_here: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(self: TritonKernels, *given: object, **how: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(TritonKernels, "capture", capture)
    model, said = models_here["llama"], list[Incident]()
    before = model.network.config._attn_implementation
    with pytest.raises(ValueError, match=r"operation not permitted when stream is capturing$"):
        make_slots(model, (1,), Sampling(), 8, 2, longest=256, backend="triton", report=said.append)
    assert model.network.config._attn_implementation == before
    assert said == []
