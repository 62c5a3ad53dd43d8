"""The plain engine against transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from jobs import USERS, advance, jobs, never, replies, run, text
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from drift_cli import models
from drift_cli.engine.contract import Incident, Job, Reply, Stopped
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.errors import DriftError
from drift_cli.models import LoadedModel
from drift_cli.spec import Finish, Rollout, Sampling

ARCHITECTURES = list(tiny.ARCHITECTURES)


def _engine(model: LoadedModel, *, batch: int = 4, tokens: int = 10, layers: tuple[int, ...] | None = None) -> ReferenceEngine:
    chosen = layers if layers is not None else tuple(range(model.card.layers + 1))
    return ReferenceEngine(model, chosen, Sampling(top_p=0.9), tokens, batch)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_sizes_1_3_and_16_give_the_same_tokens(name: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    runs = [run(_engine(model, batch=size), jobs(model), size) for size in (1, 3, 16)]
    assert len(runs[0]) == 2 * 3 * len(USERS)
    for key, reply in runs[0].items():
        assert reply.ids == runs[1][key].ids == runs[2][key].ids
        assert reply.prompt == runs[1][key].prompt


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residual_means_equal_a_direct_forward_over_the_rendered_conversation(name: str, loaded: dict[str, LoadedModel]) -> None:
    model = loaded[name]
    todo = jobs(model)
    made = run(_engine(model), todo)
    checked = 0
    for job in todo:
        conversation: list[int] = []
        for turn in range(1, len(USERS) + 1):
            reply = made[job.rollout, turn]
            kept = tuple(conversation[:-1])  # the template may close a reply with another token than the model did
            assert reply.prompt[: len(kept)] == kept or name in {"llama", "gemma"}
            conversation = [*reply.prompt, *reply.ids]
            content = [i for i in reply.ids if i not in model.card.end_ids]
            with torch.inference_mode():
                states = model.network(input_ids=torch.tensor([conversation]), output_hidden_states=True).hidden_states
            assert len(states) == model.card.layers + 1
            if not content:
                assert reply.residual is None
                continue
            start = len(reply.prompt)
            direct = np.stack([s[0, start : start + len(content)].numpy().astype(np.float64).mean(0) for s in states])
            assert reply.residual is not None
            error = np.linalg.norm(reply.residual - direct, axis=1) / np.linalg.norm(direct, axis=1)
            assert error.max() < 1e-5
            checked += 1
    assert checked > len(todo)


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


def test_a_conversation_that_outgrows_the_context_ends_and_nothing_is_truncated(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "short", context=220)
    model = models.load(models.describe(str(folder)), dtype="float32", device="cpu")
    todo = jobs(model)
    made = run(_engine(model, tokens=40), todo)
    ended = [reply for reply in made.values() if reply.finish is Finish.CONTEXT]
    assert {reply.rollout for reply in ended} == {job.rollout for job in todo}
    for reply in ended:
        assert len(reply.prompt) + 40 > 220
        assert reply.ids == ()
        assert (reply.rollout, reply.turn + 1) not in made
    for reply in made.values():
        assert reply.finish is Finish.CONTEXT or len(reply.prompt) + len(reply.ids) <= 220


def test_stopping_drops_the_turn_in_progress(loaded: dict[str, LoadedModel]) -> None:
    asked = iter([False] * 14 + [True] * 1000)
    engine = _engine(loaded["olmo3"], batch=1, tokens=10)
    got = []
    made = replies(engine, jobs(loaded["olmo3"]), lambda: next(asked))
    with pytest.raises(Stopped):
        got.extend(made)
    assert 1 <= len(got) <= 14


def _failing_above(rows: int, generate: Callable[..., Any]) -> Callable[..., Any]:
    def limited(ids: torch.Tensor, **how: Any) -> Any:
        if len(ids) > rows:
            raise torch.OutOfMemoryError("not enough memory (injected)")
        return generate(ids, **how)

    return limited


def test_out_of_memory_halves_the_batch_and_loses_nothing(loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["qwen3"]
    expected = run(_engine(model, batch=6), jobs(model), 6)
    monkeypatch.setattr(model.network, "generate", _failing_above(2, model.network.generate))
    incidents: list[Incident] = []
    engine = _engine(model, batch=6)
    got = {(r.rollout, r.turn): r for r in replies(engine, jobs(model), never, incidents.append, 6)}
    assert {key: r.ids for key, r in got.items()} == {key: r.ids for key, r in expected.items()}
    assert [incident.kind for incident in incidents] == ["out-of-memory", "out-of-memory"]
    assert engine.batch == 1


def test_out_of_memory_with_one_rollout_says_what_to_do(loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["qwen3"]
    monkeypatch.setattr(model.network, "generate", _failing_above(0, model.network.generate))
    with pytest.raises(DriftError, match="--dtype bfloat16"):
        list(replies(_engine(model), jobs(model), never, lambda incident: None))


def test_logits_that_are_not_finite_are_refused_by_turn(loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["llama"]
    forward = model.network.forward

    def broken(*args: Any, **how: Any) -> Any:
        out = forward(*args, **how)
        out.logits = out.logits * float("nan")
        return out

    monkeypatch.setattr(model.network, "forward", broken)
    with pytest.raises(DriftError, match=r"t/baseline/T0\.8/0000 turn 1: the model's logits are not finite"):
        run(_engine(model), jobs(model))


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


def test_raw_replies_stop_at_the_stop_string(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    for reply in run(_engine(model, tokens=20), jobs(model, chat="raw")).values():
        assert "\nUser:" not in text(reply)


def test_an_empty_reply_has_no_residual(loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    everything_ends = replace(model, card=replace(model.card, end_ids=frozenset(range(len(model.card.tokenizer)))))
    todo = jobs(everything_ends)
    made = run(_engine(everything_ends), todo)
    assert all(reply.residual is None and reply.finish is Finish.STOP and len(reply.ids) == 1 for reply in made.values())
