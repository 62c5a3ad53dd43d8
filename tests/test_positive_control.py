"""The instrument finds what was planted in the built-in model, and nothing where nothing was.

Run with DRIFT_CONTROL_MODEL naming a model folder (what `python3 -m tools.demo_model.train` wrote), everything is asked of that model, on an axis of
its own, instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import drift
from numpy.typing import NDArray

from drift_cli.store.paths import Store
from drift_cli.store.run import Run
from tools.demo_model import register
from tools.demo_model.planted import Cue
from tools.demo_model.planted import drift as planted

GRADES = {"baseline": None, "simple": "short", "complex": "detailed", "placebo": None}
PULLS = (0, 0, 0, 1, 0, 1, 2, 2, 3, 3, 0, 0, 1, 2, 3, 3, 0, 0)
"""How much each user turn of the transcript `harbour` pulls."""
ELSEWHERE = os.environ.get("DRIFT_CONTROL_MODEL")
SAMPLES = 16 if ELSEWHERE else 8


@dataclass(frozen=True)
class Observed:
    """A run of the demo, and what was read from it."""

    document: Any
    """`drift stats --json`."""
    shares: dict[str, NDArray[np.float64]]
    """By condition: of each reply (rollouts, turns), the share of its sentences that are in the assistant's register."""
    projections: dict[str, NDArray[np.float64]]

    def comparison(self, a: str, b: str) -> Any:
        return next(c for c in self.document["comparisons"] if (c["a"], c["b"]) == (a, b))


def _observed(folder: Path, model: str | None = ELSEWHERE) -> Observed:
    """Run the demo in a folder: `generate`, `measure --controls`, `stats`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if model:
            drift("axis", "build", "--model", model, "--name", "control")
            drift("init", "--preset", "demo")
            text = Path("drift.toml").read_text()
            Path("drift.toml").write_text(text.replace('"demo"', f'"{model}"', 1).replace('axis = "demo"', 'axis = "control"'))
        drift("generate", "--samples", str(SAMPLES), "--seed", "11")
        drift("measure", "--controls", "200")
        return _read(Run.newest(Store(folder / "checkpoints")), drift("stats", "--json", "--resamples", "999").json)


def _read(run: Run, document: Any) -> Observed:
    axis = run.manifest.axes[0].name
    shares = {name: np.full((SAMPLES, len(PULLS)), np.nan) for name in GRADES}
    projections = {name: np.full((SAMPLES, len(PULLS)), np.nan) for name in GRADES}
    for state in run.states():
        name, sample = state.rollout.cell.condition, state.rollout.sample
        for turn in run.record(state.rollout).turns:
            share = register.assistant_share(turn.text)
            shares[name][sample, turn.index - 1] = np.nan if share is None else share
            projections[name][sample, turn.index - 1] = turn.projections.get(axis, np.nan)
    return Observed(document, shares, projections)


def _planted(condition: str) -> NDArray[np.float64]:
    return np.array(list(planted([Cue(pull, GRADES[condition]) for pull in PULLS])))


def _the_planted_ordering_is_found_with_intervals_apart(observed: Observed) -> None:
    cells = {cell["condition"]: cell for cell in observed.document["summary"]["cells"]}
    for lower, higher in combinations(("baseline", "simple", "complex"), 2):
        assert cells[lower]["high"] < cells[higher]["low"]
        assert observed.comparison(higher, lower)["p"] < 0.0005
        assert observed.comparison(higher, lower)["p_adjusted"] <= 0.001  # the least that 999 draws can give


def _a_prompt_as_long_and_about_nothing_does_nothing(observed: Observed) -> None:
    placebo, simple = observed.comparison("placebo", "baseline"), observed.comparison("simple", "baseline")
    assert abs(placebo["difference"]) < simple["low"]
    assert placebo["p"] > 0.01
    assert not next(t for t in observed.document["turns"] if (t["a"], t["b"]) == ("placebo", "baseline"))["turns"][0]["p_adjusted"] < 0.01


def _a_replys_projection_follows_the_register_of_its_sentences(observed: Observed) -> None:
    shares = np.concatenate([observed.shares[name].ravel() for name in GRADES])
    projections = np.concatenate([observed.projections[name].ravel() for name in GRADES])
    there = np.isfinite(shares) & np.isfinite(projections)
    assert there.mean() > 0.99
    assert np.corrcoef(shares[there], projections[there])[0, 1] >= 0.9


def _the_model_drifts_as_it_was_planted_and_dips_where_the_script_pulls(observed: Observed) -> None:
    # The less a condition drifts, the more of what its turns differ by is sampling noise.
    for condition, at_most in {"baseline": -0.8, "placebo": -0.8, "simple": -0.7, "complex": -0.5}.items():
        drifted = 1 - np.nanmean(observed.shares[condition], axis=0)
        assert abs(drifted.mean() - _planted(condition).mean()) < 0.06
        assert np.corrcoef(np.nanmean(observed.projections[condition], axis=0), _planted(condition))[0, 1] < at_most


def _the_words_part_of_a_difference_is_what_was_planted_in_the_words(observed: Observed) -> None:
    """The projection of a reply follows its register; what a prompt adds to the same words does not go by way of the register, and is told apart."""
    shares, projections = (np.concatenate([of[name].ravel() for name in GRADES]) for of in (observed.shares, observed.projections))
    there = np.isfinite(shares) & np.isfinite(projections)
    slope = np.polyfit(shares[there], projections[there], 1)[0]
    splits = {s["condition"]: s for s in observed.document["verdict"]["presence"]["splits"] if s["measure"] == "mean"}
    whole = {name: observed.comparison(name, "baseline")["difference"] for name in splits}
    for condition in ("simple", "complex", "placebo"):
        said = slope * (np.nanmean(observed.shares[condition]) - np.nanmean(observed.shares["baseline"]))
        split = splits[condition]
        assert split["words"]["difference"] + split["presence"]["difference"] == pytest.approx(whole[condition], abs=1e-6)
        assert split["words"]["low"] < said < split["words"]["high"]
        assert abs(split["words"]["difference"] - said) < 0.25
    # Of `complex` there is more than its words: the split finds what was planted, the difference as a whole does not.
    said = slope * (np.nanmean(observed.shares["complex"]) - np.nanmean(observed.shares["baseline"]))
    assert abs(splits["complex"]["words"]["difference"] - said) < abs(whole["complex"] - said) / 2
    assert splits["complex"]["presence"]["low"] > 0


def _random_axes_show_less(observed: Observed) -> None:
    standings = {(s["a"], s["b"]): s for s in observed.document["controls"] if s["kind"] == "random"}
    assert {s["count"] for s in standings.values()} == {200}
    for condition in ("simple", "complex"):
        assert standings[condition, "baseline"]["smaller"] >= 0.95
    assert standings["placebo", "baseline"]["smaller"] < 0.95


def test_what_was_planted_is_found_and_nothing_where_nothing_was(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One test: the run that all of these look at is made once, however many processes share the tests."""
    observed = _observed(tmp_path_factory.mktemp("control"))
    _the_planted_ordering_is_found_with_intervals_apart(observed)
    _a_prompt_as_long_and_about_nothing_does_nothing(observed)
    _a_replys_projection_follows_the_register_of_its_sentences(observed)
    _the_model_drifts_as_it_was_planted_and_dips_where_the_script_pulls(observed)
    _random_axes_show_less(observed)
    _the_words_part_of_a_difference_is_what_was_planted_in_the_words(observed)
