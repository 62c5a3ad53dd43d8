"""Reference lines: what is measured, what is encoded for it, what is said, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from cli import drift

from drift_cli import models
from drift_cli.axis import Axis, project
from drift_cli.chat import chat_for, scripted
from drift_cli.engine.reference import measure, measure_parts
from drift_cli.errors import DriftError, UsageError
from drift_cli.measuring.contrast import unit
from drift_cli.measuring.reference_line import measure_replies, read
from drift_cli.models import LoadedModel
from drift_cli.spec import Condition, Part, Transcript

USERS = tuple(f"tell me more about that please, {number}, and about the light" for number in range(6))
PLAIN = tuple(f"the light is quiet, number {number}" for number in range(6))
# What templates rewrite: white space at the end (llama and gemma trim), and what stands before </think> (qwen drops it).
REWRITTEN = tuple(f"<think>hm {number}</think>I feel kind, {number}" + "\n" * (number % 2) for number in range(6))


def axis_for(model: LoadedModel, layer: int) -> Axis:
    rows = np.random.default_rng(3).standard_normal((1, model.card.width))
    return Axis("made", (layer,), unit(rows, "made"))


def turn_by_turn(script: Transcript, model: LoadedModel, axis: Axis, layer: int) -> list[float]:
    """Every reply by a plain forward pass of its own conversation."""
    assert script.replies is not None
    chat = chat_for(model.card.tokenizer, "template")
    talk = scripted(chat, script.users, Condition("reference"), model.card.end_ids)
    found = []
    for text in script.replies:
        ids = model.card.tokenizer.encode(text, add_special_tokens=False)
        prompt = list(talk.prompt)
        means = measure_parts(model, [*prompt, *ids], len(prompt), len(ids), talk.parts(ids).segments, [layer])
        found.append(float(project(means[Part.ANSWER][0], axis.at(layer))))
        talk = talk.after(ids)
    return found


@contextmanager
def counted(model: LoadedModel) -> Iterator[list[int]]:
    """The tokens of every forward pass."""
    seen: list[int] = []
    handle = model.network.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("chunk", [None, 40], ids=["whole", "in chunks"])
@pytest.mark.parametrize("replies", [PLAIN, REWRITTEN], ids=["plain", "rewritten"])
@pytest.mark.parametrize("name", list(tiny.ARCHITECTURES))
def test_a_line_is_what_plain_forward_passes_turn_by_turn_give(
    name: str, replies: tuple[str, ...], chunk: int | None, loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, script = loaded[name], Transcript("t", USERS, replies)
    layer = model.card.layers - 1
    axis, chat = axis_for(model, layer), chat_for(model.card.tokenizer, "template")
    if chunk is not None:
        from drift_cli.engine import prefill

        monkeypatch.setattr(prefill, "_MOST_ELSEWHERE", chunk)
    line = measure_replies(script, chat, model, axis, layer)
    assert line.projections == pytest.approx(turn_by_turn(script, model, axis, layer), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", list(tiny.ARCHITECTURES))
def test_a_conversation_is_encoded_once(name: str, loaded: dict[str, LoadedModel]) -> None:
    model, script = loaded[name], Transcript("t", USERS, PLAIN)
    chat = chat_for(model.card.tokenizer, "template")
    whole = len(chat.prompt(USERS, PLAIN[:-1], Condition("x"))) + len(model.card.tokenizer.encode(PLAIN[-1]))
    with counted(model) as seen:
        measure_replies(script, chat, model, axis_for(model, 1), 1)
    assert sum(seen) == whole


def test_where_the_template_rewrites_the_end_of_history_only_that_is_encoded_again(loaded: dict[str, LoadedModel]) -> None:
    from drift_cli.measuring.reference_line import plan

    model, script = loaded["llama"], Transcript("t", USERS, tuple(f"{text} \n" for text in PLAIN))
    chat = chat_for(model.card.tokenizer, "template")
    reading = plan(script, chat, model.card)
    assert len(reading.passages) == 6
    with counted(model) as seen:
        measure_replies(script, chat, model, axis_for(model, 1), 1, reading=reading)
    tried = min(192, len(reading.passages[-1].ids))
    assert sum(seen) == reading.tokens + 2 * tried + min(64, tried // 3)
    each_anew = sum(len(passage.ids) for passage in reading.passages)
    assert reading.tokens < 0.4 * each_anew


def test_a_long_conversation_is_encoded_in_chunks(loaded: dict[str, LoadedModel]) -> None:
    from drift_cli.engine.passages import Reply, passages
    from drift_cli.engine.prefill import Prefill

    model = loaded["olmo3"]
    ids = tuple(torch.randint(0, len(model.card.tokenizer), (700,), generator=torch.Generator().manual_seed(1)).tolist())
    replies = [Reply(turn, ids[:start], ids[start : start + 30], ((0, 30),)) for turn, start in enumerate((50, 101, 333, 650), 1)]
    with counted(model) as seen:
        found = dict(Prefill(model, (0, 2, 4), chunk=64).means(passages(replies)))
    assert sum(seen) - (2 * 192 + 64) == 680
    assert max(seen) <= 192
    for reply in replies:
        direct = measure(model, [*reply.prompt, *reply.ids], len(reply.prompt), 30, (0, 2, 4))
        assert np.allclose(found[reply.turn], direct, rtol=1e-4, atol=1e-5)


def test_a_cache_that_gives_other_residuals_is_not_used(loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that forgets what it had before a chunk, as recurrent ones do that were not written for chunks."""
    from drift_cli.engine import prefill
    from drift_cli.engine.passages import Reply, passages
    from drift_cli.engine.prefill import Prefill

    model = loaded["llama"]
    real = prefill._new_cache

    class Forgetful:
        def __new__(cls) -> Any:
            made = real()
            monkeypatch.setattr(made, "update", lambda key, value, layer, *rest, **more: (key, value), raising=False)
            monkeypatch.setattr(made, "get_mask_sizes", lambda length, layer: (length, 0), raising=False)
            return made

    monkeypatch.setattr(prefill, "_new_cache", Forgetful)
    ids = tuple(range(20, 220)) * 2
    replies = [Reply(1, ids[:100], ids[100:140], ((0, 40),)), Reply(2, ids[:300], ids[300:350], ((0, 50),))]
    found = dict(Prefill(model, (2,), chunk=64).means(passages(replies)))
    for reply in replies:
        direct = measure(model, [*reply.prompt, *reply.ids], len(reply.prompt), len(reply.ids), (2,))
        assert np.allclose(found[reply.turn], direct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "limit"), [("dynamic", 60), ("longrope", 120)])
