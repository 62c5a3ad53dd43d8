"""See the package's docstring: a test's number is its clause's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from jobs import CONDITIONS, USERS, advance, given, jobs, never, replies, run, same_bits, silent, talk_of, text
from thinking import ForgettingChat, ThinkingChat, check_means, split, thinking

from contract.engines import FILTERS, GPU, KINDS, TOKENS, engine, stand_in
from drift_cli import models
from drift_cli.chat import chat_for, scripted
from drift_cli.chat.template import TemplateChat
from drift_cli.engine.contract import Incident, Job, Reply, Stopped
from drift_cli.engine.sampling import draw, noise_key, split_key, uniforms
from drift_cli.errors import DriftError
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Condition, Finish, Rollout

ARCHITECTURES = list(tiny.ARCHITECTURES)
Found = dict[tuple[Rollout, int], Reply]

kinds = pytest.mark.parametrize("kind", KINDS)
names = pytest.mark.parametrize("name", ["olmo3", "llama"])
"""Windows and no rewriting; none and a template that trims. What depends on more of a network is asked of all four."""
every = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    """The tiny models on the device that engines run on here."""
    root, device = tmp_path_factory.mktemp("contract"), "cuda" if GPU else "cpu"
    return {name: models.load(models.describe(str(tiny.save(name, root / name))), dtype="float32", device=device) for name in ARCHITECTURES}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


def ids(found: Found) -> dict[tuple[Rollout, int], tuple[int, ...]]:
    return {key: reply.ids for key, reply in found.items()}


def same_groups(kind: str) -> bool:
    """Whether bits are a rollout's own only within its group."""
    return kind == "reference"


def logits(model: LoadedModel, tokens: Sequence[int]) -> torch.Tensor:
    """(tokens, vocabulary) of a plain forward pass, without a cache and without padding."""
    with torch.inference_mode():
        made: torch.Tensor = model.network(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False).logits
    return made[0]


