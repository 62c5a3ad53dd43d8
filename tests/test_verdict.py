"""The verdict in words, and what the commands for pictures and reports say and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli import drift
from plain_json import assert_plain
from report_run import make_run, trace_run
from scipy import stats
from store_fixtures import manifest

from drift_cli.analysis.breaks import _times, bimodal, breaks, newcombe
from drift_cli.analysis.confounds import _adjusted, _Cell, _slope_parts
from drift_cli.analysis.measures import Sample, merged
from drift_cli.analysis.replies import Replies
from drift_cli.analysis.results import Options
from drift_cli.analysis.rules import Verdict
from drift_cli.analysis.scale import PersonaScale
from drift_cli.analysis.study import analyze
from drift_cli.analysis.table import RunTable
from drift_cli.analysis.verdict import Answer, Judgement, answer
from drift_cli.results.pictures import Picture
from drift_cli.results.tables.answer import lines, sentences
from drift_cli.results.tables.cautions import cautions
from drift_cli.spec import Cell
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

TURNS = 10


def _table(paths: dict[str, Callable[[np.ndarray], np.ndarray]], n: int = 12, noise: float = 0.2, **others: object) -> RunTable:
    """Conditions around the curves of `paths`."""
    rng = np.random.default_rng(5)

    def noisy() -> np.ndarray:
        made = rng.normal(0, noise, (n, TURNS))
        return made - made.mean(axis=0)  # so that differences of means are exactly those of the paths

    turns = np.arange(TURNS)
    cells = {Cell("talk", name, 0.7): path(turns) + noisy() for name, path in paths.items()}
    return RunTable.from_arrays("run", "assistant", cells, **others)  # type: ignore[arg-type]


def _answer(table: RunTable, **options: object) -> Answer:
    return answer(table, analyze(table, Options(resamples=499, **options)))  # type: ignore[arg-type]


def _one(found: Answer, name: str) -> Judgement:
    return next(one for one in found.judgements if one.condition == name)


def _said(found: Answer) -> str:
    return " ".join([*sentences(found), *cautions(found)]).replace("\u00a0", " ")


def _falling(by: float, level: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda turns: 3 + level - by * turns / (TURNS - 1)


def test_held_partly_and_did_not_hold_are_told_apart() -> None:
    found = _answer(_table({"baseline": _falling(4.0), "firm": _falling(0.4), "some": _falling(3.0), "none": _falling(4.0)}))
    assert _one(found, "baseline").verdict is None
    assert _one(found, "baseline").fell
    assert [_one(found, name).verdict for name in ("firm", "some", "none")] == [Verdict.HELD, Verdict.PARTLY, Verdict.DID_NOT_HOLD]
    said = _said(found)
    assert "baseline falls from turn 1 on: by −2.22 ± 0." in said
    assert "firm: HELD. Its level is above that of baseline: +1.80 ± 0." in said
    assert "It drifts less than baseline (change from turn 1 −0.22 against −2.22): +2.00 ± 0." in said
    assert "it fell by less than half of the baseline's fall (p < .0001)" in said
    assert "none: DID NOT HOLD. No difference in level from baseline is shown" in said


def test_level_and_drift_are_two_statements() -> None:
    # Far above the baseline at turn 1, and then falling more than it: nearer the assistant's end, but nothing held it there.
    found = _answer(_table({"baseline": lambda t: -7 - 4 * t / 9, "odd": lambda t: 18 - 10 * t / 9}))
    odd = _one(found, "odd")
    assert odd.level is not None
    assert odd.drift is not None
    assert odd.level.starred
    assert odd.level.difference > 0
    assert odd.drift.starred
    assert odd.drift.difference < 0
    assert odd.verdict is Verdict.DID_NOT_HOLD
    assert "Its level is above that of baseline" in _said(found)
    assert "It drifts more than baseline" in _said(found)
    assert "stays" not in _said(found)
    assert "There at turn 1 already (a prompt's presence, not drift): odd +25.00 of +22.00" in _said(found)


def test_little_data_shows_no_difference_rather_than_equality() -> None:
    found = _answer(_table({"baseline": _falling(1.0), "same": _falling(0.7)}, n=5, noise=2.0))
    assert _one(found, "same").verdict is Verdict.NOT_SHOWN
    assert "No difference in level from baseline is shown" in _said(found)


def test_a_higher_level_without_evidence_on_drift_is_undecided() -> None:
    table = _table({"baseline": _falling(1.0), "high": _falling(0.9, level=2.0)}, noise=1.0)
    assert _one(_answer(table), "high").verdict is Verdict.UNDECIDED


def test_where_the_baseline_does_not_fall_nothing_is_held() -> None:
    found = _answer(_table({"baseline": _falling(0.0), "same": _falling(0.0)}))
    assert _one(found, "same").verdict is Verdict.NOT_SHOWN
    assert "baseline is not shown to fall from its own start: there was no drift to hold against." in _said(found)


def test_a_margin_of_ones_own_decides_what_staying_is() -> None:
    table = _table({"baseline": _falling(4.0), "some": _falling(1.0)})
    assert _one(_answer(table, equivalence=1.0), "some").verdict is Verdict.HELD
    assert _one(_answer(table, equivalence=0.4), "some").verdict is Verdict.PARTLY
    assert "that it fell by less than 0.40 is not shown" in _said(_answer(table, equivalence=0.4)) or "it fell by more than 0.40" in _said(
        _answer(table, equivalence=0.4)
    )


def test_one_rollout_a_side_gives_no_verdict_and_says_why() -> None:
    found = _answer(_table({"baseline": _falling(4.0), "odd": _falling(0.0)}, n=1))
    assert _one(found, "odd").verdict is Verdict.UNDECIDED
    assert "One rollout on one side" in _said(found)


def test_one_condition_is_described() -> None:
    (only,) = sentences(_answer(_table({"baseline": _falling(4.0)})))
    assert only.startswith("baseline falls from turn 1 on")


def test_a_missing_placebo_is_said_and_one_that_does_as_well() -> None:
    assert "No condition is a placebo" in _said(_answer(_table({"baseline": _falling(4.0), "firm": _falling(1.0)})))
    as_well = _answer(_table({"baseline": _falling(4.0), "firm": _falling(1.0), "placebo": _falling(1.0)}))
    assert "firm is not shown to differ from placebo" in _said(as_well)
    assert "No condition is a placebo" not in _said(as_well)
    better = _answer(_table({"baseline": _falling(4.0), "firm": _falling(1.0), "placebo": _falling(4.0)}))
    assert "is not shown to differ from placebo" not in _said(better)


def test_what_limits_the_answer_is_said() -> None:
    table = _table({"baseline": _falling(4.0), "firm": _falling(1.0)})
    table.flags.reciting[0, :3] = True
    table.flags.length[12:] = True
    table.projections[0, 6:] = np.nan
    table.projections[1, :] = np.nan
    table.flags.context[2, 9] = True
    table.projections[2, 9] = np.nan
    said = _said(_answer(table))
    assert "Unfinished: 21 of 24 rollouts are complete, 1 have not begun. All numbers will change." in said
    assert "Replies flagged (empty, repeating, reciting the prompt): baseline 3 of 105." in said
    assert "Replies cut at the length limit: firm 120 of 120." in said
    assert "firm: 0 % of its replies are missing (5 % of baseline's)" in said
    assert "at the worst its difference lies in [" in said
    done = _said(_answer(_table({"baseline": _falling(4.0), "firm": _falling(1.0)})))
    assert not any(word in done for word in ("Unfinished", "flagged", "cut at", "missing"))


def test_copies_of_a_rollout_count_once_and_are_named() -> None:
    rng = np.random.default_rng(6)
    values = {name: rng.normal(shift, 0.5, (12, TURNS)) for name, shift in (("baseline", 0.0), ("firm", 0.5))}
    texts = [f"{name} {row % (3 if name == 'firm' else 12)}" for name in values for row in range(12)]
    values["firm"] = values["firm"][np.arange(12) % 3]
    table = RunTable.from_arrays("run", "a", {Cell("talk", name, 0.7): made for name, made in values.items()})
    replies = Replies.none(table.projections.shape)
    for row, text in enumerate(texts):
        for column in range(TURNS):
            replies.put(row, column, f"{text} says something at turn {column}, again and again")
    with_texts = replace(table, replies=replies)
    blind, seen = (_one(_answer(one), "firm").level for one in (table, with_texts))
    assert (blind.n_a, seen.n_a) == (12, 3)
    assert seen.difference == pytest.approx(blind.difference)
    distinct = values["firm"][:3].mean(axis=1)
    expected = stats.ttest_ind(distinct, values["baseline"].mean(axis=1), equal_var=False)
    assert seen.p == pytest.approx(expected.pvalue)
    assert "Rollouts that are word for word the same count once: distinct are firm 3 of 12." in _said(_answer(with_texts))


def test_uneven_copies_keep_the_mean_of_all_rollouts() -> None:
    values = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [4.0, 9.0]])
    found = merged(Sample(Cell("s", "a", 0.5), values, np.arange(4), np.arange(1.0, 3)), np.array([0, 0, 0, 3]))
    np.testing.assert_allclose(found.values.mean(axis=0), values.mean(axis=0))
    clusters = np.array([3, 1]) / 4 * (np.array([1.0, 4.0]) - 1.75)
    assert found.values[:, 0].var(ddof=1) / 2 == pytest.approx(2 * (clusters**2).sum())


def test_replies_that_repeat_are_near_empty_or_hold_a_template_are_counted() -> None:
    table = _table({"baseline": _falling(4.0), "firm": _falling(1.0)})
    replies = Replies.none(table.projections.shape)
    for row in range(24):
        for column in range(TURNS):
            replies.put(row, column, f"reply {row} at {column} is this")
    replies.put(0, 4, "reply 0 at 2 is this")
    replies.put(3, 5, "System:")
    replies.put(4, 5, "no")
    replies.put(13, 2, "well <|im_end|> then and so on")
    said = _said(_answer(replace(table, replies=replies)))
    assert "Replies word for word an earlier reply of their rollout: baseline 1 of 120." in said
    assert "Replies of one or two words: baseline 2 of 120." in said
    assert "Replies with marks of a chat template or role labels: baseline 1 of 120, firm 1 of 120." in said


def test_length_is_taken_out_of_a_difference_that_it_made() -> None:
    rng = np.random.default_rng(7)
    words = {"baseline": rng.integers(20, 80, (16, TURNS)), "long": rng.integers(60, 240, (16, TURNS))}
    values = {name: 0.8 * np.log1p(count) + rng.normal(0, 0.1, count.shape) for name, count in words.items()}
    table = RunTable.from_arrays("run", "a", {Cell("talk", name, 0.7): made for name, made in values.items()}, common_noise=True)
    replies = Replies.none(table.projections.shape)
    replies.words[:] = np.concatenate(list(words.values()))
    found = _answer(replace(table, replies=replies))
    one = _one(found, "long").confounds
    assert _one(found, "long").level.difference > 0.5
    assert one.adjusted == pytest.approx(0.0, abs=0.05)
    assert one.adjusted_low < 0 < one.adjusted_high
    assert found.correlations[0].length > 0.9
    assert abs(found.correlations[0].position) < 0.2
    assert one.longer == pytest.approx(3.0, abs=0.2)
    assert abs(one.r) < 0.7


def test_the_jackknife_of_the_adjusted_difference_is_the_plain_one() -> None:
    rng = np.random.default_rng(8)
    y, length = rng.normal(size=(12, 4)), rng.normal(3, 1, (12, 4))
    y[2, 3] = length[2, 3] = np.nan

    def estimate(rows: np.ndarray) -> float:
        a, b = rows[rows < 6], rows[rows >= 6]
        uv = vv = 0.0
        for side in (a, b):
            u, v = (values[side] - np.nanmean(values[side], axis=0) for values in (y, length))
            uv, vv = uv + np.nansum(u * v), vv + np.nansum(v * v)
        gap = [np.nanmean(values[a], axis=0) - np.nanmean(values[b], axis=0) for values in (y, length)]
        return float(np.mean(gap[0] - uv / vv * gap[1]))

    made = [_Cell(y[side], length[side], length[side]) for side in (slice(0, 6), slice(6, 12))]
    middle, low, high = _adjusted(*made, _slope_parts(made), np.ones(4, dtype=bool), 0.95)
    assert middle == pytest.approx(estimate(np.arange(12)))
    left = np.array([estimate(np.delete(np.arange(12), row)) for row in range(12)])
    spread = sum(5 / 6 * ((part - part.mean()) ** 2).sum() for part in (left[:6], left[6:]))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 10) * np.sqrt(spread))


def test_a_rollout_is_broken_from_where_it_stays_below() -> None:
    rows = np.array(
        [
            [1, 1, -1, -1, -1],  # from turn 3
            [1, -1, -1, 1, 1],  # recovered
            [1, 1, 1, 1, -1],  # one reply is no stay
            [-1, -1, 1, -1, -1],  # recovered once, then broke at turn 4
            [1, 1, -1, -1, np.nan],  # from turn 3, then ended
            [1, 1, np.nan, np.nan, np.nan],  # ended before: censored at turn 2
        ],
        dtype=float,
    )
    times = _times(Sample(Cell("s", "a", 0.5), rows, np.arange(6), np.arange(1.0, 6)), 0.0)
    assert times.broke.tolist() == [True, False, False, True, True, False]
    assert times.at.tolist() == [3, 5, 5, 4, 3, 2]
    assert times.recovered.tolist() == [False, True, False, True, False, False]


def test_newcombes_interval_is_his_published_one() -> None:
    # Newcombe 1998, table II: 56 of 70 against 48 of 80, method 10.
    assert newcombe(56, 70, 48, 80, 0.95) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(0, 10, 0, 10, 0.95) == pytest.approx((-0.2775, 0.2775), abs=5e-5)


def test_break_rates_times_and_their_tests() -> None:
    rng = np.random.default_rng(9)
    paths = {name: 1.0 + rng.normal(0, 0.2, (16, TURNS)) for name in ("baseline", "firm")}
    for row, turn in enumerate(range(2, 9)):
        paths["baseline"][row, turn:] -= 3.0
    paths["firm"][0, 6:] -= 3.0
    paths["firm"][1, 7:] = np.nan
    samples = [Sample(Cell("s", name, 0.5), values, np.arange(16), np.arange(1.0, TURNS + 1)) for name, values in paths.items()]
    base, firm = breaks(samples, "baseline", 0.0, 0.95)
    assert (base.broken, base.n, base.p, firm.broken, firm.n) == (7, 16, None, 1, 16)
    assert firm.difference == pytest.approx(-6 / 16)
    assert firm.p == pytest.approx(stats.boschloo_exact([[1, 7], [15, 9]]).pvalue)
    times = [_times(of, 0.0) for of in samples]
    censored = [stats.CensoredData(uncensored=one.at[one.broke], right=one.at[~one.broke]) for one in times]
    assert firm.p_logrank == pytest.approx(stats.logrank(*censored).pvalue, rel=1e-6)
    assert (base.median, firm.median) == (None, None)
    (alone,) = breaks([replace(samples[0], values=samples[0].values[:10])], "baseline", 0.0, 0.95)
    assert alone.median == 7.0  # 7 of 10 broke, at turns 3 to 9: the fifth at turn 7
    assert_plain(firm)


def test_two_groups_of_rollouts_are_warned_about_and_normal_ones_are_not() -> None:
    rng = np.random.default_rng(10)
    assert np.mean([bimodal(rng.normal(size=16)) for _ in range(2000)]) < 0.03
    assert np.mean([bimodal(np.concatenate([rng.normal(size=8), rng.normal(8, 1, 8)])) for _ in range(200)]) > 0.9
    assert np.mean([bimodal(np.concatenate([rng.normal(size=15), [9.0]])) for _ in range(200)]) > 0.9
    table = _table({"baseline": _falling(4.0), "firm": _falling(1.0)})
    table.projections[12:18] += 5
    assert "Rollouts look like two groups, or one lies far out: firm." in _said(_answer(table))


def test_breaks_stand_in_the_answer_where_a_threshold_is_known() -> None:
    table = _table({"baseline": _falling(4.0), "firm": _falling(1.0)})
    study = analyze(table, Options(resamples=199))
    assert answer(table, study).breaks == ()
    found = answer(table, study, scale=PersonaScale(0.0, 2.0))
    assert "Rollouts that break (below 1.00, the personas' midpoint, to the end): baseline 12 of 12, firm 0 of 12 (p < .0001)." in _said(
        found
    )
    assert answer(table, study, scale=PersonaScale(0.0, 2.0), break_at=0.5).breaks[0].threshold == 0.5


def test_the_seeds_answer(seed_data: Path) -> None:
    files = {"baseline": "003b_baseline.json", "simple": "003b_simple_sysprompt.json", "complex": "003b_complex_sysprompt.json"}
    made = {name: json.loads((seed_data / file).read_text(encoding="utf-8")) for name, file in files.items()}
    table = RunTable.from_arrays("run", "a", {Cell("talk", name, 0.5): np.array(one["projections"]) for name, one in made.items()})
    replies = Replies.none(table.projections.shape)
    for row, conversation in enumerate(conversation for one in made.values() for conversation in one["conversations"]):
        for column, reply in enumerate(message["content"] for message in conversation if message["role"] == "assistant"):
            replies.put(row, column, reply)
    found = _answer(replace(table, replies=replies))
    assert [_one(found, name).confounds.adjusted for name in ("simple", "complex")] == pytest.approx([0.397, 1.12], abs=2e-3)
    assert _one(found, "complex").confounds.first == pytest.approx(0.38, abs=5e-3)
    assert [_one(found, name).verdict for name in ("simple", "complex")] == [Verdict.PARTLY, Verdict.PARTLY]
    assert [_one(found, name).change.value for name in files] == pytest.approx([-1.600, -1.173, -0.809], abs=2e-3)


def test_many_conditions_are_listed_by_verdict_and_fit_the_screen() -> None:
    table = _table({f"c{place}": _falling(4.0 - 0.1 * place) for place in range(40)}, n=6)
    shown = lines(_answer(table, against="c0"), 100)
    assert len(shown) <= 25
    assert any(line.startswith("partly: ") for line in shown)
    assert any("more conditions in --full" in line for line in shown)


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


def test_a_comparison_has_one_p_in_statistics_figures_and_report(run: str) -> None:
    study = drift("stats", "--json").json
    picture = Picture(Run.open(Store(Path("checkpoints")), run))
    printed = {(row["a"], row["b"]): row["p_adjusted"] for row in study["comparisons"]}
    for of in (picture.study, picture.from_baseline):
        assert {(row.a, row.b): row.p_adjusted for row in of.comparisons}.items() <= printed.items()
    turns = {(pair["a"], pair["b"]): [turn["p_adjusted"] for turn in pair["turns"]] for pair in study["turns"]}
    for pair in picture.from_baseline.turns:
        assert [turn.p_adjusted for turn in pair.turns] == pytest.approx(turns[pair.a, pair.b])
    judged = {one["condition"]: one["level"]["p_adjusted"] for one in study["verdict"]["judgements"] if one["verdict"]}
    assert judged == {name: printed[name, "baseline"] for name in ("simple", "complex")}


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
