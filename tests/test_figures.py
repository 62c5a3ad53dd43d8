"""What the trajectory figure draws, read back from its artists and files."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

import drift_cli
from drift_cli.analysis.table import RunTable
from drift_cli.errors import StoreError, UsageError
from drift_cli.results.figures.canvas import render, save
from drift_cli.results.figures.curves import pointwise
from drift_cli.results.figures.palette import COLORS, PAPER
from drift_cli.results.figures.panel import turn_ticks
from drift_cli.results.figures.trajectory import trajectory
from drift_cli.spec import Cell


def _table(arrays: dict[str, np.ndarray] | dict[Cell, np.ndarray], axis: str = "assistant", layer: int | None = 21) -> RunTable:
    return RunTable.from_arrays(
        "run-01234567",
        axis,
        {key if isinstance(key, Cell) else Cell("script", key, 0.7): values for key, values in arrays.items()},
        layer=layer,
    )


def _noise(conditions: int = 3, rollouts: int = 8, turns: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {f"condition-{i}": rng.normal(i, 1, (rollouts, turns)) for i in range(conditions)}


def _lines(fig: Figure, gid: str) -> list[Line2D]:
    return [line for line in fig.findobj(Line2D) if line.get_gid() == gid]


def _legend(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_mean_line_is_the_mean_over_rollouts():
    arrays = _noise()
    fig = trajectory(_table(arrays))
    for name, values in arrays.items():
        (line,) = _lines(fig, f"mean-{name}")
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 7))
        np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0))


def test_band_is_scipys_t_interval():
    values = _noise(1)["condition-0"]
    fig = trajectory(_table({"a": values}), bands=pointwise(0.9))
    (band,) = [patch for patch in fig.findobj(PolyCollection) if patch.get_gid() == "band-a"]
    expected = stats.t.interval(0.9, len(values) - 1, loc=values.mean(axis=0), scale=stats.sem(values, axis=0))
    corners = band.get_paths()[0].vertices
    for low_or_high in expected:
        for point in zip(range(1, 7), low_or_high, strict=True):
            assert np.isclose(corners, point).all(axis=1).any()
    assert "90 % band of the mean, pointwise" in _legend(fig)


def test_every_rollout_is_a_line_of_its_own():
    values = _noise(1, rollouts=5)["condition-0"]
    lines = _lines(trajectory(_table({"a": values})), "rollout-a")
    np.testing.assert_array_equal([line.get_ydata() for line in lines], values)


def test_nothing_is_drawn_where_turns_are_missing():
    values = _noise(1)["condition-0"]
    values[:, 2] = np.nan
    values[1:, 4] = np.nan  # one rollout left: a mean, no band
    fig = trajectory(_table({"a": values}))
    drawn = _lines(fig, "mean-a")[0].get_ydata()
    np.testing.assert_array_equal(np.isnan(drawn), [False, False, True, False, False, False])
    corners = np.concatenate(
        [path.vertices for band in fig.findobj(PolyCollection) if band.get_gid() == "band-a" for path in band.get_paths()]
    )
    assert set(corners[:, 0]).isdisjoint({3.0, 5.0})
    bars = np.concatenate([bar.get_segments() for bar in fig.findobj(LineCollection) if bar.get_gid() == "bar-a"])
    assert sorted(set(bars[:, :, 0].ravel())) == [4.0, 6.0]  # turns with an interval whose neighbours have none
    assert "a (n = 8, 8 incomplete)" in _legend(fig)


def test_a_rollouts_lonely_turn_is_a_dot():
    values = np.array([[1.0, np.nan, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    (dots,) = _lines(trajectory(_table({"a": values})), "rollout-a-point")
    assert (dots.get_xdata(), dots.get_ydata(), dots.get_linestyle()) == ([1.0], [1.0], "None")


def test_reference_is_dashed_with_gaps_and_in_the_legend():
    reference = np.array([1.0, 2.0, np.nan, 4.0])
    fig = trajectory(_table(_noise()), reference=reference)
    (line,) = _lines(fig, "reference")
    np.testing.assert_array_equal(line.get_ydata(), reference)
    assert line.get_linestyle() == "--"
    assert "reference" in _legend(fig)
    (dot,) = _lines(fig, "reference-point")
    assert list(dot.get_xdata()) == [4.0]
    assert "reference" not in _legend(trajectory(_table(_noise())))


def test_reference_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="transcript script has shape \\(7,\\), the transcript 6 turns"):
        trajectory(_table(_noise()), reference=np.zeros(7))
    two = {Cell(name, "a", 0.0): np.zeros((1, 2)) for name in ("one", "two")}
    with pytest.raises(UsageError, match="2 transcripts: one, two"):
        trajectory(_table(two), reference=np.zeros(2))


def test_references_by_transcript_stand_in_their_own_panels():
    arrays = {Cell(name, "a", 0.7): np.arange(6.0).reshape(2, 3) for name in ("one", "two")}
    fig = trajectory(_table(arrays), reference={"two": np.array([7.0, 8.0, 9.0])})
    assert [[line.get_gid() for line in ax.lines].count("reference") for ax in fig.axes] == [0, 1]


def test_one_panel_per_transcript_and_temperature():
    arrays = {Cell(script, "a", t): np.arange(6.0).reshape(2, 3) for script, t in (("one", 0.0), ("two", 0.0), ("one", 0.7))}
    fig = trajectory(_table(arrays))
    assert sorted(ax.get_title(loc="left") for ax in fig.axes) == ["one, T 0", "one, T 0.7", "two, T 0"]
    assert "a (n = 2)" in _legend(fig)


def test_one_rollout_has_no_band_and_says_so():
    fig = trajectory(_table({"a": np.array([[1.0, 2.0, 3.0]])}))
    assert not [band for band in fig.findobj(PolyCollection) if band.get_gid() == "band-a"]
    assert _legend(fig) == ["a (n = 1, no interval)"]


def test_identical_rollouts_have_no_band_and_say_so():
    assert "a (n = 4, all alike, no interval)" in _legend(trajectory(_table({"a": np.tile([1.1, 2.2, 3.3], (4, 1))})))


def test_one_turn_puts_conditions_side_by_side():
    fig = trajectory(_table(_noise(turns=1)))
    places = [_lines(fig, f"mean-condition-{i}")[0].get_xdata()[0] for i in range(3)]
    assert np.allclose(np.diff(places), 0.08)
    assert np.isclose(np.mean(places), 1)
    assert len([bar for bar in fig.findobj(LineCollection) if (bar.get_gid() or "").startswith("bar-")]) == 3


def test_table_without_turns_is_refused_and_names_the_command():
    with pytest.raises(StoreError, match="drift resume run-01234567"):
        trajectory(_table({"a": np.full((2, 3), np.nan)}))


def test_condition_without_turns_is_in_the_legend_only():
    fig = trajectory(_table({"a": np.array([[1.0, 2.0]]), "b": np.full((1, 2), np.nan)}))
    assert "b (n = 0)" in _legend(fig)


def test_flagged_replies_are_crossed():
    table = _table({"a": np.arange(6.0).reshape(2, 3)})
    table.flags.reciting[1, 2] = True
    table.flags.length[0, 0] = True  # long, but an answer
    fig = trajectory(table)
    (cross,) = _lines(fig, "flagged-a")
    assert (cross.get_xdata(), cross.get_ydata()) == ([3.0], [5.0])
    assert "flagged reply (band hatched)" in _legend(fig)


def test_axis_label_names_axis_and_layer():
    assert trajectory(_table(_noise())).axes[0].get_ylabel() == "projection on assistant\n(layer\u00a021)"
    assert trajectory(_table(_noise(), layer=None)).axes[0].get_ylabel() == "projection on assistant"


def test_colours_follow_the_order_of_conditions():
    fig = trajectory(_table(_noise(conditions=7)))
    assert [_lines(fig, f"mean-condition-{i}")[0].get_color() for i in range(7)] == list(COLORS)


def test_the_first_21_conditions_look_different():
    assert len({PAPER.of(index) for index in range(21)}) == 21
    assert PAPER.each(["a", "b"])["b"] == PAPER.of(1)


@pytest.mark.parametrize("conditions", [1, 3, 7])
@pytest.mark.parametrize("turns", [1, 18, 50])
def test_everything_stays_inside_the_figure(conditions, turns):
    arrays = {f"{name}-{'long-name_' * 6}"[:80]: values for name, values in _noise(conditions, 2, turns).items()}
    fig = trajectory(_table(arrays, axis="an axis with a name that is longer than the panel is high"), title="A long title. " * 20)
    assert fig.axes[0].get_window_extent().height > 1.8 * fig.dpi
    texts = [
        fig.axes[0].title,
        fig.axes[0].yaxis.label,
        fig.axes[0].xaxis.label,
        *fig.texts,
        *fig.legends[0].get_texts(),
        *fig.axes[0].get_xticklabels(),
    ]
    for text in texts:
        box = text.get_window_extent()
        assert box.width == 0 or (box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1), text


@pytest.mark.parametrize(("turns", "ticks"), [(1, [1]), (18, list(range(1, 19))), (30, list(range(1, 31, 2))), (50, [1, *range(5, 51, 5)])])
def test_ticks_are_whole_turns(turns, ticks):
    assert turn_ticks(turns) == ticks


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_figure_is_the_same_bytes(tmp_path: Path, suffix):
    table = _table(_noise())
    save(trajectory(table), tmp_path / f"first{suffix}")
    fig = trajectory(table)
    render(fig, ".png")
    save(fig, tmp_path / f"second{suffix}")
    save(fig, tmp_path / f"third{suffix}")
    first = (tmp_path / f"first{suffix}").read_bytes()
    assert first
    assert first == (tmp_path / f"second{suffix}").read_bytes() == (tmp_path / f"third{suffix}").read_bytes()


def test_folder_of_a_figure_is_made(tmp_path: Path):
    save(trajectory(_table(_noise())), tmp_path / "images" / "new" / "figure.SVG")
    assert (tmp_path / "images" / "new" / "figure.SVG").read_bytes().startswith(b"<?xml")


def test_png_has_200_dots_per_inch():
    fig = trajectory(_table(_noise()))
    width = int.from_bytes(render(fig, ".png")[16:20])
    assert width == round(200 * fig.get_figwidth())


def test_svg_keeps_text_as_text_and_names_as_they_are():
    svg = render(trajectory(_table(_noise(), axis="$x_1$ & <b>"), title="from $5 to $6"), ".svg").decode()
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")]
    assert "from $5 to $6" in texts
    assert "projection on $x_1$ & <b>" in texts
    assert not re.search(r"\d{4}-\d\d-\d\d", svg)


def test_unknown_format_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"\.png, \.svg, \.pdf"):
        save(trajectory(_table(_noise())), tmp_path / "figure.jpg")


def test_users_matplotlib_settings_neither_matter_nor_change():
    table = _table(_noise())
    expected = render(trajectory(table), ".svg")
    with mpl.rc_context({"axes.facecolor": "red", "text.parse_math": True, "font.size": 30, "svg.fonttype": "path"}):
        assert render(trajectory(table), ".svg") == expected
        assert (mpl.rcParams["axes.facecolor"], mpl.rcParams["font.size"], mpl.rcParams["svg.fonttype"]) == ("red", 30, "path")


def test_pyplot_is_not_used():
    # In a process of its own: other tests, and matplotlib's own settings when all are read, may import it.
    code = (
        "import sys, numpy; from drift_cli.spec import Cell; from drift_cli.analysis.table import RunTable;"
        "from drift_cli.results.figures.trajectory import trajectory; from drift_cli.results.figures.canvas import render, save;"
        "render(trajectory(RunTable.from_arrays('r', 'a', {Cell('t', 'c', 0.0): numpy.eye(3)})), '.png');"
        "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(drift_cli.__file__).parents[1], check=False).returncode == 0
