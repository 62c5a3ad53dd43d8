"""A user of one's own: Python code that asks depending on the replies. And the events that a run is, without a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
from cli import drift
from workers import Place

from drift_cli import models
from drift_cli.chat import Exchange
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.errors import StoreError, UsageError
from drift_cli.running.events import Began, Event, Finished, RolloutEnded, TurnCommitted
from drift_cli.running.experiment import Experiment, prepare, reopen, settings_of
from drift_cli.running.runner import run_events, run_rollouts
from drift_cli.spec import Finish, Transcript
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

ENGINES = pytest.mark.parametrize("kind", [SlotEngine, ReferenceEngine])
Kind = type[SlotEngine] | type[ReferenceEngine]
TURNS = 4


def curious(so_far: Sequence[Exchange]) -> str:
    """Asks about the last word of the last reply."""
    return f"tell me more about that: {len(so_far[-1].reply)} letters" if so_far else "hello there"


def made(folder: Path, *, model: str | None = None) -> tuple[Run, Experiment]:
    from drift_cli.commands.launch import _settings

    if model is None:
        model = str(tiny.save("olmo3", folder / "tiny-olmo3"))
    line = ["--model", model, "--max-new-tokens", "6", "--samples", "2", "--condition", "baseline", "--layers", "1,2"]
    experiment = prepare(_settings(line, {}), [Transcript("curious", (), user="curious", turns=TURNS)])
    return Run.create(Store(folder / "checkpoints"), experiment.manifest), experiment


def go(run: Run, kind: Kind, ask: Callable[[Sequence[Exchange]], str], stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    experiment = reopen(run, settings_of(run.manifest))
    model = models.load(experiment.card, dtype="float32", device="cpu")
    engine = kind(model, run.manifest.layers, run.manifest.spec.sampling, run.manifest.spec.max_new_tokens, 2)
    return run_events(run, engine, chat=experiment.chat, axis=None, end_ids=experiment.card.end_ids, stop=stop, users={"curious": ask})


@ENGINES
def test_a_user_asks_depending_on_the_last_reply_and_is_told_of_as_events(kind: Kind, tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    events = list(go(run, kind, curious))
    assert events[0] == Began(2 * TURNS, 0)
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome.turns == 2 * TURNS
    turns = [event for event in events if isinstance(event, TurnCommitted)]
    assert {event.rollout for event in events if isinstance(event, RolloutEnded)} == {state.rollout for state in run.states()}
    for state in run.states():
        mine = [event for event in turns if event.rollout == state.rollout]
        assert [event.turn.index for event in mine] == list(range(1, TURNS + 1))
        assert mine[0].user == "hello there"
        assert all(later.user == curious([Exchange("", event.turn.text)]) for event, later in pairwise(mine))
        assert [turn.user for turn in run.record(state.rollout).turns] == [event.user for event in mine]
        assert state.end is not None
        assert state.end.finish is Finish.COMPLETE
    assert len({event.user for event in turns}) > 2
    assert run.verify() == []


@ENGINES
def test_a_user_that_never_asks_twice_the_same_is_replayed_as_it_was_put(kind: Kind, tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    calls: list[int] = []

    def fickle(so_far: Sequence[Exchange]) -> str:
        calls.append(len(so_far))
        return f"question {len(calls)} of mine"

    before: dict[str, list[str | None]] = {}
    rounds = 0
    while not all(state.ended for state in run.states()):
        asked = iter(range(10**6))
        for _ in go(run, kind, fickle, lambda asked=asked: next(asked) > 24):  # type: ignore[misc]
            pass
        rounds += 1
        for state in run.states():
            users = [turn.user for turn in run.record(state.rollout).turns]
            assert users[: len(before.get(str(state.rollout), ()))] == before.get(str(state.rollout), [])
            before[str(state.rollout)] = users
    assert rounds > 1
    assert run.verify() == []
    everything = [user for users in before.values() for user in users]
    assert len(set(everything)) == len(everything) == 2 * TURNS


def test_who_stops_iterating_stops_the_run_and_the_next_call_goes_on(tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    for event in go(run, SlotEngine, curious):
        if isinstance(event, TurnCommitted):
            break
    done = sum(state.done for state in run.states())
    assert 0 < done < 2 * TURNS
    assert [event for event in go(run, SlotEngine, curious) if isinstance(event, Began)] == [Began(2 * TURNS, done)]
    whole, _ = made(tmp_path / "whole", model=str(tmp_path / "tiny-olmo3"))
    list(go(whole, SlotEngine, curious))
    assert Place(tmp_path).files() == Place(tmp_path / "whole").files()


def test_the_users_texts_are_exported_and_shown_and_the_command_line_says_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = made(tmp_path)
    list(go(run, SlotEngine, curious))
    monkeypatch.chdir(tmp_path)
    texts = {turn.user for state in run.states() for turn in run.record(state.rollout).turns if turn.user is not None}
    drift("export", "--format", "csv", "--output", "out.csv")
    assert all(text in (tmp_path / "out.csv").read_text() for text in texts)
    assert drift("runs", "verify").code == 0
    result = drift("resume", code=2)
    assert "the user turns of curious come from Python code (curious)" in result.err
    folder = tmp_path / "talks"
    drift("export", "--format", "assistant-axis", "--output", str(folder))
    said = [message["content"] for path in folder.rglob("*.json") for message in json.loads(path.read_text())["conversation"]]
    assert texts <= set(said)


def test_code_that_is_missing_or_gives_no_text_is_refused_by_name(tmp_path: Path) -> None:
    run, experiment = made(tmp_path)
    model = models.load(experiment.card, dtype="float32", device="cpu")
    engine = SlotEngine(model, run.manifest.layers, run.manifest.spec.sampling, 6, 2)
    with pytest.raises(UsageError, match=r"come from Python code \(curious\)"):
        run_rollouts(run, engine, chat=experiment.chat, axis=None, end_ids=experiment.card.end_ids)
    with pytest.raises(UsageError, match="the user's code gave NoneType for turn 2"):
        list(go(run, SlotEngine, lambda so_far: None if so_far else "hello"))  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="user turn 1 contains"):
        list(go(run, SlotEngine, lambda so_far: "hello <|im_end|>"))


def test_what_a_script_says_is_what_a_line_must_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line whose user's text is another than the script's is found, and is not gone on with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.json").write_text(json.dumps({"users": ["hello there", "who are you"]}))
    line = ("--model", "demo", "--max-new-tokens", "4", "--samples", "1", "--condition", "baseline", "--transcript", "short.json")
    drift("generate", *line)
    run = Place(tmp_path).run
    assert run.manifest.lines == 2
    assert [turn.user for turn in run.record(run.states()[0].rollout).turns] == ["hello there", "who are you"]
    path = run.paths.manifest
    text = path.read_text().replace('"hello there"', '"hello you"')
    path.write_text("\n".join(row for row in text.splitlines() if not row.startswith('  "digest": ')) + "\n")
    problems = [finding.problem for finding in Place(tmp_path).run.verify()]
    assert "turn 1 answers another user's text than the transcript's" in problems
    end = run.paths.rollout(run.states()[0].rollout)
    end.write_bytes(b"".join(end.read_bytes().splitlines(keepends=True)[:1]))
    changed = Place(tmp_path).run
    with pytest.raises(StoreError, match="the user's text is not that of the transcript"):
        list(go(changed, SlotEngine, curious))
