"""What each kind of picture draws, read back from its artists."""

from __future__ import annotations

import itertools
import unicodedata
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from pictures_data import KINDS, flagged, layer_table, pieces, table
from scipy import stats

from drift_cli.analysis.layers import LayerTable, Unavailable
from drift_cli.analysis.results import Options
from drift_cli.analysis.study import analyze
from drift_cli.analysis.table import RunTable
from drift_cli.analysis.turns import band
from drift_cli.errors import UsageError
from drift_cli.results.figures.curves import simultaneous
from drift_cli.results.figures.forest import MOST, forest
from drift_cli.results.figures.heatmap import order
from drift_cli.results.figures.layers import layers
from drift_cli.results.figures.lettering import drawable, shortened, wrapped
from drift_cli.results.figures.palette import COLORS, DARK, DARK_COLORS, PAPER, STYLES, style_named
from drift_cli.results.figures.ridgeline import density
from drift_cli.results.figures.terminal import terminal
from drift_cli.results.figures.tokens import LINES, tokens
from drift_cli.results.figures.trajectory import pulls, trajectory
from drift_cli.spec import Cell


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _named(figure: Figure, kind: type, gid: str) -> list:  # type: ignore[type-arg]
    return [artist for artist in figure.findobj(kind) if str(artist.get_gid()).startswith(gid)]


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def _undrawn(figure: Figure) -> set[Text]:
    """Labels of ticks outside a panel's view, which matplotlib keeps and does not draw."""
    found = set()
    for axis in [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        found |= {label for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high for label in (tick.label1, tick.label2)}
    return found


# Sizes and looks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("conditions", "rollouts", "turns", "style"), [(7, 2, 50, "talk"), (2, 1, 1, "paper"), (3, 7, 18, "talk-dark")])
def test_nothing_sticks_out_of_a_picture(kind: str, conditions: int, rollouts: int, turns: int, style: str) -> None:
    found = table(conditions, rollouts, turns, axis="$x_1$ <b> שלום, an axis with a long name")
    figure = KINDS[kind](found, STYLES[style])
    for text in [text for text in figure.findobj(Text) if text not in _undrawn(figure)]:
        box = text.get_window_extent()
        if text.get_visible() and text.get_text().strip() and box.width:
            where = (box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1)
            assert min(where) > -2, (text.get_text(), where)


@pytest.mark.parametrize("kind", ["trajectory", "difference", "heatmap"])
def test_legend_and_notes_do_not_lie_on_one_another(kind: str) -> None:
    figure = KINDS[kind](flagged(conditions=7))
    boxes = [figure.legends[0].get_window_extent(), *(text.get_window_extent() for text in figure.texts)]
    for a, b in itertools.combinations(sorted(boxes, key=lambda box: -box.y1), 2):
        assert a.y0 >= b.y1 - 1


def test_a_style_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="paper, talk, dark, talk-dark"):
        style_named("poster")


def test_dark_pictures_are_dark_and_talk_pictures_have_larger_letters() -> None:
    dark, talk = KINDS["heatmap"](table(), DARK), KINDS["heatmap"](table(), STYLES["talk"])
    assert dark.get_facecolor()[:3] == pytest.approx((0x15 / 255, 0x18 / 255, 0x1D / 255))
    share = [figure.axes[0].title.get_fontsize() / figure.get_figwidth() for figure in (talk, dark)]
    assert share[0] > 1.15 * share[1]


