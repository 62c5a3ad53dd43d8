"""The verdict in words, and what the commands for pictures and reports say and refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli import drift
from report_run import make_run, trace_run
from store_fixtures import manifest

from drift_cli.analysis.results import Options
from drift_cli.analysis.study import analyze
from drift_cli.analysis.table import RunTable
from drift_cli.report.verdict import verdict
from drift_cli.spec import Cell
from drift_cli.store.paths import Store
from drift_cli.store.run import Run


def _said(
    shifts: dict[str, float], slopes: dict[str, float] | None = None, n: int = 12, flagged: bool = False, noise: float = 0.2
) -> list[str]:
    rng = np.random.default_rng(5)
    turns = np.arange(10)

    def noisy() -> np.ndarray:
        made = rng.normal(0, noise, (n, 10))
        return made - made.mean(axis=0)  # so that differences of means are exactly those of the shifts

    cells = {Cell("talk", name, 0.7): 2 + shift + (slopes or {}).get(name, 0.0) * turns + noisy() for name, shift in shifts.items()}
    table = RunTable.from_arrays("run", "assistant", cells)
    if flagged:
        table.flags.reciting[0, :3] = True
    return [sentence.text for sentence in verdict(analyze(table, Options(against="baseline")), "baseline")]


def test_a_condition_that_holds_the_model_is_said_to_with_its_evidence() -> None:
    said = _said({"baseline": 0.0, "firm": 1.0}, {"baseline": -0.1, "firm": 0.0})
    assert said[0].startswith("Under baseline the mean projection is +")
    assert "Under firm the model stays nearer the assistant's end of the axis than under baseline: by +1." in said[1]
    assert "95 % interval +1." in said[1]
    assert "p < .0001" in said[1]
    assert "It also drifts less from turn to turn: its slope differs by +0.1" in said[1]
    assert "Tested together, turns 1–10 of 10 differ." in said[1]
    assert said[2].startswith("One transcript (talk)")


def test_a_condition_that_makes_it_worse_is_said_to() -> None:
    assert "stays further from the assistant's end of the axis than under baseline: by −1." in _said({"baseline": 0.0, "odd": -1.0})[1]


def test_no_difference_is_said_to_be_not_shown_rather_than_absent() -> None:
    said = _said({"baseline": 0.0, "same": 0.0})[1]
    assert said.startswith("No difference between same and baseline is shown: ")
    assert "slope" not in said
    assert "Tested together" not in said


def test_one_rollout_a_side_gives_no_verdict_and_says_why() -> None:
    said = _said({"baseline": 0.0, "odd": 3.0}, n=1)
    assert "No difference between odd and baseline is shown" in said[1]
    assert "One rollout" in said[1]


def test_one_condition_is_described() -> None:
    assert len([text for text in _said({"baseline": 0.0}) if text.startswith("Under baseline")]) == 1


def test_flagged_replies_limit_the_verdict() -> None:
    assert "3 of 120 replies of baseline are flagged; the tables come with and without them." in _said(
        {"baseline": 0.0, "a": 1.0}, flagged=True
    )


# Commands


@pytest.fixture
def run(tmp_path: Path) -> str:
    made = make_run(tmp_path)
    trace_run(made)
    return made.paths.run_id


def test_all_kinds_are_drawn_and_those_that_cannot_be_say_why(run: str) -> None:
    done = drift("plot", "--kind", "all", "--format", "svg", "--json")
    names = [Path(file).stem.removeprefix(f"{run}-") for file in done.json["files"]]
    assert names == ["trajectory", "difference", "forest", "heatmap", "ridgeline", "tokens"]
    assert "no layers: run" in done.err
    assert "--layers all" in done.err
    assert all(Path(file).read_text().startswith("<?xml") for file in done.json["files"])


def test_one_kind_that_cannot_be_drawn_is_an_error(run: str) -> None:
    assert "stored no residual layers" in drift("plot", "--kind", "layers", code=1).err


def test_pictures_are_drawn_in_every_style_and_where_asked_for(run: str) -> None:
    drift("plot", "--style", "talk-dark", "--annotate", "pulls", "--annotate", "2", "--title", "a $title$ <b>", "-o", "out/picture.svg")
    svg = Path("out/picture.svg").read_text()
    assert "a $title$ &lt;b&gt;" in svg
    assert "Turn 2, user: “What do you say to question 2?”" in svg
    assert "#15181d" in svg


def test_tokens_shows_the_lowest_reply_or_the_one_that_is_named(run: str) -> None:
    drift("plot", "--kind", "tokens", "--reply", "simple/0/turn-2", "-o", "named.svg")
    assert "simple, rollout 0, turn 2" in Path("named.svg").read_text()
    drift("plot", "--kind", "tokens", "-o", "lowest.svg")
    assert "baseline, rollout 0, turn 5" in Path("lowest.svg").read_text()
    assert "is not traced" in drift("plot", "--kind", "tokens", "--reply", "simple/3/turn-1", code=2).err
    assert "has no turn 99" in drift("plot", "--kind", "tokens", "--reply", "simple/0/turn-99", code=2).err
    assert "names no reply" in drift("plot", "--kind", "tokens", "--reply", "simple", code=2).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "pie"), "there is no kind 'pie'"),
        (("--style", "poster"), "there is no style 'poster'"),
        (("--bands", "wide"), "there are no 'wide' bands"),
        (("--annotate", "ten"), "'ten' is no turn"),
        (("--annotate", "77"), "no transcript has turn 77"),
        (("--against", "nobody"), "condition 'nobody' is not in this run"),
        (("-o", "picture.jpg"), "no known picture format"),
    ],
)
def test_what_makes_no_picture_is_refused(run: str, arguments: tuple[str, ...], message: str) -> None:
    assert message in drift("plot", *arguments, code=2).err


def test_a_text_picture_in_a_pipe_has_no_colours(run: str) -> None:
    said = drift("plot", "--kind", "text").out
    assert "o baseline   x simple   + complex" in said
    assert "\x1b" not in said
    assert drift("plot", "--kind", "text", "--json").json["text"] == said.rstrip("\n")


def test_a_report_is_one_file_with_the_run_the_verdict_and_the_tables(run: str) -> None:
    done = drift("report", "--json").json
    assert done["run"] == run
    path = Path(done["file"])
    assert path.stat().st_size == done["bytes"]
    assert path.name == f"{run}-report.html"
    drift("report", "--output", "again.html", "--title", "For <b> & you")
    text = Path("again.html").read_text()
    assert "<title>For &lt;b&gt; &amp; you</title>" in text
    assert path.read_bytes() == (drift("report") and path.read_bytes())
    assert "no HTML file's name" in drift("report", "-o", "report.pdf", code=2).err


def test_a_run_without_a_turn_has_neither_picture_nor_report(tmp_path: Path) -> None:
    Run.create(Store(tmp_path / "checkpoints"), manifest(layers=()))
    for command in ("plot", "report"):
        assert "has no committed turn" in drift(command, code=1).err


def test_a_report_of_one_reply_is_made(tmp_path: Path) -> None:
    make_run(tmp_path, conditions=("baseline",), samples=1, turns=1)
    assert drift("report", "--json").json["bytes"] > 10_000
