"""Paged slots against plain ones. On a machine without a GPU the kernels are replaced by plain torch, and graphs do their work at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import plain_kernels
import pytest
import tiny
import torch
from jobs import jobs, never, run, same_bits

from drift_cli import models
from drift_cli.engine.contract import Incident
from drift_cli.engine.paged import network as paged_network
from drift_cli.engine.paged import slots as paged_slots
from drift_cli.engine.plain.slots import PlainSlots
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import PAGE, Slots
from drift_cli.models import LoadedModel
from drift_cli.spec import Finish, Rollout, Sampling

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
        monkeypatch.setattr(paged_network, "_kernels", lambda: plain_kernels)
    return


class Paged(SlotEngine):
    """Slots with pages whatever the device."""

    def prepare(self, report: object) -> Slots:
        if self.slots is None:
            self.slots = paged_slots.paged_slots(
                self.model, self.layers, self.filters, self.max_new_tokens, self.batch, self.longest, lambda incident: None
            )
        assert self.slots is not None
        return self.slots


class Plain(SlotEngine):
    """Slots without pages whatever the device."""

    def prepare(self, report: object) -> Slots:
        if self.slots is None:
            self.slots = PlainSlots(self.model, self.layers, self.filters, self.batch)
        return self.slots


def _engine(kind: type[SlotEngine], model: LoadedModel, *, batch: int = 4, tokens: int = TOKENS) -> SlotEngine:
    return kind(model, tuple(range(model.card.layers + 1)), Sampling(top_p=0.9), tokens, batch, 1024)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_paged_slots_give_the_plain_slots_tokens_and_residuals(name: str, models_here: dict[str, LoadedModel]) -> None:
    model = models_here[name]
    plain, paged = run(_engine(Plain, model), jobs(model)), run(_engine(Paged, model), jobs(model))
    assert {key: reply.ids for key, reply in paged.items()} == {key: reply.ids for key, reply in plain.items()}
    for key, reply in plain.items():
        assert (paged[key].prompt, paged[key].text, paged[key].finish) == (reply.prompt, reply.text, reply.finish)
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
            job.dialogue.advance(first[job.rollout, turn].ids)
    left = {(job.rollout, turn) for job in todo for turn in range(job.turn, job.dialogue.total + 1)}
    assert same_bits(run(_engine(Paged, model), todo), {key: first[key] for key in left})


def test_too_few_pages_for_all_rows_make_some_wait_and_change_nothing(
    models_here: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models_here["olmo3"]
    expected = run(_engine(Paged, model), jobs(model))
    # Conversations come to have 2 or 3 pages in each of 4 groups: room for two of them, not for four.
    monkeypatch.setattr(paged_slots, "_page_count", lambda *args: 26)
    incidents: list[Incident] = []
    got = [*_engine(Paged, model).run(jobs(model), never, incidents.append)]
    assert same_bits({(reply.rollout, reply.turn): reply for reply in got}, expected)
    assert "no-room" in {incident.kind for incident in incidents}


def test_a_conversation_that_memory_cannot_hold_ends_as_for_context(
    models_here: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models_here["olmo3"]
    monkeypatch.setattr(paged_slots, "_page_count", lambda *args: 5)
    got = [*_engine(Paged, model).run(jobs(model, samples=1), never, lambda incident: None)]
    ends = [reply for reply in got if reply.finish is Finish.CONTEXT]
    assert len(ends) == 2
    assert all(len(reply.prompt) + TOKENS > PAGE for reply in ends)


def test_replies_of_given_lengths(models_here: dict[str, LoadedModel]) -> None:
    model = models_here["llama"]
    todo = [
        replace(job, lengths=tuple(1 + (place + turn) % TOKENS for turn in range(job.dialogue.total)))
        for place, job in enumerate(jobs(model))
    ]
    wanted = {(job.rollout, turn + 1): length for job in todo for turn, length in enumerate(job.lengths or ())}
    assert {key: len(reply.ids) for key, reply in run(_engine(Paged, model), todo).items()} == wanted
