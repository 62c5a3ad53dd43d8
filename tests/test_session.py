"""One worker's part in a run, in this process: what it gives up, and what it records of that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from workers import make

from drift_cli import models
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.running.experiment import reopen, settings_of
from drift_cli.running.runner import Outcome, run_rollouts
from drift_cli.spec import Rollout
from drift_cli.store.run import Run
from drift_cli.workers.claims import claims_of
from drift_cli.workers.leases import Presence
from drift_cli.workers.share import take_part


def go(run: Run, stop: Callable[[], bool], kind: type[SlotEngine] | type[ReferenceEngine]) -> Outcome:
    experiment = reopen(run, settings_of(run.manifest))
    model = models.load(experiment.card, dtype="float32", device="cpu")
    spec = run.manifest.spec
    engine = kind(model, run.manifest.layers, spec.sampling, spec.max_new_tokens, 2)
    return run_rollouts(
        run,
        engine,
        chat=experiment.chat,
        axis=experiment.axis,
        end_ids=experiment.card.end_ids,
        stop=stop,
    )


@pytest.mark.parametrize("kind", [SlotEngine, ReferenceEngine])
def test_a_rollout_whose_claim_was_taken_away_is_given_up_before_its_next_commit(
    kind: type[SlotEngine] | type[ReferenceEngine], tmp_path: Path
) -> None:
    run = make(tmp_path / "run", "--samples", "1", "--max-new-tokens", "12").run
    stolen: dict[Rollout, int] = {}

    def steal() -> bool:
        """As if this worker had slept: another takes over one of its rollouts in the middle."""
        held = [rollout for rollout, _ in claims_of(run.paths) if run.paths.rollout(rollout).exists()]
        if not stolen and held:
            run.paths.claim(held[0]).write_text("thief\n")
            stolen[held[0]] = len(run.record(held[0]).turns)
        return False

    with Presence(run.paths, "thief"):
        outcome = go(run, steal, kind)
        assert not outcome.interrupted
        assert "thief" in outcome.others
        ((rollout, done),) = stolen.items()
        assert len(run.record(rollout).turns) == done
        assert [worker for held, worker in claims_of(run.paths) if held == rollout] == ["thief"]
    (event,) = [event for event in run.events() if event["kind"] == "passed-over"]
    assert event["rollouts"] == [str(rollout)]
    assert "another worker has claimed it" in event["detail"]
    assert all(state.ended for state in run.states() if state.rollout != rollout)
    # The thief has left now: the next one to come takes what it had.
    assert go(run, lambda: False, kind).others == {}
    assert all(state.ended for state in run.states())


def test_a_rollout_that_another_process_has_locked_is_passed_over_and_recorded(tmp_path: Path) -> None:
    run = make(tmp_path / "run", "--samples", "1").run
    first = run.states()[0].rollout
    with run.writer(first):
        outcome = go(run, lambda: False, SlotEngine)
        assert outcome.others == {"": 1}
    assert [state.rollout for state in run.states() if not state.ended] == [first]
    assert [event["rollouts"] for event in run.events() if event["kind"] == "passed-over"] == [[str(first)]]
    assert list(claims_of(run.paths)) == []


def test_a_rollout_that_another_process_writes_is_given_up_and_tried_again(tmp_path: Path) -> None:
    """Where locks do nothing, the file's size tells."""
    run = make(tmp_path / "run", "--samples", "1").run
    meddled: list[Rollout] = []

    def meddle() -> bool:
        begun = [rollout for rollout, _ in claims_of(run.paths) if run.paths.rollout(rollout).exists()]
        if not meddled and begun:
            meddled.append(begun[0])
            with run.paths.rollout(begun[0]).open("ab") as file:
                file.write(b"half a line")
        return False

    outcome = go(run, meddle, SlotEngine)
    assert (outcome.others, outcome.problems) == ({}, ())
    assert all(state.ended for state in run.states())
    details = [event["detail"] for event in run.events() if event["kind"] == "passed-over"]
    assert len(details) == 1
    assert "another process writes it too" in details[0]
    assert [finding for finding in run.verify() if finding.fatal] == []


def test_damage_that_only_the_last_look_meets_is_no_error_of_that_look(tmp_path: Path) -> None:
    run = make(tmp_path / "run", "--samples", "1").run
    with take_part(run) as share:
        path = run.paths.rollout(run.states()[-1].rollout)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"this is no line\n")
        share.complete = True
    assert path.read_bytes() == b"this is no line\n"


def test_damage_is_left_alone_and_told_in_the_end(tmp_path: Path) -> None:
    run = make(tmp_path / "run", "--samples", "1").run
    damaged = run.states()[-1].rollout

    def damage() -> bool:
        path = run.paths.rollout(damaged)
        if not path.exists():
            path.parent.mkdir(parents=True)
            path.write_bytes(b"this is no line\n")
        return False

    outcome = go(run, damage, SlotEngine)
    assert [str(run.paths.rollout(damaged)) in problem.what for problem in outcome.problems] == [True]
    assert run.paths.rollout(damaged).read_bytes() == b"this is no line\n"
    run.repair()
    assert all(state.ended for state in run.states() if state.rollout != damaged)
