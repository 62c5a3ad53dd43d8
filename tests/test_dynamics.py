"""How rollouts move: what was planted in mean-reverting rollouts is found, and marks of pulls come from the transcript."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli import drift
from report_run import make_run

from drift_cli import transcripts
from drift_cli.analysis.dynamics import Dynamic, Movement, half_life, movements, persistence, persistences, settled
from drift_cli.analysis.results import Options
from drift_cli.analysis.table import RunTable
from drift_cli.errors import UsageError
from drift_cli.spec import Cell, Transcript
from drift_cli.store.decode import decode, plain

TURNS = 18


def reverting(rng: np.random.Generator, n: int, phi: float, level: float, start: float = 0.0) -> np.ndarray:
    """Rollouts (n, TURNS) that return to levels of their own around `level`, beginning `start` above them."""
    own = level + 0.3 * rng.normal(size=n)
    made = np.empty((n, TURNS))
    made[:, 0] = own + start + 0.4 / np.sqrt(1 - phi**2) * rng.normal(size=n)
    for turn in range(1, TURNS):
        made[:, turn] = own + phi * (made[:, turn - 1] - own) + 0.4 * rng.normal(size=n)
    return made


def _found(a: np.ndarray, b: np.ndarray, pulls: tuple[int, ...] = ()) -> dict[tuple[Dynamic, str], Movement]:
    table = RunTable.from_arrays("r", "x", {Cell("s", "baseline", 0.5): b, Cell("s", "firm", 0.5): a})
    return {(row.measure, row.condition): row for row in movements(table, "baseline", Options(), {"s": pulls})}


def test_persistence_is_found_without_its_bias() -> None:
    rng = np.random.default_rng(1)
    for phi in (0.2, 0.5, 0.7):
        made = reverting(rng, 4000, phi, 0.0)
        around = made - made.mean(axis=0)
        assert persistence([around]) == pytest.approx(phi, abs=0.03)
        assert persistences(around).mean() == pytest.approx(phi, abs=0.03)
    assert half_life(0.5) == pytest.approx(1.0)
    assert half_life(-0.1) is None


def test_the_equilibrium_forgets_where_rollouts_began() -> None:
    rng = np.random.default_rng(2)
    a, b = reverting(rng, 400, 0.7, 0.5, start=2.0), reverting(rng, 400, 0.7, 0.0)
    found = _found(a, b)[Dynamic.EQUILIBRIUM, "firm"].difference
    assert found is not None
    assert found.difference == pytest.approx(0.5, abs=0.08)
    assert a.mean() - b.mean() > 0.8
    assert settled(np.full((3, 5), 2.0), 0.5) == pytest.approx(2.0)


def test_a_rollout_that_comes_back_faster_has_a_shorter_half_life() -> None:
    rng = np.random.default_rng(3)
    found = _found(reverting(rng, 40, 0.2, 0.0), reverting(rng, 40, 0.7, 0.0))
    fast, slow = found[Dynamic.PHI, "firm"], found[Dynamic.PHI, "baseline"]
    assert fast.half_life is not None
    assert slow.half_life is not None
    assert fast.half_life < slow.half_life
    assert fast.p_adjusted is not None
    assert fast.p_adjusted < 0.01
    assert slow.difference is None


def test_the_turns_behind_marked_pulls_count_else_the_largest_drop() -> None:
    rng = np.random.default_rng(4)
    script = np.zeros(TURNS)
    script[9] = -3.0  # turn 10 drops most
    a, b = script + rng.normal(0, 0.1, (10, TURNS)), script + rng.normal(0, 0.1, (10, TURNS))
    a[:, 5] += 1.0  # behind turn 5
    unmarked, marked = _found(a, b), _found(a, b, (5, 18))
    assert unmarked[Dynamic.AFTER_PULLS, "firm"].pulls == (10,)
    assert not unmarked[Dynamic.AFTER_PULLS, "firm"].marked
    row = marked[Dynamic.AFTER_PULLS, "firm"]
    assert (row.pulls, row.marked) == ((5,), True)  # behind turn 18 there is none
    assert row.difference is not None
    assert row.difference.difference == pytest.approx(1.0, abs=0.15)


def test_too_few_or_too_short_rollouts_have_no_dynamics() -> None:
    rng = np.random.default_rng(5)
    assert _found(rng.normal(size=(4, TURNS)), rng.normal(size=(4, TURNS))) == {}
    assert _found(rng.normal(size=(20, 4)), rng.normal(size=(20, 4))) == {}


def test_a_transcript_may_mark_its_pulls() -> None:
    Path("marked.json").write_text(json.dumps({"users": ["a", "b", "c"], "pulls": [3, 2]}))
    assert transcripts.load("marked.json").pulls == (2, 3)
    assert transcripts.load("marked.json", turns=2).pulls == (2,)
    made = Transcript("t", ("a", "b"), pulls=(2,))
    assert decode(Transcript, plain(made)) == made
    assert "pulls" not in plain(Transcript("t", ("a", "b")))
    assert made.digest == Transcript("t", ("a", "b")).digest
    for wrong in ([4], [0], ["2"], 2):
        Path("wrong.json").write_text(json.dumps({"users": ["a", "b", "c"], "pulls": wrong}))
        with pytest.raises(UsageError, match="pulls is no list of turns"):
            transcripts.load("wrong.json")


def test_the_table_stands_with_the_other_measures(tmp_path: Path) -> None:
    make_run(tmp_path, samples=9, turns=8)
    assert "How rollouts move" not in drift("stats", "--resamples", "99").out
    shown = " ".join(drift("stats", "--measures", "--resamples", "99").out.split())
    assert "How rollouts move" in shown
    assert "(none is marked: the largest drop)" in shown
    assert len(drift("stats", "--json", "--resamples", "99").json["dynamics"]) == 9
