"""Which models slots are for, and what they are made of beyond the contract that every engine keeps (`contract`)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GenerationConfig, GptOssConfig

from drift_cli import models
from drift_cli.engine.attention import NotApplied, cache_argument, forward
from drift_cli.engine.choice import choose
from drift_cli.engine.kernels.torch import backend as torch_backend
from drift_cli.engine.kernels.torch.backend import TorchKernels
from drift_cli.engine.layout import PAGE, Layout
from drift_cli.engine.plan import Draw
from drift_cli.engine.slots import make_slots
from drift_cli.engine.structure import refusal
from drift_cli.errors import DriftError, UsageError
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Rollout, Sampling

ARCHITECTURES = list(tiny.ARCHITECTURES)


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
