"""Which network a checkpoint is run as, what its hidden states are, and how the reference engine has to generate with it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from breadth.build import save
from breadth.measure import FILTERS, TOKENS, USERS, fits, forward, jobs
from breadth.sizes import LAYERS, THRESHOLD
from cli import drift
from jobs import advance, never, replies, run, same_bits
from transformers import AutoModelForCausalLM, MambaConfig, T5Config

from drift_cli import models
from drift_cli.axis import Axis
from drift_cli.engine.contract import Incident
from drift_cli.engine.decoding import decoding
from drift_cli.engine.layout import layout_from
from drift_cli.engine.reference import ReferenceEngine, measure
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.rotary import length_rule
from drift_cli.engine.structure import disagreement, refusal
from drift_cli.errors import DriftError
from drift_cli.models import LoadedModel
from drift_cli.models.network import auto_class, parameters
from drift_cli.models.residuals import look
from drift_cli.spec import Finish


def _load(name: str, folder: Path) -> LoadedModel:
    return models.load(models.describe(str(save(name, folder / name))), dtype="float32", device="cpu")


def _states(model: LoadedModel, ids: list[int]) -> Any:
    with torch.inference_mode():
        return model.network(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states


def _reference(model: LoadedModel, batch: int = 4) -> ReferenceEngine:
    return ReferenceEngine(model, tuple(range(model.card.layers + 1)), FILTERS, TOKENS, batch)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "mistral3", "glm4v"])
def test_the_decoder_is_the_text_part_though_the_part_that_sees_is_deeper(name: str, tmp_path: Path) -> None:
    model = _load(name, tmp_path)
    assert model.card.layers == LAYERS
    found = models.blocks(model.network)
    assert len(found) == LAYERS
    assert not any(hasattr(block, "mlp1") or "Vision" in type(block).__name__ for block in found)
    assert models.count_parameters(model.card) == model.parameters
    longest = max((m for m in model.network.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    assert len(longest) > LAYERS


@pytest.mark.parametrize("name", ["jamba", "olmo_hybrid", "zamba"])
def test_blocks_may_be_of_several_classes(name: str, tmp_path: Path) -> None:
    model = _load(name, tmp_path)
    found = models.blocks(model.network)
    assert len(found) == model.card.layers
    assert len({type(block) for block in found}) > 1


def test_a_configuration_that_continues_no_text_is_refused_by_its_type() -> None:
    with pytest.raises(DriftError, match="no network of model type t5 that continues a text"):
        auto_class(T5Config())


def test_a_network_that_needs_a_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("the vision part requires the sight library")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", missing)
    with pytest.raises(DriftError, match=r"model type mamba cannot be made here: the vision part requires the sight library"):
        parameters(MambaConfig())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bert-encoder", "looks at later tokens: it is an encoder"),
        ("deepseek_v4", "hidden states of shape 1 × 8 × 4 × 64"),
        ("prophetnet", "gives 5 hidden states where its configuration's 12 layers make 13"),
        ("kosmos-2", "does not run on text alone"),
        ("blt", "its configuration has num_hidden_layers = None"),
    ],
)
def test_a_network_whose_hidden_states_cannot_be_measured_is_refused_by_name(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(DriftError, match=why):
        _load(name, tmp_path)


def test_want_of_memory_while_a_network_is_looked_at_is_no_refusal(loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory (injected)")

    model = loaded["llama"]
    monkeypatch.setattr(model.network, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        look(model.network, "x", model.card.layers, model.card.width)
    with pytest.raises(torch.OutOfMemoryError):
        disagreement(model)


def test_of_several_residual_streams_the_one_that_blocks_work_on_is_measured(tmp_path: Path) -> None:
    model = _load("gemma3n_text", tmp_path)
    assert model.residuals.stream == 0
    assert model.residuals.remark is not None
    assert "several residual streams" in model.residuals.remark
    ids = list(range(5, 45))
    states = _states(model, ids)
    assert states[2].shape == (4, 1, 40, model.card.width)
    expected = np.stack([state[0, 0, 10:30].mean(0).numpy() for state in states])
    assert np.allclose(measure(model, ids, 10, 20, range(LAYERS + 1)), expected, rtol=1e-5, atol=1e-5)


def test_blocks_that_a_text_passes_over_leave_the_residuals_as_they_were(tmp_path: Path) -> None:
    model = _load("mllama", tmp_path)
    skipped = [place for place, block in enumerate(models.blocks(model.network)) if "Cross" in type(block).__name__]
    assert skipped
    found = measure(model, list(range(5, 45)), 10, 20, range(LAYERS + 1))
    for place in range(LAYERS):
        assert np.array_equal(found[place], found[place + 1]) == (place in skipped)
    assert model.residuals.remark is not None
    assert f"blocks before layers {', '.join(str(place + 1) for place in skipped)}" in model.residuals.remark


def _short_run(folder: Path, *more: str) -> tuple[str, str]:
    """What a run of one turn said, and what `runs show` shows of it."""
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there"]}))
    limits = ("--samples", "1", "--max-new-tokens", "4", "--dtype", "float32", "--layers", "all")
    said = drift("generate", "--model", str(folder), "--transcript", "short.json", *limits, *more).err
    return said, drift("runs", "show").out


def test_a_last_hidden_state_before_the_final_norm_is_measured_recorded_and_said(tmp_path: Path) -> None:
    folder = save("llama-unnormed", tmp_path / "unnormed")
    model = models.load(models.describe(str(folder)), dtype="float32", device="cpu")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        out = model.network.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    if torch.equal(out.hidden_states[-1], out.last_hidden_state):
        pytest.skip("the installed transformers gives the last hidden state after the norm whatever the configuration says")
    assert not model.residuals.normed
    said, shown = _short_run(folder)
    assert "the last layer's residuals are taken before the final norm" in said
    assert "before the final norm" in " ".join(shown.split())
    found = measure(model, ids[0].tolist(), 5, 10, [LAYERS])
    assert np.allclose(found[0], out.hidden_states[-1][0, 5:15].mean(0), rtol=1e-5, atol=1e-5)


def test_an_ordinary_model_has_nothing_of_this_in_its_manifest(tiny_models: dict[str, Path]) -> None:
    said, shown = _short_run(tiny_models["llama"])
    assert "final norm" not in said + shown
    manifest = json.loads(next(Path("checkpoints").glob("*/run.json")).read_text())
    assert "residuals" not in manifest["settings"]


def test_end_tokens_are_also_those_of_the_whole_configuration(tmp_path: Path) -> None:
    folder = save("qwen3_vl", tmp_path / "whole")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert "eos_token_id" not in config["text_config"]
    path.write_text(json.dumps({**config, "eos_token_id": 7}))
    assert 7 in models.describe(str(folder)).end_ids


def test_what_is_kept_of_a_token_is_estimated_for_networks_without_heads_and_with_windows_in_every_layer(tmp_path: Path) -> None:
    assert len(layout_from(MambaConfig(num_hidden_layers=3)).heads) == 3
    assert layout_from(models.describe(str(save("mistral", tmp_path / "mistral"))).config).window > 0
    assert layout_from(models.describe(str(save("mistral-nowindow", tmp_path / "whole"))).config).window == 0


@pytest.mark.parametrize("name", ["llama-longrope", "phi3-longrope"])
def test_a_rotary_embedding_that_changes_within_a_reply_gives_tokens_that_depend_on_the_conversation_alone(
    name: str, tmp_path: Path
) -> None:
    model = _load(name, tmp_path)
    assert refusal(model) == f"its rotary embedding is another one in conversations of more than {THRESHOLD} tokens"
    incidents: list[Incident] = []
    together = {(r.rollout, r.turn): r for r in replies(_reference(model), jobs(model), never, incidents.append)}
    assert [incident.kind for incident in incidents] == ["one-at-a-time"]
    last = jobs(model)[-1]
    assert same_bits({key: reply for key, reply in together.items() if key[0] == last.rollout}, run(_reference(model, batch=1), [last]))
    crossing = [r for r in together.values() if len(r.prompt) <= THRESHOLD < len(r.prompt) + len(r.ids) - 1]
    assert crossing
    keys = {job.rollout: job.key for job in jobs(model)}
    for reply in crossing:
        for place, token in enumerate(reply.ids):
            logits, _ = forward(model, [*reply.prompt, *reply.ids[:place]])
            assert fits(logits[-1], reply, place, token, keys[reply.rollout])


def test_frequencies_that_change_with_every_token_are_refused_where_the_context_goes_beyond_them(tmp_path: Path) -> None:
    model = _load("llama-dynamic", tmp_path)
    assert refusal(model) is None
    wider = replace(model, card=replace(model.card, context=2 * THRESHOLD))
    assert refusal(wider) == f"its rotary embedding is another one in conversations of more than {THRESHOLD} tokens"
    with pytest.raises(DriftError, match=f"changes its rotary embedding with every token beyond {THRESHOLD}"):
        run(_reference(wider), [])


def test_a_kind_of_rotary_embedding_that_is_not_known_is_refused_by_name(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["qwen3"]
    config = copy.deepcopy(model.card.config)
    config.rope_parameters = {**config.rope_parameters, "rope_type": "spiral"}
    said = length_rule(replace(model, card=replace(model.card, config=config)))
    assert said == "its rotary embedding is of kind spiral, which slots do not know"


def test_a_rollout_resumed_where_the_rotary_embedding_changes_repeats_itself_to_the_bit(tmp_path: Path) -> None:
    model = _load("llama-longrope", tmp_path)
    first = run(_reference(model, batch=1), jobs(model))
    for done in range(1, len(USERS)):
        todo = jobs(model)
        for job in todo:
            for turn in range(1, done + 1):
                advance(job, first[job.rollout, turn].ids)
        again = run(_reference(model, batch=1), todo)
        assert same_bits(again, {key: reply for key, reply in first.items() if key[1] > done})


def test_traces_where_the_rotary_embedding_changes_are_those_of_each_turns_own_conversation(tmp_path: Path) -> None:
    folder = save("llama-longrope", tmp_path / "long")
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(LAYERS + 1, 64))
    made = Axis("odd", tuple(range(LAYERS + 1)), (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    made.save(Path("odd.safetensors"))
    Path("talk.json").write_text(json.dumps({"name": "talk", "users": list(USERS)}))
    how = ("--samples", "2", "--max-new-tokens", str(TOKENS), "--dtype", "float32", "--axis", "odd.safetensors", "--layer", str(LAYERS))
    drift("generate", "--model", str(folder), "--transcript", "talk.json", *how)
    assert drift("measure", "--traces", "--json").json["difference"] < 1e-4


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("olmo3", None),
        ("gemma4_unified", None),
        ("phimoe", "the mask of layer 0 hides token 0 to token 40, where its attention is told of no window"),
        ("llama4_text-full", "its layers ask the cache for its length"),
        ("diffllama", "a layer attends more than once a token"),
        ("gpt_oss", "attention asks for s_aux"),
        ("mllama", "of its 4 layers attend"),
    ],
)
def test_the_networks_own_attention_says_what_slots_would_compute_otherwise(name: str, why: str | None, tmp_path: Path) -> None:
    said = disagreement(_load(name, tmp_path))
    assert said is None if why is None else said is not None and why in said


def test_a_window_that_only_the_mask_knows_is_found_far_beyond_what_was_run(tmp_path: Path) -> None:
    folder = save("phimoe", tmp_path / "far")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sliding_window": 777}))
    said = disagreement(models.load(models.describe(str(folder)), dtype="float32", device="cpu"))
    assert said is not None
    assert "hides token 0 to token 777" in said


@pytest.mark.parametrize(
    ("name", "alone", "uncached"),
    [
        ("olmo3", None, None),
        ("bloom", None, None),
        ("bart", "with padding, `generate` gives other logits", None),
        ("llama4_text-full", "count positions by what the cache holds", None),
        ("lfm2-conv", "layers of kind conv", None),
        ("moshi", None, "with a cache, `generate` gives other logits"),
        ("xlstm", "keeps a recurrent state", "with a cache, `generate` fails"),
    ],
)
def test_shortcuts_of_generate_that_change_its_logits_are_left(name: str, alone: str | None, uncached: str | None, tmp_path: Path) -> None:
    found = decoding(_load(name, tmp_path))
    for said, expected in ((found.alone, alone), (found.uncached, uncached)):
        assert said is None if expected is None else said is not None and expected in said


def test_a_network_that_is_right_in_no_way_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DriftError, match="roberta cannot be generated with: `generate` gives other logits than a plain forward pass"):
        run(_reference(_load("roberta", tmp_path)), [])


def test_a_table_of_positions_that_ends_with_the_context_ends_the_rollout_not_the_run(tmp_path: Path) -> None:
    model = _load("gpt2-short", tmp_path)
    engines = (SlotEngine(model, (0, 1), FILTERS, TOKENS, 3), ReferenceEngine(model, (0, 1), FILTERS, TOKENS, 4))
    found = [{(r.rollout, r.turn): (r.ids, r.finish) for r in replies(engine, jobs(model))} for engine in engines]
    assert found[0] == found[1]
    assert any(finish is Finish.CONTEXT for _, finish in found[0].values())


def test_a_network_whose_class_generates_in_a_way_of_its_own_still_draws_our_tokens(tmp_path: Path) -> None:
    model = _load("janus", tmp_path)
    replies = run(_reference(model), jobs(model))
    assert len({reply.ids for reply in replies.values() if reply.turn == 1}) > 2
