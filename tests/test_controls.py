"""Control axes, and where an effect stands among theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli import drift

from drift_cli.analysis.axis_error import DRAWS, resampled
from drift_cli.analysis.controls import standings
from drift_cli.analysis.effects import hedges_g
from drift_cli.analysis.results import Options
from drift_cli.analysis.table import RunTable
from drift_cli.axis import Axis
from drift_cli.errors import DriftError
from drift_cli.measuring import controls
from drift_cli.models.axes import demo_axis
from drift_cli.results.pictures import Picture
from drift_cli.results.report.gather import gather
from drift_cli.spec import Cell
from drift_cli.store.paths import Store
from drift_cli.store.run import Run


def test_controls_are_unit_vectors_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    made, again = (controls.make(demo_axis(), 4, 50, seed=3) for _ in range(2))
    for vectors in (made.random, made.shuffled):
        assert vectors.shape == (50, 192)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(made.random, again.random)
    assert not np.array_equal(made.random, controls.make(demo_axis(), 4, 50, seed=4).random)
    controls.save(made, tmp_path / "c.safetensors")
    read = controls.load(tmp_path / "c.safetensors")
    assert (read.axis, read.layer, read.seed, read.digest) == ("demo", 4, 3, demo_axis().digest)
    assert np.array_equal(read.shuffled, made.shuffled)
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with pytest.raises(DriftError, match="drift measure RUN --controls N"):
        controls.load(tmp_path / "c.safetensors")


def test_random_vectors_have_no_favourite_direction() -> None:
    vectors = controls.make(demo_axis(), 4, 4000).random
    assert abs(float((vectors @ demo_axis().at(4)).mean())) < 4 / np.sqrt(192 * 4000)
    assert np.allclose((vectors**2).mean(0) * 192, 1, atol=0.15)


def test_an_effect_is_ranked_among_those_of_the_controls_by_size() -> None:
    rng = np.random.default_rng(0)
    cells = [Cell("t", name, 1.0) for name in ("plain", "kind")]
    base = {cell: rng.normal(size=(9, 4)) + rng.normal(size=(9, 1)) for cell in cells}
    base[cells[1]] = base[cells[1]] + 1.5
    base[cells[1]][2, 3] = np.nan
    table = RunTable.from_arrays("r", "a", base)
    rows = table.rows(cells[1])

    def shifted(by: float) -> np.ndarray:
        moved = table.projections.copy()
        moved[rows] += by
        return moved

    # One weaker, the axis itself, one stronger, and one that is as strong the other way round.
    found = standings(table, {"made": np.stack([shifted(-1.4), shifted(0), shifted(1), -shifted(0)])}, Options())
    (only,) = found
    whole = {name: np.delete(table.projections[table.rows(cell)], 2, axis=0) for name, cell in zip("ab", cells, strict=True)}
    assert (only.a, only.b, only.kind, only.count) == ("kind", "plain", "made", 4)
    assert only.smaller == 0.25
    assert only.largest is not None
    assert only.hedges_g is not None
    assert only.largest > abs(only.hedges_g) > 0.5
    complete = RunTable.from_arrays("r", "a", {cell: whole[name] for name, cell in zip("ab", cells, strict=True)})
    (same,) = standings(complete, {"itself": complete.projections[None]}, Options())
    means = [whole[name].mean(1)[:, None] for name in "ba"]
    assert same.hedges_g == pytest.approx(float(hedges_g(*means, 0.95).g[0]))
    assert same.largest == pytest.approx(abs(same.hedges_g))
    assert same.smaller == 0


def test_controls_are_projected_from_the_runs_stored_residuals_and_stats_shows_them() -> None:
    Path("short.json").write_text('{"users": ["hello there", "and the light"]}')
    drift(
        "generate",
        "--samples",
        "3",
        "--max-new-tokens",
        "6",
        "--transcript",
        "short.json",
        "--condition",
        "baseline",
        "--condition",
        "simple",
    )
    assert "controls" not in drift("stats", "--json", "--resamples", "99").json
    said = drift("measure", "--controls", "5", "--json").json
    assert [(s["kind"], s["count"]) for s in said["controls"]] == [("random", 5), ("shuffled", 5), ("covariance", 5)]
    assert drift("stats", "--json", "--resamples", "99").json["controls"] == said["controls"]
    assert "Is it this axis, or any axis?" in drift("stats", "--full", "--resamples", "99").out
    assert (
        "On random control axes the difference is smaller than on this one for simple " in drift("stats", "--full", "--resamples", "99").out
    )
    contents = gather(Picture(Run.newest(Store(Path("checkpoints")))))
    assert "Is it this axis, or any axis?" in [table.title for table in contents.tables]
    assert any("random control axes" in sentence.text for sentence in contents.verdict)
    assert drift("runs", "verify", "--json").json["ok"] is True
    run = Run.newest(Store(Path("checkpoints")))
    made = controls.load(run.paths.controls("demo"))
    state = run.states()[4]
    turn = run.record(state.rollout, residuals=True).turns[1]
    assert turn.residual is not None
    direct = made.random[2] @ turn.residual[run.manifest.layers.index(made.layer)]
    assert controls.project(run, made)["random"][2, 4, 1] == pytest.approx(float(direct), rel=1e-4)


def test_the_axis_s_own_uncertainty_widens_the_intervals() -> None:
    Path("short.json").write_text('{"users": ["hello there", "and the light"]}')
    drift(
        "generate",
        "--samples",
        "4",
        "--max-new-tokens",
        "6",
        "--transcript",
        "short.json",
        "--condition",
        "baseline",
        "--condition",
        "simple",
    )
    run = Run.newest(Store(Path("checkpoints")))
    document = drift("stats", "--json", "--resamples", "99").json
    (mean,) = [one for one in document["verdict"]["axis_errors"] if one["measure"] == "mean"]
    (row,) = document["comparisons"]
    assert mean["low"] < row["low"] < row["high"] < mean["high"]
    # By hand: every resampled axis, every rollout's mean residual.
    axis = Axis.load(run.paths.axis("demo"))
    layer = run.manifest.axes[0].layer
    vectors = resampled(axis, layer, DRAWS, 0)
    place = run.manifest.layers.index(layer)
    sides: dict[str, list[np.ndarray]] = {"baseline": [], "simple": []}
    for state in run.states():
        turns = run.record(state.rollout, residuals=True).turns
        sides[state.rollout.cell.condition].append(np.mean([turn.residual[place] for turn in turns], axis=0))
    differences = vectors @ (np.mean(sides["simple"], axis=0) - np.mean(sides["baseline"], axis=0)).astype(np.float64)
    assert mean["sd"] == pytest.approx(differences.std(ddof=1), rel=1e-3)
    half = (row["high"] - row["low"]) / 2
    assert (mean["high"] - mean["low"]) / 2 == pytest.approx(np.hypot(half, 1.959964 * mean["sd"]), rel=1e-4)
    # Persona units: 0 at the other personas' mean, 1 at the assistant's.
    projected = axis.means[:, axis.layers.index(layer)] @ axis.at(layer)
    ours = np.array([name in axis.assistants for name in axis.personas])
    (judged,) = [one for one in document["verdict"]["judgements"] if one["verdict"]]
    assert judged["units"] == pytest.approx(row["difference"] / (projected[ours].mean() - projected[~ours].mean()), rel=1e-4)
    said = drift("stats", "--full", "--resamples", "99").out
    assert "With the axis's own uncertainty (" in said
    assert "In persona units (the other personas 0, the assistant 1)" in said


def test_covariance_axes_lie_where_the_replies_vary() -> None:
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(300, 192)) * np.r_[np.full(3, 20.0), np.ones(189)] + 7
    found = controls.make(demo_axis(), 4, 400, activations=sample)
    share = (found.covariance[:, :3] ** 2).sum(axis=1)
    assert np.allclose(np.linalg.norm(found.covariance, axis=1), 1, atol=1e-6)
    assert share.mean() > 0.7
    assert (found.random[:, :3] ** 2).sum(axis=1).mean() == pytest.approx(3 / 192, rel=0.2)
    path = Path("controls.safetensors")
    controls.save(found, path)
    assert np.array_equal(controls.load(path).covariance, found.covariance)
    controls.save(replace(found, covariance=None), path)  # as earlier versions wrote it
    assert list(controls.load(path).kinds) == ["random", "shuffled"]


def test_resampled_axes_are_drawn_within_each_side() -> None:
    means = np.array([[[1.0, 0.0]], [[1.0, 0.2]], [[0.0, 0.0]], [[0.0, 0.5]]], dtype=np.float32)
    axis = Axis("a", (3,), np.array([[1.0, 0.0]], dtype=np.float32), personas=("h", "i", "j", "k"), assistants=("h", "i"), means=means)
    found = resampled(axis, 3, 400, 0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)
    slopes = np.unique(np.round(found[:, 1] / found[:, 0], 4))
    np.testing.assert_allclose(slopes, [-0.5, -0.4, -0.3, -0.25, -0.15, -0.05, 0.0, 0.1, 0.2], atol=1e-4)
    assert resampled(replace(axis, personas=("h", "j"), assistants=("h",), means=means[[0, 2]]), 3, 10, 0) is None


def test_what_does_not_go_with_controls_is_refused() -> None:
    Path("short.json").write_text('{"users": ["hello there"]}')
    drift(
        "generate",
        "--samples",
        "1",
        "--max-new-tokens",
        "2",
        "--transcript",
        "short.json",
        "--condition",
        "baseline",
        "--layers",
        "2",
        "--layer",
        "2",
    )
    assert "--layer does not go with --controls" in drift("measure", "--controls", "3", "--layer", "1", code=2).err
    assert "--controls does not go with --traces" in drift("measure", "--controls", "3", "--traces", code=2).err
    drift("measure", "--controls", "0", code=2)
