"""Two runs that an earlier version made, whose lines are of format 1: they open, verify, resume, grow and are exported, and their lines stay what they were."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli import drift
from workers import Place

from drift_cli.errors import StoreError
from drift_cli.running import machine
from drift_cli.running.machine import epoch_now
from drift_cli.spec import Finish, Turn
from drift_cli.store.line import TurnLine, encode, first_link
from drift_cli.store.run import Run

KEPT = Path(__file__).parent / "data" / "format1"
RUN = "kept-2f523b38"
LINE_2 = b'"user":'


def kept(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(KEPT / name, folder / name)
    shutil.copy(KEPT / "short.json", folder / name)
    monkeypatch.chdir(folder / name)
    return Place(folder / name)


def digest(run: Run) -> str:
    """Of everything that is stored of rollouts."""
    root, found = run.paths.rollouts_root, hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in {".jsonl", ".f32"}):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()


OURS = ("drift", "slots")
"""Versions of drift's own: another one of these alone must not change a bit of these short conversations."""


def same_software(run: Run) -> bool:
    """Whether the libraries and the number of threads are those with which the kept runs were made."""
    now, then = epoch_now("cpu", "slots", 2, 1), run.manifest.epochs[0]
    others = [{name: version for name, version in epoch.versions.items() if name not in OURS} for epoch in (now, then)]
    return others[0] == others[1] and now.device == then.device


@pytest.fixture
def as_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns are recorded as of the earlier version, so that their lines can be compared byte for byte."""
    then = Place(KEPT / "finished").run.manifest.epochs[0]
    if same_software(Place(KEPT / "finished").run):
        monkeypatch.setattr(machine, "epoch_now", lambda *given: then)


def texts(run: Run) -> dict[str, list[tuple[str, tuple[int, ...] | None]]]:
    return {str(state.rollout): [(turn.text, turn.ids) for turn in run.record(state.rollout).turns] for state in run.states()}


def test_a_run_of_an_earlier_version_opens_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = kept("finished", tmp_path, monkeypatch)
    assert place.run.verify() == []
    assert drift("runs", "verify", RUN).code == 0
    assert drift("runs", "show", RUN).code == 0
    turns = [turn for state in place.run.states() for turn in place.run.record(state.rollout, residuals=True).turns]
    assert len(turns) == 12
    assert all(turn.user is None and turn.residual is not None and set(turn.projections) == {"small"} for turn in turns)
    assert place.run.manifest.lines == 1


def test_an_unfinished_run_goes_on_to_the_bytes_that_the_earlier_version_gave(
    as_then: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, whole = kept("unfinished", tmp_path, monkeypatch), Place(KEPT / "finished")
    before = place.files()
    assert drift("resume", RUN).code == 0
    run = place.run
    assert run.verify() == []
    assert texts(run) == texts(whole.run)
    assert all(place.files()[name].startswith(content) for name, content in before.items())
    assert not any(LINE_2 in content for content in place.files().values())
    assert run.manifest.lines == 1
    assert b'"lines"' not in run.paths.manifest.read_bytes()
    if same_software(run):
        assert digest(run) == json.loads((KEPT / "digests.json").read_text())["finished"]
        assert place.files() == whole.files()
    else:
        for state in run.states():
            mine, theirs = (found.record(state.rollout, residuals=True).turns for found in (run, whole.run))
            for one, other in zip(mine, theirs, strict=True):
                assert one.residual is not None
                assert other.residual is not None
                assert np.allclose(one.residual, other.residual, rtol=1e-3, atol=1e-4)


def test_a_run_of_an_earlier_version_that_grows_stays_in_its_format(as_then: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = kept("finished", tmp_path, monkeypatch)
    before = place.files()
    settings = json.loads(place.run.paths.manifest.read_bytes())["settings"]
    assert settings["samples"]["value"] == 2
    drift(
        *("generate", "--model", "demo", "--max-new-tokens", "8", "--batch", "2", "--samples", "3", "--condition", "baseline"),
        *("--condition", "simple", "--temperature", "0.7", "--transcript", "short.json", "--axis", str(axis_of(place)), "--layer", "3"),
        *("--layers", "3", "--name", "kept", "--engine", "slots"),
    )
    run = place.run
    assert run.paths.run_id == RUN
    assert [state.rollout.sample for state in run.states()] == [0, 1, 2, 0, 1, 2]
    assert all(state.complete for state in run.states())
    assert run.verify() == []
    assert {name: place.files()[name] for name in before} == before
    assert not any(LINE_2 in content for content in place.files().values())
    if same_software(run):
        assert digest(run) == json.loads((KEPT / "digests.json").read_text())["extended"]


def axis_of(place: Place) -> Path:
    return place.run.paths.axis("small")


def test_a_run_of_an_earlier_version_is_exported_with_its_users_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept("finished", tmp_path, monkeypatch)
    drift("export", RUN, "--format", "csv", "--output", "out.csv")
    rows = (tmp_path / "finished" / "out.csv").read_text().splitlines()
    assert len(rows) == 13
    assert all(any(text in row for text in ("hello there", "who are you", "tell me more")) for row in rows[1:])


def test_a_repair_of_a_run_of_an_earlier_version_keeps_what_is_whole(
    as_then: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = kept("finished", tmp_path, monkeypatch)
    path = place.run.paths.rollout(place.run.states()[0].rollout)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40] + b"x" + lines[1][41:] + b"".join(lines[2:]))
    assert drift("runs", "verify", RUN, "--repair", code=None).code in (0, 1)
    assert path.read_bytes() == lines[0]
    drift("resume", RUN)
    if same_software(place.run):
        assert digest(place.run) == json.loads((KEPT / "digests.json").read_text())["finished"]


def test_lines_of_the_other_format_are_refused_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = kept("unfinished", tmp_path, monkeypatch)
    run = place.run
    rollout = run.states()[0].rollout
    turn = Turn(2, "hm", Finish.STOP, (5, 6), 10, "ab" * 16, None, user="who are you")
    with run.writer(rollout) as log, pytest.raises(StoreError, match="lines are of format 1, which does not hold the user's text"):
        log.append(turn)
    path = run.paths.rollout(rollout)
    last = path.read_bytes().splitlines()[-1]
    path.write_bytes(last + b"\n" + encode(TurnLine(turn, None, 0), hashlib.sha256(last).hexdigest()[:32]) + b"\n")
    with pytest.raises(StoreError, match="line of another format than those before it"):
        run.record(rollout)
    other = run.states()[3].rollout
    run.paths.rollout(other).parent.mkdir(parents=True, exist_ok=True)
    first = replace(turn, index=1, user="hello there")
    run.paths.rollout(other).write_bytes(encode(TurnLine(first, None, 0), first_link(RUN, other)) + b"\n")
    problems = [finding.problem for finding in run.verify() if finding.file == run.paths.rollout(other)]
    assert "turn 1 is a line of another format than the run's lines (format 1)" in problems
