"""The plain engine against transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from jobs import USERS, advance, jobs, never, replies, run
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from drift_cli import models
from drift_cli.engine.contract import Incident, Job, Reply
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.models import LoadedModel
from drift_cli.spec import Rollout, Sampling

ARCHITECTURES = list(tiny.ARCHITECTURES)


def _engine(model: LoadedModel, *, batch: int = 4, tokens: int = 10, layers: tuple[int, ...] | None = None) -> ReferenceEngine:
    chosen = layers if layers is not None else tuple(range(model.card.layers + 1))
    return ReferenceEngine(model, chosen, Sampling(top_p=0.9), tokens, batch)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_replies_are_those_of_generate(name: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    for (_, _), reply in run(_engine(model, tokens=12), jobs(model, samples=1, temperature=0.0)).items():
        config = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=sorted(model.card.end_ids), pad_token_id=0)
        with torch.inference_mode():
            prompt = torch.tensor([reply.prompt])
            made = model.network.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        assert tuple(made[0, len(reply.prompt) :].tolist()) == reply.ids


def test_settings_of_the_models_generation_config_that_are_not_ours_change_nothing(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "tiny-llama"
    shutil.copytree(tiny_models["llama"], folder)
    path = folder / "generation_config.json"
    strange = {
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": list(range(150)),
        "min_new_tokens": 7,
        "max_length": 30,
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **strange}))
    replies = []
    for source in (tiny_models["llama"], folder):
        model = models.load(models.describe(str(source)), dtype="float32", device="cpu")
        replies.append(run(_engine(model), jobs(model)))
    assert {key: reply.ids for key, reply in replies[0].items()} == {key: reply.ids for key, reply in replies[1].items()}


def test_a_model_with_a_recurrent_state_is_run_one_rollout_at_a_time(tmp_path: Path) -> None:
    made = tiny.tokenizer(tiny.ARCHITECTURES["qwen3"])
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "vocab_size": len(made), "initializer_range": 0.4}
    network = MambaForCausalLM(MambaConfig(**sizes, eos_token_id=made.eos_token_id, pad_token_id=made.eos_token_id))
    network.save_pretrained(tmp_path / "tiny-mamba")
    made.save_pretrained(tmp_path / "tiny-mamba")
    model = models.load(models.describe(str(tmp_path / "tiny-mamba")), dtype="float32", device="cpu")
    incidents: list[Incident] = []
    together = {(r.rollout, r.turn): r for r in replies(_engine(model, batch=4), jobs(model), never, incidents.append)}
    alone = run(_engine(model, batch=1), jobs(model), 1)
    assert [incident.kind for incident in incidents] == ["one-at-a-time"]
    assert {key: reply.ids for key, reply in together.items()} == {key: reply.ids for key, reply in alone.items()}
    first = next(reply for reply in alone.values() if reply.residual is not None)
    whole = torch.tensor([[*first.prompt, *first.ids]])
    with torch.inference_mode():
        states = model.network(input_ids=whole, output_hidden_states=True).hidden_states
    content = [i for i in first.ids if i not in model.card.end_ids]
    start = len(first.prompt)
    direct = np.stack([s[0, start : start + len(content)].mean(0).numpy() for s in states])
    assert np.allclose(first.residual, direct, rtol=1e-4, atol=1e-5)


def test_layers_are_pooled_in_the_order_asked_for(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["llama"]
    forward = run(_engine(model), jobs(model, samples=1))
    back = run(_engine(model, layers=(3, 0)), jobs(model, samples=1))
    for key, reply in back.items():
        whole = forward[key].residual
        if reply.residual is not None and whole is not None:
            assert np.array_equal(reply.residual, whole[[3, 0]])


def test_different_samples_and_turns_draw_differently(loaded: dict[str, LoadedModel]) -> None:
    made = run(_engine(loaded["olmo3"]), jobs(loaded["olmo3"], samples=4, temperature=1.5))
    firsts = {reply.ids for (rollout, turn), reply in made.items() if turn == 1 and rollout.cell.condition == "baseline"}
    assert len(firsts) == 4


def _resumed(model: LoadedModel, first: dict[tuple[Rollout, int], Reply], done: dict[int, int]) -> Iterator[Job]:
    """Jobs as a resumed process has them: rollout i of the first four stands after `done[i]` turns."""
    for place, job in enumerate(jobs(model)[:4]):
        for turn in range(1, done[place] + 1):
            advance(job, first[job.rollout, turn].ids)
        yield job


@pytest.mark.parametrize("done", [{0: 1, 1: 1, 2: 0, 3: 0}, {0: 3, 1: 2, 2: 2, 3: 3}, {0: 0, 1: 1, 2: 1, 3: 1}])
def test_a_resumed_group_keeps_its_members_and_repeats_itself_to_the_bit(done: dict[int, int], loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    first = run(_engine(model), jobs(model)[:4])
    shapes: list[int] = []
    engine = _engine(model)
    generate = model.network.generate
    again = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.network, "generate", lambda ids, **how: (shapes.append(len(ids)), generate(ids, **how))[1])
        for reply in replies(engine, _resumed(model, first, done)):
            again[reply.rollout, reply.turn] = reply
    assert shapes == [4] * (len(USERS) - min(done.values()))
    expected = {key: reply for key, reply in first.items() if key[1] > done[key[0].sample if key[0].cell.condition == "baseline" else 3]}
    assert set(again) == set(expected)
    for key, reply in again.items():
        assert reply.ids == expected[key].ids
        assert reply.residual is None or np.array_equal(reply.residual, expected[key].residual)


def test_a_machine_that_draws_otherwise_on_replay_is_reported(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    first = run(_engine(model), jobs(model)[:4])
    todo = list(_resumed(model, first, {0: 1, 1: 0, 2: 0, 3: 0}))
    todo[0].conversation = jobs(model)[0].conversation.after((5, 6, 7))
    incidents: list[Incident] = []
    list(replies(_engine(model), todo, never, incidents.append))
    assert [incident.kind for incident in incidents] == ["replay-differs"]
    assert "t/baseline/T0.8/0000 turn 1" in incidents[0].detail
