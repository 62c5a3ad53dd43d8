"""An axis is used at the layer it suggests, at any other that is asked for, and on another model only when told to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import drift
from made_axes import made_axis, put

from drift_cli.analysis.table import load
from drift_cli.axis import Axis
from drift_cli.errors import UsageError
from drift_cli.measuring.diagnostics import suggest, sweep
from drift_cli.spec import Cell, Rollout
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

SHORT = ("--transcript", "short.json", "--samples", "1", "--max-new-tokens", "5", "--condition", "baseline")


@pytest.fixture(autouse=True)
def short_transcript(own_folder: None) -> None:
    Path("short.json").write_text(json.dumps({"users": ["hello there", "who are you"]}))


def newest() -> Run:
    return Run.newest(Store(Path("checkpoints")))


def lines() -> dict[str, bytes]:
    return {
        str(p): p.read_bytes()
        for p in sorted(Path("checkpoints").rglob("*"))
        if p.suffix in {".jsonl", ".f32"} and p.name not in {"events.jsonl", "looks.jsonl"}
    }


def reported(axis: str | None) -> dict[str, Any]:
    """What the report of the newest run says."""
    from drift_cli.results.pictures import Picture
    from drift_cli.results.report.document import document
    from drift_cli.results.report.gather import gather

    return document(gather(Picture(newest(), axis)))


def generate(model: Path, *more: str, code: int = 0) -> str:
    return drift("generate", "--model", str(model), *SHORT, *more, code=code).err


# --- which layer


@pytest.mark.parametrize("best", [1, 4])
def test_generate_measure_reference_lines_and_show_use_the_layer_that_an_axis_suggests(best: int, tiny_models: dict[str, Path]) -> None:
    put(made_axis("mine", 4, best))
    said = generate(tiny_models["olmo3"], "--axis", "mine", "--layers", "all")
    assert f"projecting at layer {best}, suggested by axis mine" in said
    run = newest()
    assert run.manifest.axes[0].layer == best
    assert run.manifest.settings["layer"].value == best
    assert run.manifest.settings["layer"].source == "suggested by axis mine"
    assert drift("axis", "show", "mine", "--json").json["suggested_layer"] == best
    assert f"layer {best}, suggested by the axis" in drift("axis", "show", "mine").out
    put(made_axis("other", 4, best))
    assert drift("measure", "--axis", "other", "--json").json["layer"] == best
    Path("talk.json").write_text(json.dumps({"users": ["hello there"], "replies": ["kind"]}))
    reference = ("measure", "--transcript", "talk.json", "--model", str(tiny_models["olmo3"]), "--axis", "mine", "--json")
    assert drift(*reference).json["layer"] == best
    assert drift("stats", "--axis", "mine", "--json").json["provenance"]["layer"] == best


def test_a_layer_that_is_asked_for_wins(tiny_models: dict[str, Path]) -> None:
    put(made_axis("mine", 4, 2))
    generate(tiny_models["olmo3"], "--axis", "mine", "--layer", "4")
    assert newest().manifest.axes[0].layer == 4
    assert newest().manifest.settings["layer"].source == "flag --layer"
    generate(tiny_models["olmo3"], "--axis", "mine@3", "--name", "at")
    assert (newest().manifest.axes[0].name, newest().manifest.axes[0].layer) == ("mine", 3)
    assert "asks" not in generate(tiny_models["olmo3"], "--axis", "mine@3", "--layer", "3", "--name", "at")
    assert "layer 2 is asked for" in generate(tiny_models["olmo3"], "--axis", "mine@3", "--layer", "2", "--name", "at", code=2)


def test_an_axis_that_does_not_know_its_personas_is_used_65_percent_of_the_way_up_and_that_is_said(tiny_models: dict[str, Path]) -> None:
    known = made_axis("bare", 4, 1)
    put(Axis("bare", known.layers, known.vectors))
    said = generate(tiny_models["olmo3"], "--axis", "bare")
    assert "projecting at layer 3, 65 % of the way up, as axis bare suggests no layer" in said
    assert newest().manifest.axes[0].layer == round(0.65 * 4)
    assert "no layer suggested: 65 % of the way up the model, which is layer 3 of 4" in drift("axis", "show", "bare").out


def test_the_demos_preset_keeps_its_layer() -> None:
    drift("generate", *SHORT)
    assert newest().manifest.axes[0].layer == 5
    assert drift("axis", "show", "demo", "--json").json["suggested_layer"] != 5


def test_the_layer_of_axis_show_is_the_one_that_is_used() -> None:
    from drift_cli.measuring.axis_layer import choose_layer
    from drift_cli.measuring.diagnostics import suggested_layer
    from drift_cli.models.axes import demo_axis

    for axis in (demo_axis(), made_axis("a", 6, 4), made_axis("b", 3, 1)):
        assert suggested_layer(axis) == suggest(sweep(axis)) == choose_layer(axis, None, axis.layers[-1]).layer


def test_leaving_a_persona_out_is_computed_as_its_definition_says() -> None:
    from drift_cli.measuring.contrast import contrast
    from drift_cli.measuring.diagnostics import diagnose, separation

    axis = made_axis("a", 2, 1)
    assert axis.means is not None
    values, sides = axis.means[:, 1].astype(np.float64), np.array([True] * 3 + [False] * 3)
    along, cosines = [], []
    for index in range(6):
        rest, those = np.delete(values, index, axis=0), np.delete(sides, index)
        made = contrast(rest, those) / np.linalg.norm(contrast(rest, those))
        along.append((values[index] - (rest[those].mean(0) + rest[~those].mean(0)) / 2) @ made)
        cosines.append(made @ axis.at(1))
    found = diagnose(axis, 1)
    assert found is not None
    assert found.left_out is not None
    assert found.left_out.d_prime == pytest.approx(separation(np.array(along[:3]), np.array(along[3:])))
    assert found.left_out.cosine_min == pytest.approx(min(cosines))


def test_a_run_that_was_begun_at_another_layer_goes_on_there(tiny_models: dict[str, Path]) -> None:
    """As earlier versions chose it: 65 % of the way up, whatever the axis suggested, and nothing recorded of that."""
    put(made_axis("mine", 4, 1))
    line = ("--axis", "mine", "--samples", "1")
    generate(tiny_models["olmo3"], *line, "--layer", "3")
    manifest = json.loads(newest().paths.manifest.read_text())
    del manifest["digest"]
    manifest["settings"]["layer"] = {"value": None, "source": "default"}
    newest().paths.manifest.write_text(json.dumps(manifest))
    before = lines()
    said = generate(tiny_models["olmo3"], "--axis", "mine", "--samples", "2")
    assert "has axis mine at layer 3 and keeps it (now it would be layer 1)" in said
    assert newest().manifest.axes[0].layer == 3
    assert {name: data for name, data in lines().items() if name in before} == before
    assert len(lines()) > len(before)
    for path in Path("checkpoints").rglob("0001.*"):
        path.unlink()
    drift("resume")
    assert all(state.complete for state in newest().states())
    assert drift("runs", "verify", "--json").json["ok"] is True


def test_a_line_that_adds_to_a_run_need_not_name_its_axis_again(tiny_models: dict[str, Path]) -> None:
    put(made_axis("mine", 4, 1, model="org/base-model"))
    generate(tiny_models["olmo3"], "--axis", "mine", "--foreign-axis", "--layer", "2")
    before, entry = lines(), newest().manifest.axes[0]
    said = generate(tiny_models["olmo3"], "--samples", "2")
    assert "projecting on axis mine at layer 2, as run" in said
    assert "WARNING" not in said
    assert newest().manifest.axes == (entry,)
    assert {name: data for name, data in lines().items() if name in before} == before
    assert len(lines()) == 2 * len(before)
    assert newest().manifest.settings["axis"].value == "mine"
    put(made_axis("other", 4, 1))
    assert "measure" in generate(tiny_models["olmo3"], "--axis", "other", code=1)


# --- several layers of one axis


def test_one_axis_is_measured_at_several_layers_with_its_personas() -> None:
    drift("generate", *SHORT, "--condition", "simple", "--samples", "2")
    run_id, before, manifest = newest().paths.run_id, lines(), newest().manifest
    measured = drift("measure", "--axis", "demo", "--layer", "3", "--json").json
    assert (measured["axis"], measured["layer"]) == ("demo@3", 3)
    assert drift("measure", "--axis", "demo@3", "--json").json == measured
    assert drift("measure", "--axis", "demo@2", "--json").json["axis"] == "demo@2"
    assert drift("measure", "--axis", "demo", "--json").json["layer"] == 5  # as the run has it
    assert "demo@3 is at layer 3, but layer 4 is asked for" in drift("measure", "--axis", "demo@3", "--layer", "4", code=2).err
    run = newest()
    assert [entry.name for entry in (*run.manifest.axes, *run.manifest.measured)] == ["demo", "demo@3", "demo@2"]
    assert run.manifest.axes == manifest.axes
    assert lines() == before
    assert [path.name for path in (run.paths.root / "axes").iterdir()] == ["demo.safetensors"]
    from drift_cli.models.axes import demo_axis

    record = run.record(Rollout(Cell("short", "simple", 1.0), 1), residuals=True)
    direct = [turn.residual[run.manifest.layers.index(3)] @ demo_axis().at(3) for turn in record.turns if turn.residual is not None]
    table = load(run, "demo@3")
    row = next(i for i, state in enumerate(run.states()) if state.rollout == record.rollout)
    assert (table.axis, table.layer) == ("demo@3", 3)
    assert table.projections[row] == pytest.approx(direct, rel=1e-5)
    assert not np.allclose(table.projections, load(run, "demo").projections)
    controls = drift("measure", run_id, "--axis", "demo@3", "--controls", "5", "--json").json
    assert {found["kind"] for found in controls["controls"]} == {"random", "shuffled", "covariance"}
    assert (run.paths.root / "controls" / "demo@3.safetensors").exists()


def test_every_way_of_showing_takes_a_layer_of_an_axis() -> None:
    drift("generate", *SHORT, "--condition", "simple", "--samples", "2")
    drift("measure", "--axis", "demo", "--layer", "3")
    run_id = newest().paths.run_id
    shown = drift("stats", "--resamples", "99")
    assert "projection on demo, layer 5" in shown.out
    assert "it was also measured on demo@3" in shown.err
    assert "projection on demo@3, layer 3" in drift("stats", "--axis", "demo@3", "--resamples", "99").out
    drift("plot", "--axis", "demo@3", "-o", "x.svg")
    assert "demo@3" in Path("x.svg").read_text()
    drift("plot", "--axis", "demo@3", "--kind", "layers", "-o", "layers.png")
    drift("measure", run_id, "--axis", "demo@3", "--traces")
    drift("plot", "--axis", "demo@3", "--kind", "tokens", "-o", "tokens.png")
    drift("report", "--axis", "demo@3", "-o", "x.html")
    assert reported("demo@3")["axis"] == "demo@3"
    drift("export", "--format", "csv", "-o", "x.csv")
    assert "projection_demo@3" in Path("x.csv").read_text().splitlines()[0]
    drift("export", "--format", "parquet", "-o", "x.parquet")
    drift("export", "--axis", "demo@3", "-o", "seed")
    Path("talk.json").write_text(json.dumps({"name": "short", "users": ["hello there"], "replies": ["kind"]}))
    line = drift("measure", run_id, "--transcript", "talk.json", "--axis", "demo@3", "--json").json
    assert (line["axis"], line["layer"]) == ("demo@3", 3)
    drift("plot", "--axis", "demo@3", "-o", "y.svg")
    assert "reference" in Path("y.svg").read_text()
    assert "reference" not in Path("x.svg").read_text()
    drift("plot", "--axis", "demo", "-o", "z.svg")
    assert "reference" not in Path("z.svg").read_text()  # the line is of another layer
    assert "demo@3" in drift("runs", "show").out
    assert drift("runs", "verify", "--json").json["ok"] is True
    assert drift("runs", "verify", "--json").json["findings"] == []


def test_a_layer_that_is_not_stored_and_an_axis_that_changed_are_refused(tiny_models: dict[str, Path]) -> None:
    put(made_axis("mine", 4, 2))
    generate(tiny_models["olmo3"], "--axis", "mine", "--layers", "2,3")
    assert "stores no residuals of layer 4" in drift("measure", "--axis", "mine", "--layer", "4", code=2).err
    assert drift("measure", "--axis", "mine", "--layer", "3", "--json").json["axis"] == "mine@3"
    put(made_axis("mine", 4, 3))
    assert "has another axis called mine" in drift("measure", "--axis", "mine", "--layer", "3", code=2).err
    assert "has another axis called mine" in drift("measure", "--axis", "mine@2", code=2).err
    Path("data/axes/mine.safetensors").unlink()
    assert drift("measure", "--axis", "mine", "--layer", "3", "--json").json["axis"] == "mine@3"  # the run has its own copy


def test_names_with_a_layer_that_contradict_their_layer_are_damage() -> None:
    drift("generate", *SHORT)
    drift("measure", "--axis", "demo", "--layer", "3")
    path = newest().paths.manifest
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    manifest["measured"][0]["layer"] = 2
    path.write_text(json.dumps(manifest))
    assert "'demo@3' is at layer 2" in drift("stats", code=1).err


def test_another_layer_of_a_finished_run_is_measured_not_generated() -> None:
    drift("generate", *SHORT)
    refused = drift("generate", *SHORT, "--layer", "3", code=1).err
    command = re.search(r"drift (measure \S+ --axis demo --layer 3)", refused)
    assert command is not None
    assert drift(*command[1].split(), "--json").json["axis"] == "demo@3"


def test_an_axis_for_a_finished_run_without_one_is_measured_not_generated(tiny_models: dict[str, Path]) -> None:
    put(made_axis("mine", 4, 2))
    generate(tiny_models["olmo3"])  # stores layer 3 alone
    refused = generate(tiny_models["olmo3"], "--axis", "mine", code=1)
    command = re.search(r"drift (measure \S+ --axis mine --layer 3)", refused)
    assert command is not None
    assert "it stores no residual means of layer 2" in refused
    assert drift(*command[1].split(), "--json").json["layer"] == 3


# --- an axis of another model


def test_an_axis_of_another_model_is_used_when_told_to_and_every_table_says_so(tiny_models: dict[str, Path]) -> None:
    put(made_axis("base", 3, 2, model="org/base-model"))
    refused = generate(tiny_models["qwen3"], "--axis", "base", code=2)
    assert "axis base was built on org/base-model, not on tiny-qwen3" in refused
    assert "--foreign-axis" in refused
    assert not Path("checkpoints").exists()
    said = generate(tiny_models["qwen3"], "--axis", "base", "--foreign-axis", "--samples", "2")
    assert "was built on org/base-model, not on tiny-qwen3" in said
    run = newest()
    assert run.manifest.axes[0].foreign == "org/base-model"
    assert run.manifest.settings["foreign_axis"].value is True
    caution = "Axis base was built on org/base-model, not on tiny-qwen3"
    assert caution in drift("stats", "--json").json["scope"]
    assert caution in drift("stats").out
    made = reported(None)
    assert any(caution in text for _, text in made["facts"])
    assert any(caution in sentence["text"] for sentence in made["verdict"])
    for path in Path("checkpoints").rglob("0001.*"):
        path.unlink()
    drift("resume")
    assert drift("runs", "verify", "--json").json["ok"] is True


def test_drift_toml_and_measure_know_axes_of_other_models_too(tiny_models: dict[str, Path]) -> None:
    put(made_axis("base", 3, 2, model="org/base-model"))
    generate(tiny_models["qwen3"], "--layers", "all")
    assert "--foreign-axis" in drift("measure", "--axis", "base", code=2).err
    assert drift("measure", "--axis", "base", "--foreign-axis", "--json").json["layer"] == 2
    assert newest().manifest.measured[0].foreign == "org/base-model"
    assert "built on org/base-model" in drift("stats").out
    drift("measure", "--axis", "base", "--layer", "3")  # allowed once, the axis is the run's
    assert newest().manifest.measured[1].foreign == "org/base-model"
    Path("talk.json").write_text(json.dumps({"users": ["hello there"], "replies": ["kind"]}))
    line = ("measure", "--transcript", "talk.json", "--model", str(tiny_models["qwen3"]), "--axis", "base")
    assert "--foreign-axis" in drift(*line, code=2).err
    assert "built on org/base-model" in drift(*line, "--foreign-axis", "--json").json["note"]
    Path("drift.toml").write_text("foreign_axis = true\n")
    assert drift(*line, "--json").json["layer"] == 2
    generate(tiny_models["qwen3"], "--axis", "base", "--name", "toml")
    assert newest().manifest.settings["foreign_axis"].source == "drift.toml"


def test_width_is_never_foreign(tiny_models: dict[str, Path]) -> None:
    put(made_axis("wide", 3, 2, width=48, model="org/base-model"))
    assert "axis wide has width 48, but tiny-qwen3 has width 32" in generate(
        tiny_models["qwen3"], "--axis", "wide", "--foreign-axis", code=2
    )


def test_a_run_without_such_an_axis_says_nothing_of_it() -> None:
    drift("generate", *SHORT)
    text = newest().paths.manifest.read_text()
    assert "foreign" not in text
    assert '"turns"' not in text


def test_an_axis_follows_its_model_into_a_folder_of_another_name(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from drift_cli import models

    revision = models.describe(str(tiny_models["llama"])).revision
    axis = made_axis("mine", 3, 2, model="tiny-llama", revision=revision)
    shutil.copytree(tiny_models["llama"], tmp_path / "moved")
    put(axis)
    generate(tmp_path / "moved", "--axis", "mine")
    assert newest().manifest.axes[0].foreign is None
    with pytest.raises(UsageError, match="built on tiny-llama"):
        axis.check_model("moved", 32, 3, revision="another")


def test_an_axis_that_may_be_one_layer_off_is_pointed_out(tiny_models: dict[str, Path]) -> None:
    """A row to each block, counted from the embeddings: block outputs that were imported as hidden states."""
    put(made_axis("short", 2, 1))
    assert "it was imported one layer off" in generate(tiny_models["llama"], "--axis", "short")
    put(made_axis("right", 3, 1))
    assert "one layer off" not in generate(tiny_models["llama"], "--axis", "right", "--name", "right")
