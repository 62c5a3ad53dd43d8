"""When slots are trusted with a model: measured against its own rounding, with the slots that will run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain_kernels
import pytest
import tiny
import torch
from cli import drift
from jobs import jobs, run, same_bits
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, MistralConfig

from drift_cli import models
from drift_cli.engine import attention, choice, chunks, plain_passes
from drift_cli.engine.attention import NotApplied, layout_of
from drift_cli.engine.choice import Choice, choose
from drift_cli.engine.contract import Incident
from drift_cli.engine.kernels.torch import backend as torch_backend
from drift_cli.engine.kernels.torch.backend import TorchKernels
from drift_cli.engine.kernels.triton import backend as triton_backend
from drift_cli.engine.plain_passes import yardstick
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import Slots, make_slots
from drift_cli.engine.trial import judge
from drift_cli.engine.trial_text import conversations, length, random_text
from drift_cli.errors import DriftError, UsageError
from drift_cli.models import LoadedModel
from drift_cli.running import loading
from drift_cli.running.speeds import Speeds
from drift_cli.spec import Sampling

WINDOW = 48


def made(config: Any, dtype: str = "float32", scale: float = 1.0) -> LoadedModel:
    """A network with random weights; `scale` multiplies its attention's queries and keys, which makes its rounding loud."""
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape) / weight.shape[-1] ** 0.5)
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(scale)
    tokenizer = tiny.tokenizer(tiny.ARCHITECTURES["olmo3"])
    card = models.make_card("x", "0", config, tokenizer, GenerationConfig(eos_token_id=0))
    return LoadedModel(card, network.to(getattr(torch, dtype)), torch.device("cpu"), dtype, sum(p.numel() for p in network.parameters()))


def llama(**more: Any) -> LlamaConfig:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**{**shape, "vocab_size": 300, "max_position_embeddings": 2048, "eos_token_id": 0, "pad_token_id": 0, **more})


def windowed() -> MistralConfig:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return MistralConfig(**shape, head_dim=8, vocab_size=300, max_position_embeddings=2048, sliding_window=WINDOW, eos_token_id=0)


def chosen(model: LoadedModel, asked: str = "auto", **more: Any) -> Choice:
    how: dict[str, Any] = {"layers": (1,), "filters": Sampling(), "max_new_tokens": 8, "batch": 4}
    return choose(asked, model, **{**how, **more})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_a_model_is_trusted_to_slots_in_every_dtype(name: str, dtype: str, tiny_models: dict[str, Path]) -> None:
    model = models.load(models.describe(str(tiny_models[name])), dtype=dtype, device="cpu")
    found = chosen(model)
    assert (found.engine.name, found.refused) == ("slots", None)
    assert found.trial is not None
    assert found.trial.problem is None
    assert found.trial.rounding.share < 0.9


def test_a_model_whose_own_rounding_is_loud_is_trusted_all_the_same() -> None:
    """As a real one: its plain forward pass in bfloat16 is off by more than any fixed limit that would find a wrong formula."""
    found = chosen(made(llama(num_hidden_layers=12), "bfloat16", scale=3.0))
    assert found.trial is not None
    assert max(found.trial.plain.logits) > 0.15
    assert max(found.trial.slots.logits) > 0.1
    assert found.engine.name == "slots"
    assert found.trial.exact is not None
    assert max(found.trial.exact.logits) < 1e-4


Change = Callable[[dict[str, Any]], dict[str, Any]]

