"""The same settings name the same run, wherever the model is now and whichever version began it; other settings are another run, and that is said."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import store_fixtures
import tiny
import torch
from cli import drift
from saved_models import Kit, patch
from test_adapters import made

from drift_cli import models
from drift_cli.axis import Axis
from drift_cli.models import sources
from drift_cli.spec import ChatFormat, RunSpec, Sampling
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

SHORT = ("--samples", "1", "--max-new-tokens", "4", "--transcript", "short.json", "--condition", "baseline", "--batch", "2")


@pytest.fixture(autouse=True)
def short_transcript(own_folder: None) -> None:
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you"]}))


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Path:
    folder = Path("first-name").absolute()
    shutil.copytree(tiny_models["llama"], folder)
    return folder


def runs() -> list[str]:
    return sorted(Store(Path("checkpoints")).run_ids())


def only() -> Run:
    return Run.newest(Store(Path("checkpoints")))


def settings(run: Run) -> dict[str, Any]:
    return {key: setting.value for key, setting in run.manifest.settings.items()}


def unfinished() -> None:
    """Take the rollouts away, so that there is something to go on with."""
    for path in Path("checkpoints").rglob("0000.*"):
        path.unlink()


# Moved and renamed


def test_a_renamed_folder_goes_on_with_its_run(model: Path) -> None:
    drift("generate", *SHORT, "--model", str(model))
    before = runs()
    moved = model.rename(model.with_name("second-name"))
    again = drift("generate", *SHORT, "--model", str(moved))
    assert "nothing to do" in again.err
    assert f"this model was called first-name when run {before[0]} was begun; its content is the same, so that run goes on" in again.err
    assert runs() == before
    unfinished()
    drift("resume")  # the new place is recorded
    assert settings(only())["model"] == str(moved)


def test_a_run_whose_folder_is_gone_says_how_to_name_the_new_one(model: Path) -> None:
    drift("generate", *SHORT, "--model", str(model))
    unfinished()
    moved = model.rename(model.with_name("second-name"))
    run_id = only().paths.run_id
    for command in (("resume",), ("work",), ("launch", run_id, "--workers", "1")):
        refused = drift(*command, code=1).err
        assert f"the model of run {run_id} is not at {model} any more\nSay where it is now: drift resume {run_id} --model FOLDER" in refused
    drift("resume", "--model", str(moved))
    assert settings(only())["model"] == str(moved)
    assert only().manifest.spec.model == "first-name"
    unfinished()
    drift("resume")
    assert drift("runs", "verify", "--weights", "--json").json["ok"] is True


def test_another_model_in_the_new_place_is_refused(model: Path) -> None:
    drift("generate", *SHORT, "--model", str(model))
    unfinished()
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (model / "model.safetensors").write_bytes(data)
    assert "revision: stored 'tree1:" in drift("resume", code=1).err
    checked = drift("runs", "verify", "--weights", "--json", code=1).json
    assert [finding["problem"].partition(":")[0] for finding in checked["findings"]] == ["its content is not what the run was made with"]
    assert drift("runs", "verify", "--json").json["ok"] is True  # without --weights the run's own files are looked at


def test_an_axis_goes_with_a_model_whatever_its_folder_is_called(model: Path, tiny_models: dict[str, Path]) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(1, 32, generator=torch.Generator().manual_seed(0))).numpy()
    made_on = models.describe(str(model))
    Axis("mine", (2,), vectors, model=made_on.name, revision=made_on.identity).save(Path("data/axes/mine.safetensors"))
    moved = model.rename(model.with_name("second-name"))
    drift("generate", *SHORT, "--model", str(moved), "--axis", "mine")
    other = tiny.save("llama", Path("third-name").absolute(), num_hidden_layers=4)
    refused = drift("generate", *SHORT, "--model", str(other), "--axis", "mine", code=2).err
    assert "axis mine was built on first-name, not on third-name" in refused
    patch(moved.rename(model) / "config.json", rms_norm_eps=1e-5)
    refused = drift("generate", *SHORT, "--model", str(model), "--axis", "mine", code=2).err
    assert f"axis mine was built on other weights of that name ({made_on.identity}), not on first-name" in refused


# Earlier versions


@contextmanager
def earlier_version(folder: Path) -> Iterator[None]:
    """Call models what the version before `tree1:` called them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sources, "tree_digest", lambda files, say=None: models.sampled_digest(folder))
        yield


