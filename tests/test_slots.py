"""The slots engine against the plain one, and against itself in other company."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from jobs import USERS, advance, jobs, never, replies, run, same_bits, text
from transformers import AutoModelForCausalLM, Gemma2Config, GenerationConfig, GptOssConfig

from drift_cli import models
from drift_cli.engine.attention import NotApplied, cache_argument, forward
from drift_cli.engine.choice import choose
from drift_cli.engine.contract import Incident, Reply, Stopped
from drift_cli.engine.kernels.torch import backend as torch_backend
from drift_cli.engine.kernels.torch.backend import TorchKernels
from drift_cli.engine.layout import PAGE, Layout
from drift_cli.engine.plan import Draw
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import make_slots
from drift_cli.engine.structure import refusal
from drift_cli.errors import DriftError, UsageError
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Finish, Rollout, Sampling

ARCHITECTURES = list(tiny.ARCHITECTURES)
TOKENS = 12


def _slots(model: LoadedModel, *, batch: int = 4, tokens: int = TOKENS) -> SlotEngine:
    return SlotEngine(model, tuple(range(model.card.layers + 1)), Sampling(top_p=0.9), tokens, batch)


def _plain(model: LoadedModel, *, batch: int = 4, tokens: int = TOKENS) -> ReferenceEngine:
    return ReferenceEngine(model, tuple(range(model.card.layers + 1)), Sampling(top_p=0.9), tokens, batch)


Key = tuple[Rollout, int]


@pytest.mark.parametrize("chat", ["template", "raw"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slots_give_the_plain_engines_tokens_and_its_residuals(name: str, chat: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    plain, slots = run(_plain(model), jobs(model, chat=chat)), run(_slots(model), jobs(model, chat=chat))
    assert set(plain) == set(slots)
    for key, reply in plain.items():
        assert slots[key].ids == reply.ids
        assert (slots[key].prompt, text(slots[key]), slots[key].finish) == (reply.prompt, text(reply), reply.finish)
        if reply.residual is None:
            assert slots[key].residual is None
            continue
        error = np.linalg.norm(slots[key].residual - reply.residual, axis=1) / np.linalg.norm(reply.residual, axis=1)
        assert error.max() < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_slots_are_greedy_generate(name: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    plain = run(_plain(model), jobs(model, samples=1, temperature=0.0))
    slots = run(_slots(model), jobs(model, samples=1, temperature=0.0))
    assert {key: reply.ids for key, reply in slots.items()} == {key: reply.ids for key, reply in plain.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_order_and_company_do_not_change_a_bit(name: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    first = run(_slots(model), jobs(model))
    assert same_bits(first, run(_slots(model), jobs(model)[::-1]))
    alone: dict[Key, Reply] = {}
    for job in jobs(model):
        alone.update(run(_slots(model), [job]))
    assert same_bits(first, alone)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_resumed_rollout_repeats_an_uninterrupted_one_to_the_bit(name: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    first = run(_slots(model), jobs(model))
    for done in range(1, len(USERS)):
        todo = jobs(model)
        for place, job in enumerate(todo):
            for turn in range(1, min(done + place % 2, len(USERS) - 1) + 1):
                advance(job, first[job.rollout, turn].ids)
        left = {(job.rollout, turn) for job in todo for turn in range(job.turn, len(USERS) + 1)}
        again = run(_slots(model), todo)
        assert set(again) == left
        assert same_bits(again, {key: first[key] for key in left})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_three_and_sixteen_slots_give_the_same_tokens(name: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    runs = [run(_slots(model, batch=size), jobs(model)) for size in (1, 3, 16)]
    assert {key: reply.ids for key, reply in runs[0].items()} == {key: reply.ids for key, reply in runs[1].items()}
    assert {key: reply.ids for key, reply in runs[0].items()} == {key: reply.ids for key, reply in runs[2].items()}


def test_auto_takes_slots_where_they_are_exact_and_says_why_not(loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"layers": (1,), "filters": Sampling(), "max_new_tokens": 4, "batch": 2}
    for model in loaded.values():
        found = choose("auto", model, **how)
        assert (found.engine.name, found.refused) == ("slots", None)
    model = loaded["llama"]
    assert choose("reference", model, **how).engine.name == "reference"
    monkeypatch.setattr(torch_backend, "attend_row", lambda query, *rest: query * 0.5)
    found = choose("auto", model, **how)
    assert found.engine.name == "reference"
    assert "where a plain pass in chunks is off by" in str(found.refused)
    with pytest.raises(UsageError, match="slots engine cannot run tiny-llama"):
        choose("slots", model, **how)


def test_a_network_that_does_not_take_slots_falls_back_with_its_own_words(
    loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **how: object) -> None:
        raise NotApplied("its attention asks for softcap, which slots do not apply")

    monkeypatch.setattr(torch_backend, "attend_row", refuse)
    found = choose("auto", loaded["qwen3"], layers=(1,), filters=Sampling(), max_new_tokens=4, batch=2)
    assert found.engine.name == "reference"
    assert found.refused == "its attention asks for softcap, which slots do not apply"
    assert loaded["qwen3"].network.config._attn_implementation != torch_backend.ATTENTION


def test_an_attention_argument_that_slots_do_not_know_is_refused(loaded: dict[str, LoadedModel]) -> None:
    kernels = TorchKernels(loaded["llama"], Layout((0,), (2,), ((4, 4),)), 1)
    query = torch.zeros(1, 2, 1, 4)
    with pytest.raises(DriftError, match="attention asks for softcap"):
        kernels.attend(torch.nn.Module(), query, query, query, None, scaling=1.0, softcap=30.0)


def test_rollouts_do_not_wait_for_each_other(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    order = [(reply.rollout, reply.turn) for reply in replies(_slots(model, batch=3, tokens=30), jobs(model))]
    assert len(order) == 6 * len(USERS)
    turns = [turn for _, turn in order]
    assert any(later < earlier for earlier, later in pairwise(turns))
    assert sorted(order) == sorted({(job.rollout, turn) for job in jobs(model) for turn in range(1, len(USERS) + 1)})


def test_a_conversation_that_outgrows_the_context_ends(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "short", context=220)
    model = models.load(models.describe(str(folder)), dtype="float32", device="cpu")
    plain, slots = run(_plain(model, tokens=40), jobs(model)), run(_slots(model, tokens=40), jobs(model))
    assert {key: reply.ids for key, reply in slots.items()} == {key: reply.ids for key, reply in plain.items()}
    assert sum(reply.finish is Finish.CONTEXT for reply in slots.values()) == 6


def test_stopping_ends_within_a_token(loaded: dict[str, LoadedModel]) -> None:
    asked = iter([False] * 25 + [True] * 1000)
    got = []
    made = replies(_slots(loaded["olmo3"]), jobs(loaded["olmo3"]), lambda: next(asked))
    with pytest.raises(Stopped):
        got.extend(made)
    assert len(got) < 6 * len(USERS)
    assert loaded["olmo3"].network.config._attn_implementation != "drift_slots"


def _failing(forward: Callable[..., Any], calls: set[int]) -> Callable[..., Any]:
    count = 0

    def limited(*args: Any, **how: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise torch.OutOfMemoryError("not enough memory (injected)")
        return forward(*args, **how)

    return limited


@pytest.mark.parametrize("at", [1, 2, 5, 9, 14, 20, 21, 22, 23, 24, 25, 26, 40, 60])
def test_out_of_memory_at_any_point_loses_nothing(at: int, loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["qwen3"]
    expected = run(_slots(model, batch=4), jobs(model))
    monkeypatch.setattr(model.network, "forward", _failing(model.network.forward, {at}))
    incidents: list[Incident] = []
    engine = _slots(model, batch=4)
    got = [*replies(engine, jobs(model), never, incidents.append)]
    assert len(got) == len(expected)
    assert {(r.rollout, r.turn): r.ids for r in got} == {key: r.ids for key, r in expected.items()}
    assert [incident.kind for incident in incidents] == ["out-of-memory"]
    assert engine.batch == 2


def test_models_that_slots_cannot_run_are_refused_by_name(loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["llama"]
    assert refusal(model) is None
    monkeypatch.setattr(model.card.config, "attn_logit_softcapping", 50.0, raising=False)
    assert refusal(model) == "it soft-caps its attention"
    monkeypatch.undo()
    monkeypatch.setattr(type(model.network), "_is_stateful", True)
    assert refusal(model) == "it keeps a recurrent state"
    monkeypatch.undo()
    monkeypatch.setattr(model.card.config, "layer_types", ["full_attention", "linear_attention"], raising=False)
    assert refusal(model) == "it has layers of kind linear_attention"


def test_attention_sinks_and_soft_caps_of_real_networks_are_left_to_the_plain_engine() -> None:
    shape: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 0,
    }
    sinks = GptOssConfig(**shape, num_local_experts=2, num_experts_per_tok=1, sliding_window=16)
    for config, why in ((sinks, "it has attention sinks"), (Gemma2Config(**shape), "it soft-caps its attention")):
        network = AutoModelForCausalLM.from_config(config).eval()
        made = tiny.tokenizer(tiny.ARCHITECTURES["olmo3"])
        card = models.make_card("x", "0", config, made, GenerationConfig(eos_token_id=0))
        model = LoadedModel(card, network, torch.device("cpu"), "float32", 1)
        found = choose("auto", model, layers=(1,), filters=Sampling(), max_new_tokens=4, batch=2)
        assert found.engine.name == "reference"
        assert found.refused == why
        with pytest.raises(UsageError, match=why):
            choose("slots", model, layers=(1,), filters=Sampling(), max_new_tokens=4, batch=2)


def test_windowed_layers_keep_no_more_than_they_need(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "narrow")
    model = models.load(models.describe(str(folder)), dtype="float32", device="cpu")
    slots = make_slots(model, (), Sampling(), 8, 1)
    try:
        held, pages = {}, slots.kernels.pages
        for turn in range(12):
            slots.encode(0, list(range(4, 254)), 250 * turn, 0)
            held[turn] = {window: PAGE * int((pages.held[group, 0] > 0).sum()) for group, window in enumerate(pages.windows)}
    finally:
        slots.close()
    assert held[11].pop(0) >= 3000
    assert held[11]
    assert all(kept <= 1024 for kept in held[11].values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_rows_logits_are_the_same_bits_beside_rows_of_any_length(name: str, loaded: dict[str, LoadedModel]) -> None:
    model, seen = loaded[name], []
    longest = min(900, model.card.context - 20)
    for lengths in ((70,), (70, 3, 3), (70, longest, 200), (70, 200, longest)):
        slots, logits = make_slots(model, (), Sampling(), 8, 3), []
        try:
            for row, length in enumerate(lengths):
                slots.encode(row, [4 + i % 20 for i in range(length)], 0, 0)
                slots.begin(row, Draw(Rollout(Cell("t", "c", 1.0), row), 1, 7, length, 8, forced=True))
            for _ in range(6):
                slots.step()
                logits.append(slots.newest(0).clone())
        finally:
            slots.close()
        seen.append(torch.stack(logits))
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_a_networks_cache_is_handed_over_under_the_name_that_it_knows(loaded: dict[str, LoadedModel]) -> None:
    class Older(torch.nn.Module):
        def forward(self, input_ids: object, past_key_values: object = None) -> None: ...

    class Newer(torch.nn.Module):
        def forward(self, input_ids: object, cache: object = None) -> None: ...

    assert cache_argument(Older) == "past_key_values"
    assert cache_argument(Newer) == "cache"
    for model in loaded.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            forward(model, torch.tensor([[5]]), torch.tensor([[0]]))
