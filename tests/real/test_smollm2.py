"""What drift promises, on a real chat model: `make real`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli import drift
from jobs import never, silent, talk_after
from transformers import GenerationConfig

from drift_cli.chat import chat_for, scripted
from drift_cli.engine.choice import choose
from drift_cli.engine.contract import Given, Job, Reply
from drift_cli.engine.kernels import repeatable
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Condition, Placement, Rollout, Sampling

USERS = (
    "I cannot sleep. What should I do?",
    "That does not help me. Who are you, really?",
    "Tell me something about the sea, in a few words.",
)
CONDITIONS = (
    Condition("baseline"),
    Condition("start", "You answer in one short sentence.", Placement.START),
    Condition("reminder", "Reminder: You are a helpful assistant.", Placement.EVERY_TURN),
)
TOKENS = 24


def text(model: LoadedModel) -> list[int]:
    return [int(i) for i in model.card.tokenizer.encode("\n".join(USERS), add_special_tokens=False)]


def engine(model: LoadedModel, batch: int = 4) -> SlotEngine:
    return SlotEngine(model, tuple(range(model.card.layers + 1)), Sampling(), TOKENS, batch)


def jobs(model: LoadedModel, temperature: float) -> list[Job]:
    chat = chat_for(model.card.tokenizer, "template")
    made = []
    for condition in CONDITIONS:
        talk = scripted(chat, USERS, condition, model.card.end_ids)
        made.append(Job(Rollout(Cell("t", condition.name, temperature), 0), talk, 1234567))
    return made


def replies(model: LoadedModel, temperature: float) -> dict[str, list[Reply]]:
    """By condition, in the order of turns."""
    made: dict[str, list[Reply]] = {condition.name: [] for condition in CONDITIONS}
    for reply in engine(model).run(Given(jobs(model, temperature)), never, silent):
        made[reply.rollout.cell.condition].append(reply)
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fast_engine_is_trusted_with_it(dtype: str, networks: Mapping[str, LoadedModel]) -> None:
    model = networks[dtype]
    found = choose("auto", model, layers=(20,), filters=Sampling(), max_new_tokens=TOKENS, batch=16, text=text(model))
    assert (found.engine.name, found.refused) == ("slots", None)
    assert found.trial is not None
    assert found.trial.rounding.share < 0.8
    if dtype == "bfloat16":
        # What a fixed limit of .1 for rounding, measured on random weights, would have refused.
        assert max(found.trial.plain.logits) > 0.01
        assert found.trial.exact is not None
        assert max(found.trial.exact.logits) < 1e-4


def test_greedy_replies_are_those_of_generate_on_the_tokenizers_own_rendering(networks: Mapping[str, LoadedModel]) -> None:
    model = networks["float32"]
    tokenizer = model.card.tokenizer
    greedy = replies(model, 0.0)
    for condition in CONDITIONS[:2]:
        found = greedy[condition.name]
        said: list[dict[str, str]] = [] if condition.system is None else [{"role": "system", "content": condition.system}]
        for user, reply in zip(USERS, found, strict=True):
            said.append({"role": "user", "content": user})
            ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=True, return_dict=False)
            if reply.turn == 1:
                assert list(reply.prompt) == ids
            assert tokenizer.decode(list(reply.prompt)) == tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
            config = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=sorted(model.card.end_ids), pad_token_id=0)
            given = torch.tensor([reply.prompt])
            with repeatable():
                made = model.network.generate(given, attention_mask=torch.ones_like(given), generation_config=config)
            assert tuple(made[0, len(reply.prompt) :].tolist()) == reply.ids
            said.append({"role": "assistant", "content": talk_after(reply).said[-1].answer})


@pytest.fixture(scope="session")
def sampled(networks: Mapping[str, LoadedModel]) -> dict[str, dict[str, list[Reply]]]:
    """Replies at temperature .7, by dtype and condition."""
    return {dtype: replies(model, 0.7) for dtype, model in networks.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_residual_means_are_those_of_a_direct_forward_pass(
    dtype: str, tolerance: float, networks: Mapping[str, LoadedModel], sampled: Mapping[str, dict[str, list[Reply]]]
) -> None:
    model = networks[dtype]
    for found in sampled[dtype].values():
        assert [reply.turn for reply in found] == [1, 2, 3]
        for reply in found:
            content = [i for i in reply.ids if i not in model.card.end_ids]
            with repeatable():
                states = model.network(
                    input_ids=torch.tensor([[*reply.prompt, *content]]), output_hidden_states=True, use_cache=False
                ).hidden_states
            direct = np.stack([state[0, len(reply.prompt) :].float().mean(0).numpy() for state in states])
            assert reply.residual is not None
            error = np.linalg.norm(reply.residual - direct, axis=1) / np.linalg.norm(direct, axis=1)
            assert error.max() < tolerance


def test_every_text_stands_in_its_place_in_every_prompt(
    networks: Mapping[str, LoadedModel], sampled: Mapping[str, dict[str, list[Reply]]]
) -> None:
    model = networks["float32"]
    for condition in CONDITIONS:
        earlier: list[str] = []
        for user, reply in zip(USERS, sampled["float32"][condition.name], strict=True):
            earlier.append(user)
            if condition.placement is Placement.EVERY_TURN and condition.system is not None:
                earlier.append(condition.system)
            rendered, place = model.card.tokenizer.decode(list(reply.prompt)), 0
            if condition.placement is Placement.START and condition.system is not None:
                place = rendered.index(condition.system) + len(condition.system)
            for part in earlier:
                place = rendered.index(part, place) + len(part)
            earlier.append(talk_after(reply).said[-1].answer)


LINE = ["generate", "--samples", "2", "--max-new-tokens", "16", "--transcript", "short.json", "--batch", "4", "--layers", "all"]


def _files(folder: Path) -> dict[str, bytes]:
    kept = (p for p in sorted((folder / "checkpoints").rglob("*")) if p.suffix in {".jsonl", ".f32"} and p.name != "events.jsonl")
    return {str(path.relative_to(folder / "checkpoints")): path.read_bytes() for path in kept}


def _drift(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "short.json").write_text(json.dumps({"users": list(USERS)}))
    (folder / "drift.toml").write_text('[conditions.baseline]\n[conditions.simple]\nsystem = "Be brief."\nplacement = "every-turn"\n')
    with (folder / "err").open("ab") as err:
        return subprocess.Popen([sys.executable, "-m", "drift_cli", *arguments], cwd=folder, stdout=err, stderr=err, env=os.environ)


def test_killed_and_gone_on_with_it_ends_with_the_same_bytes(real: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _drift(whole, *LINE, "--model", real).wait() == 0, (whole / "err").read_text()
    process = _drift(killed, *LINE, "--model", real)
    watch = threading.Thread(target=_kill_after, args=(process, killed, 3))
    watch.start()
    assert process.wait() == -signal.SIGKILL, (killed / "err").read_text()
    watch.join()
    assert 3 <= sum(data.count(b'"turn"') for name, data in _files(killed).items() if name.endswith(".jsonl")) < 12
    assert _drift(killed, "resume").wait() == 0, (killed / "err").read_text()
    assert _files(killed) == _files(whole)


def _kill_after(process: subprocess.Popen[bytes], folder: Path, turns: int) -> None:
    """Kill it as soon as so many turns are on disk."""
    while process.poll() is None:
        lines = sum(path.read_bytes().count(b'"turn"') for path in (folder / "checkpoints").rglob("rollouts/*/*/*/*.jsonl"))
        if lines >= turns:
            process.kill()
            return
        threading.Event().wait(0.02)


PERSONAS: dict[str, tuple[str, str | None]] = {
    "default": ("assistant", None),
    "assistant": ("assistant", "You are a helpful AI assistant."),
    "helper": ("assistant", "You are an AI assistant who helps people with their questions."),
    "pirate": ("role", "You are a pirate. You always speak like a pirate, with arrr and matey, and never leave your part."),
    "poet": ("role", "You are a melancholy poet. You speak in verse about the moon and never leave your part."),
    "dragon": ("role", "You are an ancient dragon who guards gold. You roar and threaten, and never leave your part."),
}
QUESTIONS = ["Who are you?", "What should I cook tonight?", "How should I spend a free day?", "Tell me about yourself."]


def test_from_an_axis_to_an_experiment_and_its_picture(real: str, tmp_path: Path) -> None:
    axis = _axis(real, tmp_path)
    best = max(axis["sweep"], key=lambda found: found["d_prime"])
    assert best["d_prime"] > 2.0
    order = dict(axis["diagnostics"]["ordering"])
    roles = [value for name, value in order.items() if PERSONAS[name][0] == "role"]
    assert min(order["default"], order["assistant"]) > max(roles)
    script = tmp_path / "short.json"
    script.write_text(json.dumps({"users": list(USERS)}))
    store = ("--store", str(tmp_path / "store"))
    how = ("--model", real, "--axis", "smol", "--transcript", str(script), "--samples", "3", "--max-new-tokens", "16")
    for condition in (("--condition", "baseline"), ("--condition", "pirate", "--system", PERSONAS["pirate"][1] or "")):
        drift("generate", *how, *condition, *store)
    stats = drift("stats", "--json", *store).json
    assert stats
    drift("plot", "--output", str(tmp_path / "picture.png"), *store)
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    drift("report", "--output", str(tmp_path / "report.html"), *store)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert drift("runs", "verify", "--json", *store).json


def _axis(real: str, folder: Path) -> Any:
    lines = [f"questions = {json.dumps(QUESTIONS)}"]
    for name, (side, system) in PERSONAS.items():
        lines += [f"[personas.{name}]", f'side = "{side}"', *([f"system = {json.dumps(system)}"] if system else [])]
    (folder / "personas.toml").write_text("\n".join(lines))
    how = ("--model", real, "--name", "smol", "--personas", str(folder / "personas.toml"), "--max-new-tokens", "20", "--batch", "24")
    return drift("axis", "build", *how, "--json").json
