"""`generate`: a run from Python, as events. It is the run that the command makes, goes on where it stopped, and prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli import drift

import drift_cli
from drift_cli import Began, Condition, Done, DriftError, Exchange, Opened, RolloutEnded, Transcript, TurnCommitted, UsageError
from drift_cli.analysis import measure
from drift_cli.store.run import Run as Stored

SMALL: dict[str, Any] = {"samples": 2, "turns": 3, "max_new_tokens": 8, "layers": (5,), "engine": "reference"}
LINE = ("--samples", "2", "--turns", "3", "--max-new-tokens", "8", "--layers", "5", "--engine", "reference")


def rollouts(run: Stored) -> dict[str, bytes]:
    """The bytes of every rollout's files."""
    root = run.paths.rollouts_root
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.suffix in (".jsonl", ".f32")}


def test_the_run_is_the_commands_run_to_the_byte(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    events = list(drift_cli.generate(["baseline", "simple"], store=tmp_path / "python", **SMALL))
    assert capfd.readouterr() == ("", "")
    first, last = events[0], events[-1]
    assert isinstance(first, Opened)
    assert isinstance(last, Done)
    assert [event for event in events if isinstance(event, Began)] == [Began(12, 0)]
    assert sum(isinstance(event, TurnCommitted) for event in events) == 12
    assert sum(isinstance(event, RolloutEnded) for event in events) == 4
    assert (last.outcome.turns, last.outcome.interrupted) == (12, False)
    assert last.run.complete
    drift("generate", "--condition", "baseline", "--condition", "simple", *LINE, "--store", str(tmp_path / "command"))
    other = drift_cli.open(store=tmp_path / "command")
    assert other.id == last.run.id
    assert rollouts(other.stored) == rollouts(last.run.stored)
    kinds = [[event["kind"] for event in run.stored.events() if event["kind"] in ("start", "done")] for run in (other, last.run)]
    assert kinds == [["start", "done"], ["start", "done"]]
    assert last.run.stored.verify() == []


def test_a_turn_is_on_disk_when_it_is_told_of_with_what_is_stored_of_it(tmp_path: Path) -> None:
    for event in drift_cli.generate("baseline", store=tmp_path, **SMALL):
        if isinstance(event, Opened):
            run = event.run
        if isinstance(event, TurnCommitted):
            record = run.stored.record(event.rollout, residuals=True)
            on_disk = record.turns[event.turn.index - 1]
            assert (on_disk.text, on_disk.ids) == (event.turn.text, event.turn.ids)
            assert event.turn.residual is not None
            assert on_disk.residual is not None
            assert (on_disk.residual == event.turn.residual).all()


def test_who_stops_iterating_stops_the_run_and_the_same_call_goes_on(tmp_path: Path) -> None:
    whole = list(drift_cli.generate("baseline", store=tmp_path / "whole", **SMALL))[-1]
    events = drift_cli.generate("baseline", store=tmp_path / "cut", **SMALL)
    for event in events:
        if isinstance(event, TurnCommitted) and event.turn.index == 2:
            break
    events.close()  # type: ignore[attr-defined]
    run = drift_cli.open(store=tmp_path / "cut")
    done = len(run.turns())
    assert 0 < done < 6
    assert [event["kind"] for event in run.stored.events()][-1] == "interrupted"
    again = list(drift_cli.generate("baseline", store=tmp_path / "cut", **SMALL))
    assert isinstance(again[-1], Done)
    assert again[-1].outcome.turns == 6 - done
    assert isinstance(whole, Done)
    assert rollouts(again[-1].run.stored) == rollouts(whole.run.stored)
    finished = list(drift_cli.generate("baseline", store=tmp_path / "cut", **SMALL))
    assert any("complete: nothing to do" in getattr(event, "text", "") for event in finished)
    assert isinstance(finished[-1], Done)


def test_conditions_and_transcripts_are_given_by_name_or_as_they_are(tmp_path: Path) -> None:
    given = ["baseline", Condition("calm", "Stay calm.")]
    script = Transcript("mine", ("Hello?", "And now?"))
    settings = {**SMALL, "turns": None}
    *_, done = drift_cli.generate(given, transcripts=script, store=tmp_path, **settings)
    assert isinstance(done, Done)
    assert list(done.run.conditions) == ["baseline", "calm"]
    assert done.run.conditions["calm"].system == "Stay calm."
    assert done.run.turns()["user"].tolist() == ["Hello?", "And now?"] * 4
    *_, more = drift_cli.generate("simple", transcripts=[script], store=tmp_path, **settings)
    assert isinstance(more, Done)
    assert more.run.id == done.run.id
    assert list(more.run.conditions) == ["baseline", "calm", "simple"]


def test_a_user_of_ones_own_asks_depending_on_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_registered", dict(measure._registered))

    def ask(so_far: Sequence[Exchange]) -> str:
        return f"You said {len(so_far[-1].reply)} letters." if so_far else "Hello?"

    script = Transcript("curious", (), user="curious 1", turns=3)
    settings = {**SMALL, "turns": None}
    *_, done = drift_cli.generate("baseline", transcripts=script, users={"curious": ask}, store=tmp_path, **settings)
    assert isinstance(done, Done)
    turns = done.run.turns()
    for _, rollout in turns.groupby("sample"):
        expected = ["Hello?", *(f"You said {len(reply)} letters." for reply in rollout["reply"][:-1])]
        assert rollout["user"].tolist() == expected
    drift_cli.reply_measure("asked", "letters of the question")(lambda reply: len(reply.user))
    assert done.run.compare(reply_measure="asked").judged.table.projections[:, 0].tolist() == [6.0, 6.0]
    with pytest.raises(UsageError, match="curious"):
        next(drift_cli.generate("baseline", transcripts=script, store=tmp_path, **settings))


def test_what_cannot_be_asked_for_is_refused_at_once(tmp_path: Path) -> None:
    for settings, said in (
        ({"sampels": 2}, "setting 'sampels' does not exist\nDid you mean 'samples'"),
        ({"samples": "many"}, "samples is 'many'"),
        ({"preset": "nothing"}, "preset 'nothing' does not exist"),
    ):
        with pytest.raises(UsageError, match=said):
            drift_cli.generate(store=tmp_path, **settings)
    with pytest.raises(UsageError, match="condition 'simpel' is not defined"):
        drift_cli.generate("simpel", store=tmp_path)
    with pytest.raises(UsageError, match="3 is neither a name nor a Condition"):
        drift_cli.generate([3], store=tmp_path)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="both by name and as they are"):
        drift_cli.generate(transcripts=["harbour", Transcript("mine", ("Hello?",))], store=tmp_path)
    with pytest.raises(DriftError, match="no turn can be made"):
        next(drift_cli.generate(store=tmp_path, max_new_tokens=100_000))
    assert not (tmp_path / "checkpoints").exists()
    assert list(tmp_path.glob("*-*")) == []