def test_rotary_embeddings_that_depend_on_length_give_every_reply_a_forward_pass_of_its_own(kind: str, limit: int, tmp_path: Path) -> None:
    from drift_cli.engine.passages import passages
    from drift_cli.engine.prefill import Prefill
    from drift_cli.engine.rotary import length_threshold
    from drift_cli.measuring.reference_line import plan

    factors = {"long_factor": [4.0] * 4, "short_factor": [1.0] * 4, "original_max_position_embeddings": limit}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **(factors if kind == "longrope" else {})}
    folder = tiny.save("llama", tmp_path / kind, context=limit, rope_parameters=rope)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": limit if kind == "dynamic" else 4096}))
    card = replace(models.describe(str(folder)), context=4096)
    model, other = (models.load(card, dtype="float32", device="cpu") for _ in range(2))
    script, chat = Transcript("t", USERS, PLAIN), chat_for(card.tokenizer, "template")
    assert length_threshold(card) == limit
    reading = plan(script, chat, card)
    assert reading.apart
    axis = axis_for(model, 2)
    direct = turn_by_turn(script, other, axis, 2)
    for _ in range(2):  # whatever the network has seen before
        assert measure_replies(script, chat, model, axis, 2).projections == pytest.approx(direct, rel=1e-4, abs=1e-5)
    # The whole conversation at once gives other numbers for its first turns: this is what is avoided.
    together = dict(Prefill(model, (2,)).means(passages([reply for passage in reading.passages for reply in passage.replies])))
    assert float(project(together[1][0], axis.at(2))) != pytest.approx(direct[0], rel=1e-3)