@kinds
@names
def test_1_rollouts_are_independent(kind: str, name: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand[name]
    order = [(reply.rollout, reply.turn) for reply in replies(engine(kind, model, batch=3), jobs(model), size=3)]
    assert sorted(order) == sorted((job.rollout, turn) for job in jobs(model) for turn in range(1, len(USERS) + 1))
    if not same_groups(kind):
        assert any(later < earlier for (_, earlier), (_, later) in pairwise(order))
    first, back = run(engine(kind, model), jobs(model)), run(engine(kind, model), jobs(model)[::-1])
    alone: Found = {}
    for job in jobs(model)[::2]:
        alone |= run(engine(kind, model), [job])
    assert ids(back) == ids(first)
    assert ids(alone) == {key: first[key].ids for key in alone}
    if not same_groups(kind):
        assert same_bits(back, first)
        assert same_bits(alone, {key: first[key] for key in alone})


@kinds
@every
def test_2_a_tokens_uniform_is_its_own_and_draws_it_from_plain_logits(kind: str, name: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand[name]
    todo = {job.rollout: job for job in [*jobs(model), *jobs(model, samples=1, temperature=0.0)]}
    for reply in run(engine(kind, model), todo.values()).values():
        given = logits(model, [*reply.prompt, *reply.ids])[len(reply.prompt) - 1 : -1]
        counts = torch.arange(len(reply.ids), device=model.device)
        keys = torch.tensor([split_key(todo[reply.rollout].key)] * len(reply.ids), device=model.device)
        u = uniforms(keys, torch.full_like(counts, reply.rollout.sample), torch.full_like(counts, reply.turn), counts)
        temperature = torch.full(counts.shape, reply.rollout.cell.temperature, device=model.device)
        assert tuple(draw(given, temperature, u, FILTERS).tolist()) == reply.ids


@kinds
def test_2_the_condition_is_in_the_key_only_where_that_is_asked_for(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["qwen3"]

    def said(*, independent: bool) -> dict[str, list[tuple[int, ...]]]:
        found: dict[str, list[tuple[int, ...]]] = {"one": [], "two": []}
        todo = []
        for condition in (Condition("one"), Condition("two")):
            cell = Cell("t", condition.name, 1.0)
            talk = scripted(chat_for(model.card.tokenizer, "template"), USERS, condition, model.card.end_ids)
            todo += [Job(Rollout(cell, sample), talk, noise_key(3, cell, independent=independent)) for sample in range(2)]
        for (rollout, _), reply in sorted(run(engine(kind, model), todo).items()):
            found[rollout.cell.condition].append(reply.ids)
        return found

    shared, own = said(independent=False), said(independent=True)
    assert shared["one"] == shared["two"]
    assert not set(own["one"]) & set(own["two"])
    assert len(set(shared["one"])) > len(USERS)


def _resumed(todo: list[Job], first: Found, done: Callable[[int], int]) -> tuple[list[Job], Found]:
    """Jobs as a resumed process has them, and what is left to be made."""
    for place, job in enumerate(todo):
        advance(job, *(first[job.rollout, turn].ids for turn in range(1, done(place) + 1)))
    left = {(job.rollout, turn) for job in todo for turn in range(job.turn, len(USERS) + 1)}
    return todo, {key: first[key] for key in left}


@kinds
@names
def test_3_a_resumed_rollout_repeats_an_uninterrupted_one_to_the_bit(kind: str, name: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand[name]
    first = run(engine(kind, model), jobs(model))
    for done in range(1, len(USERS)):
        todo, left = _resumed(jobs(model), first, lambda place, done=done: min(done + place % 2, len(USERS)))  # type: ignore[misc]
        again = run(engine(kind, model), todo)
        assert set(again) == set(left)
        assert same_bits(again, left)


@kinds
@pytest.mark.parametrize("habit", ["forgets", "trims"])
def test_3_a_resumed_rollout_whose_template_rewrites_history_too(kind: str, habit: str, at_hand: dict[str, LoadedModel]) -> None:
    """Inside a history that is not what was sampled: a reply's reasoning is left out of it, or its text is trimmed."""
    model = at_hand["olmo3" if habit == "forgets" else "llama"]

    def todo() -> list[Job]:
        return thinking(jobs(model), ForgettingChat) if habit == "forgets" else jobs(model)

    first = run(engine(kind, model, segmented=True), todo())
    kept = [
        first[rollout, turn + 1].prompt[: len(reply.prompt) + len(reply.ids) - 1] == (*reply.prompt, *reply.ids[:-1])
        for (rollout, turn), reply in first.items()
        if (rollout, turn + 1) in first
    ]
    assert not all(kept)
    for done in range(1, len(USERS)):
        jobs_left, left = _resumed(todo(), first, lambda place, done=done: min(done + place % 2, len(USERS)))  # type: ignore[misc]
        assert same_bits(run(engine(kind, model, segmented=True), jobs_left), left)


@kinds
@names
@pytest.mark.parametrize("chat", ["template", "raw"])
def test_4_the_cache_follows_the_conversation(kind: str, name: str, chat: str, at_hand: dict[str, LoadedModel]) -> None:
    """Prompts are the conversation's own, and every mean is that of a plain forward pass over its prompt and reply."""
    model = at_hand[name]
    todo = jobs(model, chat=chat, samples=2)
    found = run(engine(kind, model), todo)
    for job in todo:
        talk = talk_of(jobs(model, chat=chat, samples=2)[todo.index(job)])
        for turn in range(1, len(USERS) + 1):
            assert found[job.rollout, turn].prompt == talk.prompt
            talk = talk.after(found[job.rollout, turn].ids)
        assert [answered.ids for answered in talk_of(job).past] == [answered.ids for answered in talk.past]
    for reply in found.values():
        content = [token for token in reply.ids if token not in model.card.end_ids]
        assert (reply.residual is None) == (not content)
        if reply.residual is not None:
            error = np.linalg.norm(reply.residual - _means(model, reply, len(content)), axis=1) / np.linalg.norm(reply.residual, axis=1)
            assert error.max() < (1e-5 if kind == "reference" else 1e-4)


def _means(model: LoadedModel, reply: Reply, counted: int) -> np.ndarray[Any, Any]:
    """(layers + 1, width) float64: means of the reply's first `counted` tokens in a plain forward pass."""
    tokens = torch.tensor([[*reply.prompt, *reply.ids]], device=model.device)
    with torch.inference_mode():
        states = model.network(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    start = len(reply.prompt)
    return np.stack([state[0, start : start + counted].double().mean(0).cpu().numpy() for state in states])


@kinds
@pytest.mark.parametrize("chat", [ThinkingChat, ForgettingChat])
def test_4_parts_of_a_reply_have_the_means_of_a_plain_forward(kind: str, chat: type[ThinkingChat], at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["olmo3"]
    found = run(engine(kind, model, segmented=True, tokens=12), thinking(jobs(model), chat))
    assert {"plain", "both", "no answer"} <= set(check_means(model, found, 1e-5 if kind == "reference" else 1e-4))
    for reply in found.values():
        assert reply.segments == split([token for token in reply.ids if token not in model.card.end_ids])


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model with a context of 220 tokens."""
    folder = tiny.save("olmo3", tmp_path_factory.mktemp("contract") / "short", context=220)
    return models.load(models.describe(str(folder)), dtype="float32", device="cuda" if GPU else "cpu")


@kinds
def test_5_what_does_not_fit_ends_its_rollout_and_nothing_is_truncated(kind: str, short: LoadedModel) -> None:
    found = run(engine(kind, short, tokens=40), jobs(short))
    ends = [reply for reply in found.values() if reply.finish is Finish.CONTEXT]
    assert len(ends) == len(jobs(short))
    for reply in ends:
        assert len(reply.prompt) + 40 > 220
        assert (reply.ids, reply.residual) == ((), None)
        assert (reply.rollout, reply.turn + 1) not in found
    assert all(len(reply.prompt) + len(reply.ids) <= 220 for reply in found.values() if reply.ids)
    assert all(reply.finish in (Finish.STOP, Finish.LENGTH) for reply in found.values() if reply.ids)


@kinds
def test_5_a_conversation_without_a_next_prompt_ends_there(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["olmo3"]
    fails = "{%- for m in messages if m['role'] == 'assistant' and 'v' in m['content'] -%}{{ raise_exception('no') }}{%- endfor -%}"
    chat = TemplateChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"], template=fails + tiny.OLMO))
    cell = Cell("t", "baseline", 0.8)
    todo = [
        Job(Rollout(cell, n), scripted(chat, USERS, Condition("c"), model.card.end_ids), noise_key(3, cell, independent=False))
        for n in range(8)
    ]
    found = run(engine(kind, model), todo)
    ends = [reply for reply in found.values() if reply.finish is Finish.TEMPLATE]
    assert 0 < len(ends) < len(todo)
    for reply in ends:
        assert (reply.prompt, reply.ids, reply.residual) == ((), (), None)
        assert "v" in text(found[reply.rollout, reply.turn - 1])
        assert "no" in str(reply.problem)


@kinds
@names
def test_5_a_reply_ends_where_a_stop_string_begins(
    kind: str, name: str, at_hand: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same replies as without stop strings, cut: no token behind the string counts, wherever the engine notices."""
    model = at_hand[name]

    chat = chat_for(model.card.tokenizer, "raw")

    def found(stop: str) -> Found:
        monkeypatch.setattr("drift_cli.chat.raw.RAW_STOPS", (stop,))
        cell = Cell("t", "baseline", 1.1)
        talk = scripted(chat, USERS[:1], CONDITIONS[0], model.card.end_ids)
        todo = [Job(Rollout(cell, sample), talk, noise_key(5, cell, independent=False)) for sample in range(8)]
        return run(engine(kind, model, tokens=24), todo)

    whole = found("\nNobody:")
    letter = next(letter for letter in "aeiou" if sum(letter in text(reply)[3:] for reply in whole.values()) >= 3)
    shorter = 0
    for key, reply in found(letter).items():
        keeps = (chat.stop_length(whole[key].ids[:place]) for place in range(1, len(whole[key].ids) + 1))
        keep = next((keep for keep in keeps if keep is not None), None)
        assert reply.ids == whole[key].ids[:keep]
        assert keep in (None, 24) or reply.finish is Finish.STOP
        shorter += keep is not None
    assert shorter >= 3


@kinds
def test_5_an_empty_reply_counts_and_has_no_mean(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["olmo3"]
    ends = replace(model, card=replace(model.card, end_ids=frozenset(range(len(model.card.tokenizer)))))
    found = run(engine(kind, ends), jobs(ends))
    assert len(found) == len(jobs(ends)) * len(USERS)
    assert all(reply.residual is None and reply.finish is Finish.STOP and len(reply.ids) == 1 for reply in found.values())


@kinds
def test_6_logits_that_are_not_finite_are_an_error_that_names_rollout_and_turn(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["llama"]
    head = model.network.get_output_embeddings()
    weights = head.weight.detach().clone()
    try:
        head.weight.data[:] = float("nan")
        for temperature in (0.8, 0.0):
            with pytest.raises(DriftError, match=r"t/\w+/T0(\.8)?/\d{4} turn 1: the model's logits are not finite"):
                run(engine(kind, model), jobs(model, temperature=temperature))
    finally:
        head.weight.data.copy_(weights)
    assert len(run(engine(kind, model), jobs(model))) == len(jobs(model)) * len(USERS)


def _failing(work: Callable[..., Any], calls: set[int]) -> Callable[..., Any]:
    count = 0

    def limited(*args: Any, **how: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise torch.OutOfMemoryError("not enough memory (injected)")
        return work(*args, **how)

    return limited


def calls_of(kind: str, model: LoadedModel, calls: set[int], patch: pytest.MonkeyPatch) -> None:
    """Have the network run out of memory at these calls, counted from an engine's first."""
    patch.setattr(model.network, "forward", _failing(model.network.forward, calls))


@kinds
@pytest.mark.skipif(GPU, reason="captured work does not go through the network again")
@pytest.mark.parametrize("at", [3, 9, 22, 24, 61])
def test_7_out_of_memory_at_any_point_is_an_event_that_changes_no_reply(
    kind: str, at: int, at_hand: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = at_hand["qwen3"]
    expected = run(engine(kind, model), jobs(model))
    made = engine(kind, model)
    incidents: list[Incident] = []
    if kind == "reference":
        made.run(given(made, []), never, silent).close()
    else:
        made.prepare(silent)  # type: ignore[attr-defined]
    calls_of(kind, model, {at}, monkeypatch)
    got = [*replies(made, jobs(model), never, incidents.append)]
    assert len(got) == len(expected)
    assert {(reply.rollout, reply.turn): reply.ids for reply in got} == ids(expected)
    assert [incident.kind for incident in incidents] == ["out-of-memory"]
    assert made.batch < 4


@kinds
@pytest.mark.skipif(GPU, reason="captured work does not go through the network again")
def test_7_want_of_memory_for_a_single_rollout_says_what_to_do(
    kind: str, at_hand: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = at_hand["qwen3"]
    calls_of(kind, model, set(range(1, 1000)), monkeypatch)
    with pytest.raises(DriftError, match="--dtype bfloat16"):
        list(replies(engine(kind, model), jobs(model), never, lambda incident: None))


@kinds
def test_8_what_is_asked_of_a_row_changes_no_bit_of_another(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["olmo3"]
    cool, warm = jobs(model, samples=1, temperature=0.0), jobs(model, samples=1, temperature=1.3)
    mixed = run(engine(kind, model), [*cool, *warm])
    assert len({reply.ids for reply in mixed.values()}) > len(USERS)
    beside = run(engine(kind, model), [*jobs(model, samples=1, temperature=0.0), *jobs(model, samples=1, temperature=0.4)])
    for key, reply in beside.items():
        if key in mixed:
            assert reply.ids == mixed[key].ids
    if not same_groups(kind):
        assert same_bits({key: reply for key, reply in beside.items() if key in mixed}, {key: mixed[key] for key in beside if key in mixed})


@kinds
def test_8_parts_that_are_pooled_change_no_draw_and_no_other_rows_bits(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["olmo3"]
    plain = run(engine(kind, model, segmented=True), jobs(model, samples=2))
    half = [job if job.rollout.sample else thinking([job])[0] for job in jobs(model, samples=2)]
    thought = run(engine(kind, model, segmented=True), half)
    assert ids(plain) == ids(thought)
    own = {key: reply for key, reply in thought.items() if key[0].sample}
    assert any(reply.segments for key, reply in thought.items() if key not in own)
    assert same_bits(own, {key: plain[key] for key in own})


@kinds
@every
def test_9_the_number_of_rows_changes_no_token(kind: str, name: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand[name]
    one, three, many = (ids(run(engine(kind, model, batch=size), jobs(model), size)) for size in (1, 3, 16))
    assert one == three == many


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "reference"])
def test_9_replies_of_given_lengths_have_them(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["llama"]
    todo = [replace(job, lengths=tuple(1 + (place + turn) % TOKENS for turn in range(len(USERS)))) for place, job in enumerate(jobs(model))]
    wanted = {(job.rollout, turn + 1): length for job in todo for turn, length in enumerate(job.lengths or ())}
    assert {key: len(reply.ids) for key, reply in run(engine(kind, model), todo).items()} == wanted


@kinds
@every
def test_10_the_same_jobs_give_the_same_bits(kind: str, name: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand[name]
    assert same_bits(run(engine(kind, model), jobs(model)), run(engine(kind, model), jobs(model)))


@kinds
def test_stopping_drops_the_turn_in_progress_and_gives_the_network_its_attention_back(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["olmo3"]
    before = model.network.config._attn_implementation
    expected = run(engine(kind, model, batch=2), jobs(model), 2)
    for patience in (3, 40):
        asked: Iterator[bool] = iter([False] * patience + [True] * 1000)
        got: list[Reply] = []
        made = replies(engine(kind, model, batch=2), jobs(model), lambda asked=asked: next(asked), size=2)  # type: ignore[misc]
        with pytest.raises(Stopped):
            got.extend(made)
        assert len(got) < len(expected)
        assert all(reply.ids == expected[reply.rollout, reply.turn].ids for reply in got)
        assert model.network.config._attn_implementation == before


@kinds
def test_an_aborted_rollout_is_not_gone_on_with_and_the_others_are(kind: str, at_hand: dict[str, LoadedModel]) -> None:
    model = at_hand["olmo3"]
    todo, expected = jobs(model), run(engine(kind, model), jobs(model))
    got: Found = {}
    for reply in replies(engine(kind, model), todo):
        got[reply.rollout, reply.turn] = reply
        todo[1].abort()
    others = {key: reply for key, reply in got.items() if key[0] != todo[1].rollout}
    assert others == {key: reply for key, reply in expected.items() if key[0] != todo[1].rollout} or same_bits(
        others, {key: reply for key, reply in expected.items() if key[0] != todo[1].rollout}
    )
    if not same_groups(kind):
        assert len(got) - len(others) < len(USERS)


def test_no_engine_imports_a_chat_format_or_a_store() -> None:
    folder = Path(models.__file__).parents[1] / "engine"
    lines = [(path.name, line) for path in folder.rglob("*.py") for line in path.read_text().splitlines()]
    assert [found for found in lines if "drift_cli.chat" in found[1] or "drift_cli.store" in found[1]] == []