_BLIND = {
    # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def _linear(color: str) -> np.ndarray:
    values = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    ratio = to_xyz @ np.clip(linear, 0, 1) / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colors", [COLORS, DARK_COLORS])
@pytest.mark.parametrize("blindness", _BLIND)
def test_colours_are_told_apart_with_every_colour_blindness(colors: tuple[str, ...], blindness: str) -> None:
    seen = [_lab(np.array(_BLIND[blindness]) @ _linear(color)) for color in colors]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 15


def test_dark_colours_stand_out_from_the_dark_ground() -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    ground = weights @ _linear(DARK.ground)
    assert min((weights @ _linear(color) + 0.05) / (ground + 0.05) for color in DARK_COLORS) >= 4


# Text


def test_text_that_would_steer_the_drawing_is_spelled_out() -> None:
    assert drawable("a\u202eb\u0007c\td\n e") == "a\\u202eb\\u0007c d e"
    assert drawable("$x$ <b> שלום") == "$x$ <b> שלום"
    assert drawable("中 a") == "□ a"
    assert drawable("layer\u00a021") == "layer\u00a021"


def test_text_is_shortened_and_wrapped() -> None:
    assert shortened("one two three", 8) == "one two…"
    assert shortened("short", 8) == "short"
    lines = wrapped("שלום עולם and more words than fit a line", 20).split("\n")
    assert all(len(line) <= 21 for line in lines)
    assert unicodedata.category(lines[0][0]) == "Cf"


# Trajectory


def test_bands_are_simultaneous_where_there_are_rollouts_enough() -> None:
    found = table(2, 8, 6)
    figure = trajectory(found, bands=simultaneous(found))
    expected = band(found.projections[found.rows(found.cells[0])], Options())
    corners = _named(figure, PolyCollection, "band-baseline")[0].get_paths()[0].vertices
    for bound in (expected.low, expected.high):
        assert all(np.isclose(corners, point).all(axis=1).any() for point in zip(range(1, 7), bound, strict=True))
    assert "95 % band of the mean, all turns" in _legend(figure)


def test_few_rollouts_have_pointwise_bands_that_say_so() -> None:
    found = table(2, 3, 6)
    assert any("pointwise (too few rollouts" in text.replace("\n", " ") for text in _legend(trajectory(found, bands=simultaneous(found))))


def test_bands_are_hatched_where_flagged_replies_are_in_them() -> None:
    figure = KINDS["trajectory"](flagged())
    hatched = _named(figure, PolyCollection, "hatched-")
    assert {artist.get_gid() for artist in hatched} == {"hatched-complex"}
    assert [tuple(np.round(artist.get_paths()[0].vertices[:, 0].max(), 3) for artist in hatched)] == [(15.5, 16.5, 17.5, 18.0)]


def test_quoted_turns_are_marked_and_stand_below_the_picture() -> None:
    figure = KINDS["trajectory"](table())
    assert [line.get_xdata()[0] for line in _named(figure, Line2D, "mark-1")] == [1]
    assert "Turn 1, user: “I feel $alone$ <b>”" in [text.get_text() for text in figure.texts]


def test_pulls_are_the_steepest_falls_of_all_conditions() -> None:
    values = np.array([3.0, 2.9, 1.0, 1.4, 0.2, 0.1, 0.3])
    found = RunTable.from_arrays("run", "a", {Cell("s", name, 0.0): values[None] + shift for name, shift in (("x", 0.0), ("y", 1.0))})
    assert pulls(found, "s", most=2) == [3, 5]
    assert pulls(found, "s", most=9) == [2, 3, 5, 6]


# Difference and forest


def test_differences_are_filled_at_the_turns_that_differ() -> None:
    found = table(3, 12, 18)
    study = analyze(found, Options(against="baseline"))
    figure = KINDS["difference"](found)
    for pair in study.turns:
        (filled,), (hollow,) = _named(figure, Line2D, f"differs-{pair.a}"), _named(figure, Line2D, f"alike-{pair.a}")
        assert list(filled.get_xdata()) == list(pair.significant)
        assert len(filled.get_xdata()) + len(hollow.get_xdata()) == 18
        assert filled.get_markerfacecolor() != hollow.get_markerfacecolor()
        (line,) = _named(figure, Line2D, f"difference-{pair.a}")
        np.testing.assert_allclose(line.get_ydata(), [turn.difference for turn in pair.turns])
    assert study.turns[1].significant
    assert any("max-T" in text.get_text() for text in figure.texts)


def test_one_condition_has_no_difference() -> None:
    for kind in ("difference", "forest"):
        with pytest.raises(Unavailable, match="drift generate --condition"):
            KINDS[kind](table(1))


def test_the_forest_has_a_line_for_every_pair_with_its_interval() -> None:
    found = table(3, 12, 18)
    study = analyze(found)
    figure = KINDS["forest"](found)
    for place, pair in enumerate(study.comparisons):
        raw, standard = _named(figure, Line2D, f"interval-{place}")
        assert list(raw.get_xdata()) == [pair.low, pair.high]
        assert list(standard.get_xdata()) == [pair.g_low, pair.g_high]
        mark = _named(figure, Line2D, f"effect-{place}")[0]
        sure = pair.p_adjusted is not None and pair.p_adjusted < 0.05
        assert (mark.get_markerfacecolor() == mark.get_markeredgecolor()) is sure


def test_a_forest_too_large_for_a_page_keeps_the_clearest_pairs() -> None:
    rng = np.random.default_rng(0)
    found = RunTable.from_arrays("run", "a", {Cell("s", f"c{place}", 0.0): rng.normal(place, 1, (4, 3)) for place in range(11)})
    figure = forest(found, analyze(found))
    assert len(figure.axes[0].get_yticks()) == MOST
    assert any(f"{55 - MOST} pairs" in text.get_text() for text in figure.texts)


# Heatmap


def test_rows_of_the_heatmap_are_sorted_by_drift_and_missing_turns_are_empty() -> None:
    found = flagged()
    figure = KINDS["heatmap"](found)
    (mesh,) = _named(figure, QuadMesh, "cells-baseline")
    drawn = np.ma.getdata(mesh.get_array()), np.ma.getmaskarray(mesh.get_array())
    own = found.projections[found.rows(found.cells[0])]
    rows = order(own)
    means = np.nanmean(own[rows], axis=1)
    assert (np.diff(means) > 0).all()
    np.testing.assert_array_equal(drawn[0][~drawn[1]], own[rows][np.isfinite(own[rows])])
    assert drawn[1].sum() == 9


def test_flagged_replies_are_hatched_each_kind_its_own_way() -> None:
    figure = KINDS["heatmap"](flagged())
    hatches = {kind: _named(figure, PolyCollection, kind) for kind in ("reciting-complex", "length-baseline", "context-baseline")}
    assert sum(len(artist.get_paths()) for artist in hatches["reciting-complex"]) == 12
    assert len({found[0].get_hatch() for found in hatches.values()}) == 3
    assert {"recites the system prompt (12)", "cut at the length limit (1)", "no reply: out of context (1)"} <= set(_legend(figure))


def test_a_length_limit_that_most_replies_met_is_said_instead_of_hatched() -> None:
    found = table()
    found.flags.length[:] = True
    figure = KINDS["heatmap"](found)
    assert not _named(figure, PolyCollection, "length")
    assert any("432 of 432 replies were cut" in text.get_text() for text in figure.texts)


# Ridgeline


def test_ridges_are_scipys_densities() -> None:
    values = np.array([1.0, 2.0, 2.5, np.nan, 4.0])
    at = np.linspace(0, 5, 7)
    np.testing.assert_allclose(density(values, at), stats.gaussian_kde(values[np.isfinite(values)])(at))
    assert density(np.array([1.0, 2.0]), at) is None
    assert density(np.array([1.1, 1.1, 1.1]), at) is None


def test_two_rollouts_are_ticks_instead_of_a_ridge() -> None:
    figure = KINDS["ridgeline"](table(1, 2, 3))
    assert not _named(figure, Line2D, "ridge-")
    assert [len(ticks.get_segments()) for ticks in _named(figure, LineCollection, "ticks-")] == [2, 2, 2]


# Layers


def test_layers_are_differences_in_standard_deviations_over_rollouts() -> None:
    found = layer_table(table(2, 8, 6))
    rows = [found.values[found.table.rows(cell)] for cell in found.table.cells]
    spread = np.sqrt(np.mean([own.var(axis=0, ddof=1) for own in rows], axis=(0, 2)))
    np.testing.assert_allclose(found.spread(), spread)
    (mesh,) = _named(KINDS["layers"](found.table), QuadMesh, "map-simple")
    expected = (rows[1].mean(axis=0) - rows[0].mean(axis=0)) / spread[:, None]
    np.testing.assert_allclose(mesh.get_array(), expected)


def test_one_condition_by_layer_shows_its_change_since_the_first_turn() -> None:
    found = layer_table(table(1, 8, 6))
    (mesh,) = _named(layers(found), QuadMesh, "map-baseline")
    assert np.allclose(mesh.get_array()[:, 0], 0)
    assert not np.allclose(mesh.get_array()[:, 1:], 0)
    with pytest.raises(Unavailable, match="one condition and one turn"):
        layers(layer_table(table(1, 4, 1)))


def test_spread_of_single_rollouts_is_over_everything() -> None:
    found = layer_table(table(2, 1, 6))
    np.testing.assert_allclose(found.spread(), [found.values[:, place].std(ddof=1) for place in range(5)])
    assert isinstance(found, LayerTable)


# Tokens


def test_every_token_has_its_colour_and_the_text_is_whole() -> None:
    said = ["Hello", " there", ",", "\n", " you", " $x$"]
    values = np.array([0.0, 1.0, -1.0, 0.5, 0.5, 9.0])
    figure = tokens(said, values, label="projection", middle=0.0, half=1.0)
    grounds = {patch.get_gid(): patch for patch in figure.findobj(Rectangle) if str(patch.get_gid()).startswith("token-")}
    assert set(grounds) == {"token-0", "token-1", "token-2", "token-4", "token-5"}
    assert grounds["token-1"].get_facecolor() != grounds["token-2"].get_facecolor()
    assert grounds["token-4"].get_y() == 1
    placed = sorted(figure.axes[0].texts, key=lambda text: (round(text.get_position()[1]), text.get_position()[0]))
    assert "".join(text.get_text() for text in placed) == "Hello there, you $x$"


def test_a_reply_longer_than_a_page_says_how_much_is_not_shown() -> None:
    said = [" word"] * 3000
    figure = tokens(said, np.zeros(3000), label="projection", middle=0.0, half=1.0)
    shown = len({patch.get_gid() for patch in figure.findobj(Rectangle) if str(patch.get_gid()).startswith("token-")})
    assert any(f"The last {3000 - shown} are not shown" in text.get_text() for text in figure.texts)
    assert figure.axes[0].get_ylim()[0] == LINES


def test_right_to_left_replies_run_from_the_right() -> None:
    figure = tokens([" שלום", " עולם"], np.zeros(2), label="projection", middle=0.0, half=1.0)
    places = {patch.get_gid(): patch.get_x() for patch in figure.findobj(Rectangle) if str(patch.get_gid()).startswith("token-")}
    assert places["token-0"] > places["token-1"]


def test_long_words_and_lines_break() -> None:
    figure = tokens(["x" * 500, *pieces(1)], np.zeros(1 + len(pieces(1))), label="p", middle=0.0, half=1.0, style=PAPER)
    assert max(patch.get_x() + patch.get_width() for patch in figure.findobj(Rectangle) if patch.get_gid()) <= figure.axes[0].get_xlim()[1]


# Text in a terminal


def test_a_text_picture_names_every_condition_and_keeps_to_its_width() -> None:
    drawn = terminal(table(), reference=np.linspace(3, 0, 17), width=70)
    assert "o baseline   x simple   + complex   - reference" in drawn
    assert max(map(len, drawn.splitlines())) <= 70
    assert "\x1b" not in drawn
    assert {"o", "x", "+"} <= set(drawn.split("baseline")[0])
    assert "\x1b[38;2;0;114;178m" in terminal(table(), color=True, width=70)


@pytest.mark.parametrize(("conditions", "rollouts", "turns"), [(1, 1, 1), (7, 2, 50)])
def test_text_pictures_of_any_size(conditions: int, rollouts: int, turns: int) -> None:
    assert "baseline" in terminal(table(conditions, rollouts, turns), width=60)