def test_running_out_of_memory_makes_smaller_chunks_and_the_same_numbers(
    loaded: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from drift_cli.engine.passages import Reply, passages
    from drift_cli.engine.prefill import Prefill

    model, ids = loaded["qwen3"], tuple(range(10, 260)) * 2
    replies = [Reply(1, ids[:80], ids[80:120], ((0, 40),)), Reply(2, ids[:400], ids[400:440], ((0, 40),))]
    real = Prefill._forward

    def small(self: Any, chunk: Any, cache: Any) -> Any:
        if len(chunk) > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, chunk, cache)

    monkeypatch.setattr(Prefill, "_forward", small)
    found = dict(Prefill(model, (1,)).means(passages(replies)))
    monkeypatch.undo()
    for reply in replies:
        direct = measure(model, [*reply.prompt, *reply.ids], len(reply.prompt), 40, (1,))
        assert np.allclose(found[reply.turn], direct, rtol=1e-4, atol=1e-5)


def test_passages_end_where_history_is_rewritten() -> None:
    from drift_cli.engine.passages import Reply, passages

    first, second = Reply(1, (1, 2), (3, 4), ((0, 2),)), Reply(2, (1, 2, 3, 4, 5), (6,), ((0, 1),))
    rewritten = Reply(3, (1, 2, 3, 9, 5, 6, 7), (8,), ((0, 1),))
    found = passages([first, second, rewritten])
    assert [(passage.ids, passage.kept, len(passage.replies)) for passage in found] == [
        ((1, 2, 3, 4, 5, 6), 0, 2),
        ((1, 2, 3, 9, 5, 6, 7, 8), 3, 1),
    ]
    assert [(passage.kept, len(passage.replies)) for passage in passages([first, second, rewritten], apart=True)] == [(0, 1)] * 3


# --- the command


def conversation(path: str, replies: tuple[str, ...], users: tuple[str, ...] = USERS) -> None:
    turns = [({"role": "user", "content": u}, {"role": "assistant", "content": r}) for u, r in zip(users, replies, strict=False)]
    rest = [{"role": "user", "content": u} for u in users[len(replies) :]]
    Path(path).write_text(json.dumps([*(message for turn in turns for message in turn), *rest]))


def import_axis(width: int = 32, layer: int = 2, name: str = "x") -> None:
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    torch.save({"assistant": vectors[0], "bard": vectors[1]}, f"{name}_layer{layer}.pt")
    drift("axis", "import", f"{name}_layer{layer}.pt", "--name", name)


def no_weights(*given: object, **how: object) -> None:
    raise DriftError("weights were to be read")