def test_a_run_of_an_earlier_version_goes_on_and_that_samples_were_compared_is_said(model: Path) -> None:
    line = ("generate", *SHORT, "--model", str(model))
    with earlier_version(model):
        drift(*line)
    old = only()
    assert old.manifest.spec.revision == models.sampled_digest(model)
    said = "this run was begun by an earlier version, which looked at samples of large weight files only"
    again = drift(*line)
    assert said in again.err
    assert "nothing to do" in again.err
    assert runs() == [old.paths.run_id]
    unfinished()
    assert said in drift("resume").err
    unfinished()
    assert said in drift("resume", "--model", str(model.rename(model.with_name("second-name")))).err
    checked = drift("runs", "verify", "--weights", "--json").json
    assert checked["ok"] is True
    assert "no digest of their whole content" in checked["findings"][0]["problem"]
    assert runs() == [old.paths.run_id]


def test_a_run_of_an_earlier_version_whose_model_changed_is_refused(model: Path) -> None:
    line = ("generate", *SHORT, "--model", str(model), "--name", "mine")
    with earlier_version(model):
        drift(*line)
    unfinished()
    patch(model / "generation_config.json", top_p=0.5)
    assert "revision: stored" in drift("resume", code=1).err
    refused = drift(*line, code=1).err
    assert "the name mine is taken: run mine-" in refused
    assert "sampling.top_p: stored 0.9, asked 0.5" in refused
    assert len(runs()) == 1


DIGESTS = {
    "OLD_FOLDER": "64f04223c979448b8897f19dead093cf237440231106225dd468c776340c23bb",
    "OLD_HUB": "8907b7024c8a92bd6ab7b030ddcad121c9f8fd47d40a6dbda6d0abd4aab6e483",
    "MANIFEST": "ad83a518841eb53dc89f7caa74496b52aa930b4ca301f19292e558c8a473c42a",
}


def test_ids_of_runs_that_exist_do_not_change() -> None:
    """Digests as version 0.1.0 made them, of a folder and of the Hub."""
    for revision, wanted in (("ab" * 32, "OLD_FOLDER"), ("cd" * 20, "OLD_HUB")):
        spec = RunSpec("name", "org/model", revision, "bfloat16", ChatFormat("template", "0" * 64), Sampling(top_p=0.9), 512, 42)
        assert spec.digest == DIGESTS[wanted]
        assert spec.identity == revision
    assert hashlib.sha256(store_fixtures.manifest().to_json()).hexdigest() == DIGESTS["MANIFEST"]


