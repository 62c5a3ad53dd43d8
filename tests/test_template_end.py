"""A chat template that fails on some replies ends those rollouts with `template`: in both engines, interrupted or not, and wherever results are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from cli import drift
from jobs import advance, given, never, silent, talk_after, text
from test_session import go
from workers import Place, make

from drift_cli.chat import scripted
from drift_cli.chat.template import TemplateChat
from drift_cli.demo_model import tokens
from drift_cli.engine.contract import Job, Reply
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.sampling import noise_key
from drift_cli.interchange.rows import rows
from drift_cli.models import LoadedModel
from drift_cli.results.report.document import _end
from drift_cli.spec import Cell, Condition, Finish, Rollout, Sampling
from drift_cli.store.line import EndLine, read

ENGINES = pytest.mark.parametrize("kind", [SlotEngine, ReferenceEngine])
Kind = type[SlotEngine] | type[ReferenceEngine]
USERS = ("hello there you are kind", "tell me more about that please", "what is the light", "I feel quiet")
FAILS = (
    "{%- for m in messages if m['role'] == 'assistant' and WORD in m['content'] -%}{{ raise_exception('A word too much') }}{%- endfor -%}"
)

FUSSY = FAILS.replace("WORD", "'v'") + tiny.OLMO


def jobs(model: LoadedModel, samples: int = 8) -> list[Job]:
    """Rollouts of a model whose template fails once a reply has a v: some never come to that."""
    chat = TemplateChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"], template=FUSSY))
    cell = Cell("t", "baseline", 0.8)
    return [
        Job(
            Rollout(cell, n),
            scripted(chat, USERS, Condition("baseline"), model.card.end_ids),
            noise_key(3, cell, independent=False),
        )
        for n in range(samples)
    ]


def run(kind: Kind, model: LoadedModel, todo: list[Job]) -> list[Reply]:
    engine = kind(model, (1, 2), Sampling(top_p=0.9), 12, 4)
    return list(engine.run(given(engine, todo), never, silent))


@ENGINES
def test_the_reply_counts_and_the_rollout_ends_behind_it(kind: Kind, loaded: dict[str, LoadedModel]) -> None:
    replies = run(kind, loaded["olmo3"], jobs(loaded["olmo3"]))
    ends = {reply.rollout: reply for reply in replies if reply.finish is Finish.TEMPLATE}
    assert 0 < len(ends) < 8
    for sample in range(8):
        rollout = Rollout(Cell("t", "baseline", 0.8), sample)
        own = [reply for reply in replies if reply.rollout == rollout]
        assert [reply.turn for reply in own] == list(range(1, len(own) + 1))
        said = [reply for reply in own if reply.finish is not Finish.TEMPLATE]
        assert all(reply.residual is not None or not text(reply) for reply in said)
        assert ["v" in text(reply) for reply in said] == [False] * (len(said) - 1) + ["v" in text(said[-1])]
        if rollout in ends:
            end = own[-1]
            assert end is ends[rollout]
            assert "v" in text(said[-1])
            assert (end.prompt, end.ids, end.residual) == ((), (), None)
            assert f"at turn {end.turn} it fails: A word too much" in str(end.problem)
        else:
            assert len(said) == len(USERS)


def test_both_engines_end_the_same_rollouts_at_the_same_turns(loaded: dict[str, LoadedModel]) -> None:
    found = [
        {
            (reply.rollout, reply.turn): (reply.ids, reply.finish, reply.problem)
            for reply in run(kind, loaded["olmo3"], jobs(loaded["olmo3"]))
        }
        for kind in (SlotEngine, ReferenceEngine)
    ]
    assert found[0] == found[1]


@ENGINES
def test_a_rollout_that_was_brought_to_its_end_by_another_process_ends_alike(kind: Kind, loaded: dict[str, LoadedModel]) -> None:
    before = run(kind, loaded["olmo3"], jobs(loaded["olmo3"]))
    again = jobs(loaded["olmo3"])
    for job in again:
        for reply in before:
            if reply.rollout == job.rollout and reply.finish is not Finish.TEMPLATE:
                advance(job, reply.ids)
    ends = {reply.rollout: (reply.turn, reply.problem) for reply in before if reply.finish is Finish.TEMPLATE}
    news = run(kind, loaded["olmo3"], again)
    assert {reply.rollout: (reply.turn, reply.problem) for reply in news} == ends
    assert {(reply.finish, reply.prompt, reply.ids) for reply in news} == {(Finish.TEMPLATE, (), ())}


def prepared(folder: Path, *options: str) -> Place:
    """Rollouts of four turns, and of two."""
    folder.parent.mkdir(exist_ok=True)
    script = folder.parent / "script.json"
    script.write_text(json.dumps({"users": ["Hello there", "Who are you?", "Tell me of the moon", "Thank you"]}))
    return make(folder, "--transcript", str(script), *options)


def after(asked: int) -> Callable[[], bool]:
    """Says stop once it was asked so often."""
    times = iter(range(10**6))
    return lambda: next(times) >= asked


@ENGINES
def test_an_interrupted_run_ends_its_rollouts_as_an_uninterrupted_one(kind: Kind, tmp_path: Path) -> None:
    model = str(tiny.save("olmo3", tmp_path / "tiny-fussy", template=FUSSY))
    whole, broken = (
        prepared(tmp_path / name, "--model", model, "--samples", "4", "--max-new-tokens", "12") for name in ("whole", "broken")
    )
    assert not go(whole.run, lambda: False, kind).interrupted
    interrupted = 0
    while not broken.complete:
        interrupted += go(broken.run, after(40), kind).interrupted
    assert interrupted > 1
    assert broken.files() == whole.files()
    ends = [state.end for state in whole.run.states() if state.end is not None]
    assert {end.finish for end in ends} == {Finish.COMPLETE, Finish.TEMPLATE}
    assert all(end.prompt_length is None for end in ends if end.finish is Finish.TEMPLATE)
    assert whole.run.verify() == []
    # Killed between the last turn's line and the end's: the next process writes the end's line again, byte for byte.
    ended = [state.rollout for state in broken.run.states() if state.end is not None and state.end.finish is Finish.TEMPLATE]
    path = broken.run.paths.rollout(ended[0])
    *turns, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(turns))
    assert not broken.complete
    go(broken.run, lambda: False, kind)
    assert broken.files() == whole.files()
    content, _ = read(last[:-1])
    assert isinstance(content, EndLine)
    assert content.end.finish is Finish.TEMPLATE


def test_the_end_is_told_recorded_counted_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The built-in model, with a template that does not like to be spoken to.
    monkeypatch.setattr(tokens, "TEMPLATE", FAILS.replace("WORD", "'you'") + tokens.TEMPLATE)
    place = prepared(tmp_path / "run", "--samples", "2", "--max-new-tokens", "14", "--axis", "demo", "--layer", "5", "--layers", "5")
    monkeypatch.chdir(place.folder)
    result = drift("resume", place.run.paths.run_id, "--engine", "slots", "--json")
    early = [state for state in place.run.states() if state.end is not None and state.end.finish is Finish.TEMPLATE]
    cells: list[dict[str, Any]] = result.json["cells"]
    assert sum(cell["ended_for_template"] for cell in cells) == len(early) > 0
    assert sum(cell["ended_for_context"] for cell in cells) == 0
    first = early[0]
    assert first.end is not None
    assert f"{first.rollout} ends before turn {first.end.turn}: the chat template does not render" in result.err
    events = [event for event in place.run.events() if event["kind"] == "template"]
    assert {(event["rollout"], event["turn"]) for event in events} == {(str(state.rollout), state.end.turn) for state in early if state.end}
    assert all("A word too much" in event["detail"] for event in events)
    shown = [row for row in rows(place.run, ()) if row.finish == "template"]
    assert [(row.rollout, row.reply, row.prompt_length) for row in shown] == [(state.rollout, None, None) for state in early]
    assert _end(place.run.record(first.rollout), 4) == (f"no prompt from the chat template for turn {first.end.turn}", first.end.turn)
    first_table = drift("stats", place.run.paths.run_id, "--full").out
    assert sum(map(int, re.findall(r"(\d+) template", first_table))) == len(early)
    assert drift("runs", "verify", place.run.paths.run_id).code == 0
    # There is nothing to go on with.
    before = place.files()
    drift("resume", place.run.paths.run_id)
    assert place.files() == before


def test_replies_that_never_come_to_an_answer_lead_on_in_both_engines(loaded: dict[str, LoadedModel]) -> None:
    """The prompt begins a thought, and random weights do not know how to end it: all is reasoning, and what is left of it in history is an empty reply."""
    model = loaded["olmo3"]
    template = tiny.OLMO.replace("m['content'] }}", "m['content'].split('</think>')[-1] }}").replace(
        "assistant{{ '\n' }}", "assistant\n<think>{{ '\n' }}"
    )
    chat = TemplateChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"], template=template))
    cell = Cell("t", "baseline", 0.8)
    found = []
    for kind in (SlotEngine, ReferenceEngine):
        talks = [scripted(chat, USERS, Condition("baseline"), model.card.end_ids) for _ in range(4)]
        todo = [Job(Rollout(cell, n), it, noise_key(3, cell, independent=False)) for n, it in enumerate(talks)]
        replies = run(kind, model, todo)
        assert len(replies) == 4 * len(USERS)
        assert {text(reply) for reply in replies} == {""}
        last = [reply for reply in replies if reply.turn == len(USERS)]
        assert all(talk_after(reply).said[-1].reasoning for reply in last)
        assert chat.tokenizer.decode(last[0].prompt).count("<|im_start|>assistant\n<|im_end|>") == len(USERS) - 1
        found.append({(reply.rollout, reply.turn): (reply.prompt, reply.ids) for reply in replies})
    assert found[0] == found[1]