def test_turns_that_do_not_fit_are_named_before_the_weights_are_read_and_the_others_are_measured(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "small", context=200)
    import_axis()
    conversation("talk.json", PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", no_weights)
        refused = drift("measure", "--transcript", "talk.json", "--model", str(folder), "--axis", "x", code=1)
    assert "turns 4 to 6 do not fit the context of 200 tokens" in refused.err
    line = drift("measure", "--transcript", "talk.json", "--model", str(folder), "--axis", "x", "--json")
    assert [value is None for value in line.json["projections"]] == [False] * 3 + [True] * 3
    assert line.json["note"] == "turns 4 to 6 do not fit the context of 200 tokens"
    assert line.err.index("do not fit") < line.err.index("turns to read")
    assert read(Path(line.json["file"])).projections[:3] == tuple(line.json["projections"][:3])


def test_a_conversation_of_which_nothing_fits_is_an_error(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "smaller", context=20)
    import_axis()
    conversation("talk.json", PLAIN)
    refused = drift("measure", "--transcript", "talk.json", "--model", str(folder), "--axis", "x", code=2)
    assert "no reply of transcript talk can be measured: turns 1 to 6 do not fit the context of 20 tokens" in refused.err
    assert not Path("data/reference").exists()


def test_a_later_turn_is_measured_where_the_template_has_dropped_what_did_not_fit(tmp_path: Path) -> None:
    folder = tiny.save("qwen3", tmp_path / "thinker", context=260)
    import_axis()
    long = f"<think>{'hm ' * 150}</think>yes"
    conversation("talk.json", (PLAIN[0], long, PLAIN[2]), USERS[:3])
    line = drift("measure", "--transcript", "talk.json", "--model", str(folder), "--axis", "x", "--json").json
    assert [value is None for value in line["projections"]] == [False, True, False]
    assert line["note"] == "turn 2 does not fit the context of 260 tokens"


def test_turns_shortens_a_conversation_whose_last_turn_has_no_reply() -> None:
    conversation("talk.json", PLAIN[:5])
    refused = drift("measure", "--transcript", "talk.json", "--axis", "demo", "--layer", "5", code=2)
    assert "has no replies to measure: The last user turn has no reply" in refused.err
    assert "up to turn 5 (--turns)" in refused.err
    line = drift("measure", "--transcript", "talk.json", "--axis", "demo", "--layer", "5", "--turns", "5", "--json").json
    assert (line["transcript"], len(line["projections"])) == ("talk-5", 5)


SHORT = ("--samples", "1", "--max-new-tokens", "4", "--condition", "baseline")


def test_a_line_is_drawn_on_the_runs_own_script_alone() -> None:
    conversation("talk.json", PLAIN)
    drift("generate", *SHORT, "--transcript", "talk.json", "--turns", "3")
    whole = drift("measure", "--transcript", "talk.json", "--axis", "demo", code=None)
    assert whole.code == 0
    from drift_cli.store.paths import Store
    from drift_cli.store.run import Run

    run_id = Run.newest(Store(Path("checkpoints"))).paths.run_id
    said = drift("measure", run_id, "--transcript", "talk.json").err
    assert "draws the line of talk-3: measure it with --turns 3" in said
    drift("measure", run_id, "--transcript", "talk.json", "--turns", "3")
    drift("plot", run_id, "-o", "line.svg")
    assert "reference" in Path("line.svg").read_text()
    conversation("talk.json", PLAIN, ("something else", *USERS[1:]))
    refused = drift("measure", run_id, "--transcript", "talk.json", "--turns", "3", code=2)
    assert "has another user turn 1" in refused.err


def test_an_axis_that_does_not_fit_the_runs_model_is_refused_before_anything_is_read() -> None:
    conversation("talk.json", PLAIN)
    drift("generate", *SHORT, "--transcript", "talk.json", "--turns", "2")
    import_axis(width=32)
    from drift_cli.store.paths import Store
    from drift_cli.store.run import Run

    run_id = Run.newest(Store(Path("checkpoints"))).paths.run_id
    refused = drift("measure", run_id, "--transcript", "talk.json", "--axis", "x", code=2)
    assert "axis x has width 32, but demo has width 192" in refused.err


def test_lines_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = {
        "transcript": "t",
        "axis": "a",
        "axis_digest": "d",
        "layer": 3,
        "model": "m",
        "revision": "r",
        "projections": [1.5, None],
        "note": None,
    }
    (tmp_path / "old.json").write_text(json.dumps(old))
    line = read(tmp_path / "old.json")
    assert (line.transcript, line.axis, line.layer, line.projections) == ("t", "a", 3, (1.5, None))
    assert json.loads(line.to_json()) == old


def test_a_transcript_without_replies_is_refused() -> None:
    card = models.describe("demo")
    model = models.load(card, dtype="float32", device="cpu")
    with pytest.raises(UsageError, match="no replies to measure"):
        measure_replies(Transcript("t", ("a",)), chat_for(card.tokenizer, "template"), model, axis_for(model, 1), 1)