def test_half_precision_turns_of_an_earlier_version_are_told_apart(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rounded rotary frequencies to the run's dtype. What it made stays; that it was made otherwise is said and recorded."""
    from dataclasses import replace

    from drift_cli.files import atomic_write

    line = ("generate", *SHORT, "--model", str(model), "--dtype", "bfloat16", "--engine", "reference")
    assert "rotary" not in drift(*line).err
    run = only()
    assert [epoch.versions["loading"] for epoch in run.manifest.epochs] == ["2"]
    unfinished()
    assert "rotary" not in drift("resume").err
    older = [replace(epoch, versions={k: v for k, v in epoch.versions.items() if k != "loading"}) for epoch in run.manifest.epochs]
    atomic_write(run.paths.manifest, replace(run.manifest, epochs=tuple(older)).to_json())
    unfinished()
    assert "had the rotary frequencies rounded to bfloat16, which was wrong" in drift("resume").err
    assert [epoch.versions.get("loading") for epoch in only().manifest.epochs] == [None, "2"]


def test_turns_that_slots_of_an_earlier_version_made_on_a_cpu_are_told_apart(model: Path) -> None:
    """Their pages were half as long. What they made stays; that bits may differ from now on is said and recorded."""
    from dataclasses import replace

    from drift_cli.files import atomic_write

    drift("generate", *SHORT, "--model", str(model), "--engine", "slots")
    run = only()
    assert [epoch.versions["slots"] for epoch in run.manifest.epochs] == ["2"]
    unfinished()
    assert "rounded otherwise" not in drift("resume").err
    older = [replace(epoch, versions={k: v for k, v in epoch.versions.items() if k != "slots"}) for epoch in run.manifest.epochs]
    atomic_write(run.paths.manifest, replace(run.manifest, epochs=tuple(older)).to_json())
    unfinished()
    assert "whose slots rounded otherwise on a CPU" in drift("resume").err
    assert [epoch.versions.get("slots") for epoch in only().manifest.epochs] == [None, "2"]


def test_runs_in_float32_record_what_they_did(model: Path) -> None:
    drift("generate", *SHORT, "--model", str(model))
    text = only().paths.manifest.read_text()
    for word in ('"loading"', '"adapter"', '"quantization"'):
        assert word not in text


# One name, one run


CHANGES = {
    "dtype": (("--dtype", "bfloat16", "--engine", "reference"), "dtype: stored 'float32', asked 'bfloat16'"),
    "seed": (("--seed", "3"), "seed: stored 0, asked 3"),
    "reply length": (("--max-new-tokens", "5"), "max_new_tokens: stored 4, asked 5"),
    "filter": (("--top-p", "0.5"), "sampling.top_p: stored 0.9, asked 0.5"),
    "chat format": (("--chat", "raw"), "chat.kind: stored 'template', asked 'raw'"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_name_that_was_given_stands_for_one_run(what: str, model: Path) -> None:
    options, said = CHANGES[what]
    line = ("generate", *SHORT, "--model", str(model), "--name", "mine")
    drift(*line)
    before = runs()
    for extra in ((), ("--dry-run",)):
        refused = drift(*line, *options, *extra, code=1).err
        assert f"the name mine is taken: run {before[0]} is not what is asked for:" in refused
        assert said in refused
        assert "Use another --name for a new run, or put it back as stored." in refused
    assert drift("launch", *line[1:], *options, "--workers", "1", "--dry-run", code=1).err.count("the name mine is taken") == 1
    assert runs() == before
    drift(*line[:-1], "other", *CHANGES[what][0])
    assert len(runs()) == 2
    assert "nothing to do" in drift(*line).err


@pytest.mark.parametrize("what", ["a template", "a model"])
def test_a_model_that_changed_under_a_name_is_refused_with_the_difference(what: str, model: Path) -> None:
    line = ("generate", *SHORT, "--model", str(model), "--name", "mine")
    drift(*line)
    if what == "a template":
        path = model / "chat_template.jinja"
        path.write_text(path.read_text().replace("Today is", "Today it is"))
    else:
        patch(model / "config.json", rms_norm_eps=1e-5)
    refused = drift(*line, code=1).err
    assert "revision: stored 'tree1:" in refused
    assert ("chat.digest: stored" in refused) == (what == "a template")
    assert len(runs()) == 1


def test_a_name_in_drift_toml_stands_for_one_run_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("drift.toml").write_text(f'name = "mine"\nmodel = "{model}"\n')
    drift("generate", *SHORT)
    assert "the name mine is taken" in drift("generate", *SHORT, "--seed", "3", code=1).err
    monkeypatch.setenv("DRIFT_NAME", "other")
    drift("generate", *SHORT, "--seed", "3")
    assert "the name other is taken" in drift("generate", *SHORT, code=1).err


def test_a_name_made_of_the_models_may_stand_for_several_runs_and_that_is_said(model: Path) -> None:
    line = ("generate", *SHORT, "--model", str(model))
    assert "new run" not in drift(*line).err
    (first,) = runs()
    said = drift(*line, "--seed", "3", "--top-p", "0.5").err
    (second,) = [run for run in runs() if run != first]
    assert (
        f"this is a new run, {second}, and not {first}: seed was 0 there and is 3 here; sampling.top_p was 0.9 there and is 0.5 here"
        in said
    )
    assert "new run" not in drift(*line, "--seed", "3", "--top-p", "0.5").err
    assert (
        f"and not {second}: seed was 3 there and is 4 here" in drift(*line, "--seed", "4", "--top-p", "0.5", "--dry-run").err
    )  # the one most like it


def test_an_axis_that_is_built_under_a_name_is_of_one_run(model: Path) -> None:
    Path("people.toml").write_text(
        'questions = ["Who?"]\n[personas.default]\nside = "assistant"\n[personas.king]\nside = "role"\nsystem = "You are a king."\n'
    )
    line = ("axis", "build", "--model", str(model), "--personas", "people.toml", "--max-new-tokens", "4")
    drift(*line, "--name", "mine")
    refused = drift(*line, "--name", "mine", "--seed", "3", code=1).err
    assert "the name axis-mine is taken" in refused
    assert "seed: stored 0, asked 3" in refused
    drift(*line)
    assert "this is a new run, axis-first-name-" in drift(*line, "--seed", "3").err


# Adapters and GGUF files


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("existing"))


def test_an_adapter_makes_another_run_however_it_is_named(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, _ = made(kit)
    base = ("generate", *SHORT, "--model", str(kit.base), "--name", "x")
    drift(*base)
    (plain,) = runs()
    refused = drift(*base, "--adapter", str(adapter), code=1).err
    assert "adapter: stored none, asked 'tree1:" in refused
    named = drift("generate", *SHORT, "--model", str(kit.base), "--adapter", str(adapter))
    assert "adapter lora (" in named.err
    assert "merged into the weights in float32" in named.err
    (adapted,) = [run for run in runs() if run != plain]
    assert adapted.startswith("lora-")
    assert "nothing to do" in drift("generate", *SHORT, "--model", str(adapter)).err
    monkeypatch.setenv("DRIFT_ADAPTER", str(adapter))
    assert "nothing to do" in drift("generate", *SHORT, "--model", str(kit.base)).err
    monkeypatch.delenv("DRIFT_ADAPTER")
    Path("drift.toml").write_text(f'model = "{kit.base}"\nadapter = "{adapter}"\n')
    assert "nothing to do" in drift("generate", *SHORT).err
    assert len(runs()) == 2
    run = Run.open(Store(Path("checkpoints")), adapted)
    assert run.manifest.spec.adapter == models.describe(str(adapter)).adapter.digest  # type: ignore[union-attr]
    assert (settings(run)["model"], settings(run)["adapter"]) == (str(kit.base), str(adapter))
    shown = drift("runs", "show", adapted).out
    assert "merged into the weights" in shown
    assert drift("runs", "verify", adapted, "--weights", "--json").json["ok"] is True


def test_a_run_with_an_adapter_goes_on_where_the_adapter_is_now(kit: Kit) -> None:
    adapter, _ = made(kit)
    copy = Path("my-lora").absolute()
    shutil.copytree(adapter, copy)
    drift("generate", *SHORT, "--model", str(copy))
    unfinished()
    moved = copy.rename(copy.with_name("her-lora"))
    refused = drift("resume", code=1).err
    assert "--adapter FOLDER" in refused
    drift("resume", "--adapter", str(moved))
    assert settings(only())["adapter"] == str(moved)
    unfinished()
    drift("resume")
    patch(moved / "adapter_config.json", lora_alpha=9)
    unfinished()
    assert "adapter: stored 'tree1:" in drift("resume", code=1).err
    assert drift("runs", "verify", "--weights", "--json", code=1).json["ok"] is False


def test_which_weights_an_axis_was_made_on_is_told_by_digests_where_they_are_known_else_by_names() -> None:
    def foreign(made_on: tuple[str, str | None], used_on: tuple[str, str | None]) -> bool:
        vectors = torch.nn.functional.normalize(torch.ones(1, 4)).numpy()
        return Axis("x", (1,), vectors, model=made_on[0], revision=made_on[1]).foreign_to(*used_on) is not None

    a, b, adapter = "tree1:" + "a" * 64, "tree1:" + "b" * 64, "tree1:" + "c" * 64
    sampled, commit = "d" * 64, "e" * 40
    assert not foreign(("one", a), ("two", a))
    assert foreign(("one", a), ("one", b))
    assert foreign(("one", a), ("one", f"{a}+{adapter}"))  # the base model's axis, on the adapted model
    assert foreign(("one", commit), ("one", f"{commit}+{adapter}"))
    assert not foreign(("one", f"{a}+{adapter}"), ("two", f"{a}+{adapter}"))
    assert not foreign(("org/one", commit), ("one", a))
    assert not foreign(("one", sampled), ("one", a))
    assert not foreign(("org/one", commit), ("org/one", "f" * 40))  # a commit may change the model's page only
    assert not foreign(("one", None), ("one", a))
    assert foreign(("one", None), ("two", a))


def test_a_gguf_file_runs_and_says_what_it_is(kit: Kit) -> None:
    path = gguf_files.write(kit.base, Path("tiny.gguf").absolute())
    line = ("generate", *SHORT, "--model", "tiny.gguf")
    assert "the weights are stored as GGUF F32, unpacked" in drift(*line).err
    assert drift("runs", "show", "--json").json["model"]["quantization"] == "GGUF F32, unpacked"
    assert "GGUF F32, unpacked" in drift("runs", "show").out
    assert settings(only())["model"] == str(path)
    unfinished()
    drift("resume")
    unfinished()
    path.rename("other.gguf")
    drift("resume", "--model", "other.gguf")
    assert drift("runs", "verify", "--weights", "--json").json["ok"] is True
    assert len(runs()) == 1