ERRORS: dict[str, Change] = {
    "narrow": lambda how: {**how, "sliding_window": how["sliding_window"] - 1},
    "wide": lambda how: {**how, "sliding_window": how["sliding_window"] + 1},
    "none": lambda how: {**how, "sliding_window": None},
    "scale": lambda how: {**how, "scaling": 1.01 * how["scaling"]},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_in_attention_is_refused_with_both_figures(error: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, own, change = made(windowed(), dtype), attention.installed, ERRORS[error]

    def installed(model: LoadedModel, name: str, attend: Callable[..., Any]) -> Any:
        return own(model, name, lambda *given, **how: attend(*given, **change(how)))

    for place in (attention, torch_backend):
        monkeypatch.setattr(place, "installed", installed)
    found = chosen(model)
    assert found.engine.name == "reference"
    assert found.refused is not None
    assert ("in float32 its" if dtype == "bfloat16" else "where a plain pass in chunks is off by") in found.refused
    with pytest.raises(UsageError, match="cannot run x: "):
        chosen(model, "slots")


def test_a_chunk_that_does_not_replace_what_decoding_wrote_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what comes behind the first reply is wrong then."""
    own = Slots._encode

    def encode(self: Slots, its: Any, row: int, ids: Any, start: int, *given: Any) -> Any:
        return own(self, its, row, ids, start + (1 if start else 0), *given)

    monkeypatch.setattr(Slots, "_encode", encode)
    found = chosen(made(llama()))
    assert found.engine.name == "reference"


def test_an_error_of_one_row_in_a_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Slots.newest
    monkeypatch.setattr(Slots, "newest", lambda self, row: own(self, 0 if self.replies.queued and row == 2 else row))
    assert chosen(made(llama())).engine.name == "reference"


def test_residuals_are_compared_at_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Slots.every_layer

    def wrong(self: Slots, *given: Any) -> Any:
        found = own(self, *given).copy()
        found[3] *= 1.01
        return found

    monkeypatch.setattr(Slots, "every_layer", wrong)
    refused = chosen(made(llama())).refused
    assert refused is not None
    assert refused.startswith("its residual means at layer 3 are off by 0.01 of their length")


def test_the_trials_conversation_is_longer_than_windows_and_thresholds() -> None:
    model = made(windowed())
    for settings, beyond in (
        ({"sliding_window": 700}, 700),
        ({"sliding_window": 700, "use_sliding_window": False}, 0),
        ({"attention_chunk_size": 600}, 600),
        ({"floor_scale": 500}, 500),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 900}}, 900),
        ({"rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 900}}, 0),
        ({"rope_parameters": {"full": {"rope_type": "longrope", "original_max_position_embeddings": 901}, "local": {}}}, 901),
    ):
        config = replace(model.card, config=_Config(settings))
        tokens = length(replace(model, card=config), layout_of(model), None)
        assert tokens >= max(beyond, WINDOW) + 60
        assert beyond or tokens < 400
    assert length(model, layout_of(model), 100) <= 100


class _Config:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def get_text_config(self) -> _Config:
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.settings


def test_text_of_the_trial_has_no_special_token(tiny_models: dict[str, Path]) -> None:
    model = models.load(models.describe(str(tiny_models["olmo3"])), dtype="float32", device="cpu")
    assert not set(random_text(model)) & set(model.card.tokenizer.get_added_vocab().values())
    rows = conversations(random_text(model), 200, 3)
    assert len({len(it.ids) for it in rows}) == 3


def test_where_float32_does_not_fit_two_plain_computations_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(llama(), "bfloat16")
    monkeypatch.setattr(plain_passes, "free_memory", lambda: 1)
    found = chosen(model)
    assert found.trial is not None
    assert found.trial.exact is None
    assert found.trial.truth == "a plain pass in chunks"
    assert found.engine.name == "slots"


def test_a_fault_of_drift_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TorchKernels, *given: Any, **how: Any) -> Any:
        raise TypeError("a bug")

    monkeypatch.setattr(TorchKernels, "attend", broken)
    with pytest.raises(DriftError, match="the slots engine failed on x: TypeError: a bug") as raised:
        chosen(made(llama()))
    assert "fault of drift" in str(raised.value.mend)


def test_what_slots_do_not_apply_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(self: TorchKernels, *given: Any, **how: Any) -> Any:
        raise NotApplied("its attention asks for a bias, which slots do not apply")

    monkeypatch.setattr(TorchKernels, "attend", asks)
    assert chosen(made(llama())).refused == "its attention asks for a bias, which slots do not apply"


def test_want_of_memory_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = plain_passes._forward, []

    def tight(model: LoadedModel, it: Any) -> Any:
        calls.append(len(it.ids))
        if len(it.ids) > 90:
            raise torch.OutOfMemoryError("out of memory")
        return own(model, it)

    monkeypatch.setattr(plain_passes, "_forward", tight)
    found = chosen(made(llama()))
    assert found.engine.name == "slots"
    assert found.trial is not None
    assert found.trial.tokens <= 90
    monkeypatch.setattr(plain_passes, "_forward", lambda model, it: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(DriftError, match="out of memory with a conversation of"):
        chosen(made(llama()))


def test_slots_that_run_out_of_memory_in_the_trial_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    own, said = chunks.Chunks.__post_init__, list[Incident]()

    def small(self: chunks.Chunks) -> None:
        if len(self.kernels.pages.upto) > 2 and len(self.layers) == 1:
            raise torch.OutOfMemoryError("out of memory")
        own(self)

    monkeypatch.setattr(chunks.Chunks, "__post_init__", small)
    found = chosen(made(llama()), report=said.append)
    assert (found.engine.name, found.engine.batch) == ("slots", 2)
    assert [incident.kind for incident in said] == ["out-of-memory"]


def test_weights_that_are_not_finite_are_named() -> None:
    model = made(llama())
    with torch.no_grad():
        model.network.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(DriftError, match="the logits of x in float32 are not finite"):
        chosen(model)


@pytest.mark.parametrize("name", ["olmo3", "qwen3"])
def test_paged_slots_pass_the_trial_and_their_bits_do_not_depend_on_it(
    name: str, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_backend, "_kernels", lambda: plain_kernels)
    model = models.load(models.describe(str(tiny_models[name])), dtype="float32", device="cpu")

    def engine() -> SlotEngine:
        it = SlotEngine(model, (0, 1, 2), Sampling(top_p=0.9), 12, 4, 1024)
        it.slots = make_slots(model, it.layers, it.filters, 12, 4, longest=1024, backend="triton")
        return it

    plain = run(engine(), jobs(model))
    tried = engine()
    given = conversations(random_text(model), 160, 3)
    slots, tried.slots = tried.slots, None
    assert slots is not None
    slots.close()
    against = yardstick(model, given)
    tried.slots = slots = make_slots(model, tried.layers, tried.filters, 12, 4, longest=1024, backend="triton")
    found = judge("float32", slots, given, against)
    assert found.problem is None
    assert found.rounding.share < 0.1
    assert same_bits(run(tried, jobs(model)), plain)


def test_on_the_reference_engine_people_are_told_how_much_slower_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "refusal", lambda model: "it has a property")
    monkeypatch.setattr(loading, "measure_speeds", lambda *given: Speeds(1e10, 1e11, 1e10, 1e-3, 1e-4, 1e10, 1e-4, 1e-4))
    script = tmp_path / "short.json"
    script.write_text(json.dumps({"users": ["Hello there."]}))
    how = ("--samples", "1", "--max-new-tokens", "4", "--condition", "baseline", "--transcript", str(script))
    said = drift("generate", *how, "--store", str(tmp_path / "store")).err
    assert "the slots engine cannot run demo (it has a property): using the reference engine, " in said
    assert "slower: " in said
    assert "are estimated for what is left" in said


def test_doctor_shows_a_models_engine_and_its_trials_figures(tiny_models: dict[str, Path]) -> None:
    found = drift("doctor", "--model", str(tiny_models["qwen3"]), "--dtype", "bfloat16", "--json").json
    checks = {check["what"]: check["found"] for check in found["checks"]}
    assert checks["engine"] == "slots (fast)"
    assert "slots are off by" in checks["trial"]
    assert "a plain forward pass in bfloat16 by" in checks["trial"]
