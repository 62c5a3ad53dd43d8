"""The README's road: what a stranger types, in its order; what is said before anything is lost; and what is never taken in silence."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import tiny
from cli import drift
from made_axes import made_axis, put

from drift_cli.errors import UsageError
from drift_cli.running.speeds import Speeds
from drift_cli.settings.config import preset_settings, resolve
from drift_cli.settings.settings import PRESETS
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

README = Path(__file__).parents[1] / "README.md"
SHORT = ("--transcript", "short.json", "--samples", "2", "--max-new-tokens", "5")
PEOPLE = """
questions = ["Who are you?", "What do you do?"]
[personas.default]
side = "assistant"
[personas.helper]
side = "assistant"
system = "You help."
[personas.ghost]
side = "role"
system = "You are a ghost."
[personas.king]
side = "role"
system = "You are a king."
"""


@pytest.fixture(autouse=True)
def short_transcript(own_folder: None) -> None:
    Path("short.json").write_text(json.dumps({"users": ["hello there", "who are you", "and the light"]}))
    Path("people.toml").write_text(PEOPLE)


@pytest.fixture(autouse=True)
def known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine does takes seconds to measure, and nothing here depends on it."""
    known = Speeds(bandwidth=1e10, flops=1e10, attention=1e10, step=1e-4, slot_step=1e-4, slot_read=1e10, chunk=1e-4, draw=1e-4)
    monkeypatch.setattr("drift_cli.running.loading.measure_speeds", lambda *of: known)


def newest() -> Run:
    return Run.newest(Store(Path("checkpoints")))


def commands(text: str) -> list[list[str]]:
    """The `drift …` commands of a message, as a shell would read them."""
    return [shlex.split(found) for found in re.findall(r"drift ((?:axis build|measure) [^&\n]*?)(?= &&|   |$)", text, re.MULTILINE)]


@pytest.mark.parametrize("preset", ["olmo3-003b", "smollm2"])
def test_a_preset_without_an_axis_says_so_first_and_ends_with_numbers_all_the_same(preset: str, tiny_models: dict[str, Path]) -> None:
    drift("init", "--preset", preset)
    model = ("--model", str(tiny_models["olmo3"]))
    line = ("generate", *model, *SHORT, "--condition", "baseline", "--condition", "simple")
    plan = drift(*line, "--dry-run", "--json")
    assert "no axis" in plan.json["lacking"][0]
    assert "WARNING: no axis: `drift stats`, `plot` and `report` will have nothing to show" in plan.err
    assert "WARNING: no axis" in drift(*line, "--dry-run").out
    made = drift(*line)
    assert made.err.index("WARNING: no axis") < made.err.index("turns to do")
    assert newest().manifest.layers == (0, 1, 2, 3, 4)
    refused = [drift(command, code=1).err for command in ("stats", "plot", "report")]
    assert len(set(refused)) == 1
    build, measure = commands(refused[0])
    assert commands(made.out) == [build, measure]
    assert build[:2] == ["axis", "build"]
    run_id = newest().paths.run_id
    drift(*build, "--personas", "people.toml", "--max-new-tokens", "5")
    # Now that there is an axis for this model, it is the one that is named.
    assert commands(drift("stats", run_id, code=1).err) == [measure]
    drift(*measure)
    assert drift("stats", "--json").json["comparisons"][0]["difference"] is not None
    drift("plot", "-o", "x.png")
    drift("report", "-o", "x.html")


def test_the_road_with_an_axis_needs_nothing_more(tiny_models: dict[str, Path]) -> None:
    drift("init", "--preset", "smollm2")
    toml = Path("drift.toml").read_text().replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', f'"{tiny_models["olmo3"]}"')
    Path("drift.toml").write_text(toml)
    built = drift("axis", "build", "--personas", "people.toml", "--max-new-tokens", "5")
    assert "WARNING" not in built.err
    name = re.search(r'axis = "(\S+)"', built.out)
    assert name is not None
    assert f"(for this model there is: {name[1]}; --axis {name[1]}" in drift("generate", "--dry-run").err
    Path("drift.toml").write_text(re.sub(r"(?m)^# axis = \S+", f'axis = "{name[1]}"', toml))
    line = ("generate", "--samples", "2", "--max-new-tokens", "5", "--turns", "2")
    assert "WARNING" not in drift(*line, "--dry-run").err
    assert "next: drift stats" in drift(*line).out
    assert {cell.transcript for cell in (plan.cell for plan in newest().manifest.cells)} == {"lonely-2"}
    drift("stats")
    drift("plot", "-o", "x.png")


def test_the_readmes_commands_work_in_their_order(tmp_path: Path) -> None:
    """Every `drift` line from `init` to the end of "With a real model", on a tiny model of the same name, and smaller."""
    tiny.save("olmo3", tmp_path / "SmolLM2-135M-Instruct")
    section = README.read_text().split("## With a real model")[1].split("## ")[0]
    blocks = [block.split("```")[0] for block in section.split("```sh")[1:]]
    lines = [line.partition("#")[0].strip() for block in blocks[:2] for line in block.splitlines()]
    given = [
        shlex.split(part.strip().removeprefix("drift ")) for line in lines for part in line.split("&&") if part.strip().startswith("drift ")
    ]
    assert [words[0] for words in given] == [
        "doctor",
        "init",
        "axis",
        "generate",
        "generate",
        "resume",
        "stats",
        "plot",
        "report",
        "generate",
        "generate",
    ]
    smaller = {"axis": ["--personas", "people.toml"], "generate": ["--max-new-tokens", "4", "--turns", "2"], "stats": ["--resamples", "99"]}
    for words in given[1:]:
        counts = ["--samples", "3" if "64" in words else "2"] if words[0] == "generate" else []
        drift(*words, *smaller.get(words[0], []), *counts)
        if words[0] == "init":
            toml = Path("drift.toml").read_text()
            assert "HuggingFaceTB/SmolLM2-135M-Instruct" in toml
            Path("drift.toml").write_text(toml.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "SmolLM2-135M-Instruct")))
    found = drift("stats", "--json", "--resamples", "99").json
    assert {cell["condition"] for cell in found["summary"]["cells"]} == {"baseline", "simple", "placebo", "gentle"}
    assert {cell["planned"] for cell in found["summary"]["cells"]} == {2, 3}


def test_every_preset_for_a_real_model_keeps_every_layer() -> None:
    for preset in PRESETS:
        assert preset_settings(preset).layers == "all"


def test_one_stored_layer_is_warned_of_and_named_in_the_commands(tiny_models: dict[str, Path]) -> None:
    made = drift("generate", "--model", str(tiny_models["olmo3"]), *SHORT, "--condition", "baseline")
    assert "residual means of layer 3 alone are stored" in made.err
    put(made_axis("mine", 4, 1, model="tiny-olmo3"))
    (measure,) = commands(drift("stats", code=1).err)
    assert measure[2:] == ["--axis", "mine", "--layer", "3"]
    drift(*measure)
    drift("stats")


# --- what an axis build takes from experiments


def test_an_axis_build_takes_no_sampling_from_experiments_and_says_what_it_takes(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("axis", "build", "--model", str(tiny_models["qwen3"]), "--name", "x", "--personas", "people.toml", "--max-new-tokens", "4")
    drift(*line)
    plain = newest().manifest.spec
    Path("drift.toml").write_text(
        "top_k = 1\ntop_p = 0.2\nmin_p = 0.5\nindependent_noise = true\nsamples = 9\nseed = 5\ntemperatures = [0.1]\nmax_new_tokens = 9\n"
        'name = "mine"\nlayers = [1]\naxis = "demo"\nlayer = 1\nturns = 1\nforeign_axis = true\ntranscripts = ["lonely"]\n'
        "[conditions.odd]\nsystem = 'be odd'\n"
    )
    monkeypatch.setenv("DRIFT_TOP_K", "2")
    said = drift(*line).err
    assert "nothing to do" in said
    assert newest().manifest.spec == plain
    assert len(Store(Path("checkpoints")).run_ids()) == 1
    for left in (
        "top_k 2 (environment DRIFT_TOP_K)",
        "top_p 0.2 (drift.toml)",
        "min_p 0.5 (drift.toml)",
        "independent_noise True (drift.toml)",
    ):
        assert left in said
    Path("drift.toml").write_text('chat_options = ["enable_thinking=false"]\ndtype = "float32"\n')
    said = drift(*(part if part != "x" else "y" for part in line)).err
    assert 'as for your experiments: dtype float32 (drift.toml), chat_options {"enable_thinking": false} (drift.toml)' in said
    assert newest().manifest.spec.chat.options == '{"enable_thinking": false}'


def test_a_revision_is_of_the_model_it_is_named_with() -> None:
    Path("drift.toml").write_text('model = "org/one"\nrevision = "abc"\n')
    assert resolve({}, environment={}).revision == "abc"
    other = resolve({"model": "org/two"}, environment={})
    assert (other.revision, other.origin("revision")) == (None, "default")
    assert resolve({"model": "org/one"}, environment={}).revision == "abc"
    assert resolve({"revision": "def"}, environment={}).revision == "def"
    assert resolve({"model": "org/two"}, environment={"DRIFT_REVISION": "def"}).revision is None


# --- a script that is shortened


def test_a_shortened_script_and_the_whole_one_are_two_transcripts_of_one_run() -> None:
    line = ("generate", "--transcript", "short.json", "--samples", "1", "--max-new-tokens", "4", "--condition", "baseline")
    drift(*line, "--turns", "2")
    before = {path: path.read_bytes() for path in Path("checkpoints").rglob("0*.jsonl")}
    drift(*line)
    run = newest()
    assert len(Store(Path("checkpoints")).run_ids()) == 1
    assert {name: len(script.users) for name, script in run.manifest.transcripts.items()} == {"short-2": 2, "short": 3}
    assert all(path.read_bytes() == data for path, data in before.items())
    assert run.manifest.settings["turns"].value == 2
    assert "nothing to do" in drift(*line, "--turns", "3").err  # no more than it has
    Path("drift.toml").write_text("turns = 2\n")
    assert "nothing to do" in drift(*line).err
    assert "turns is 0" in drift(*line, "--turns", "0", code=2).err


def test_another_script_under_the_name_of_a_shortened_one_is_refused() -> None:
    drift("generate", *SHORT, "--condition", "baseline", "--turns", "2")
    Path("short-2.json").write_text(json.dumps({"users": ["something", "else"]}))
    line = ("generate", "--transcript", "short-2.json", "--samples", "2", "--max-new-tokens", "5", "--condition", "baseline")
    assert "transcripts.short-2" in drift(*line, code=1).err


# --- cells in which nothing fits


def test_a_run_of_which_no_turn_fits_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "tight", context=100)
    line = ("generate", "--model", str(folder), *SHORT, "--condition", "baseline", "--max-new-tokens", "90")
    for more in ((), ("--dry-run",)):
        refused = drift(*line, *more, code=1)
        assert "no turn can be made: even the shortest first prompt, of" in refused.err
        assert "and a reply of up to 90 do not fit the context of 100 tokens of tight" in refused.err
    assert not Path("checkpoints").exists()
    shortest = re.search(r"--max-new-tokens (\d+) or less", refused.err)
    assert shortest is not None
    fits = drift(*line[:-1], shortest[1])
    assert newest().states()[0].done > 0, fits.err


def test_a_run_that_was_made_without_a_turn_is_an_error_when_it_is_resumed(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "tight", context=100)
    line = ("generate", "--model", str(folder), *SHORT, "--condition", "baseline")
    drift(*line)
    manifest = json.loads(newest().paths.manifest.read_text())
    del manifest["digest"]
    config = json.loads((folder / "config.json").read_text())
    # The same run as an earlier version would have left it: planned for a model whose context holds no first prompt.
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 10}))
    from drift_cli import models

    card = models.describe(str(folder))
    old = newest().paths.root
    manifest["spec"]["revision"], manifest["model"]["context"] = card.revision, 10
    from drift_cli.spec import RunSpec
    from drift_cli.store.decode import decode

    new = old.with_name(decode(RunSpec, manifest["spec"]).id)
    (new / "axes").mkdir(parents=True)
    (new / "run.json").write_text(json.dumps(manifest))
    assert "no turn can be made" in drift("resume", new.name, code=1).err


def test_cells_without_a_turn_are_said_loudly_before_and_after_and_the_others_are_made(tmp_path: Path) -> None:
    folder = tiny.save("olmo3", tmp_path / "narrow", context=300)
    Path("drift.toml").write_text(f'[conditions.baseline]\n[conditions.wordy]\nsystem = "{"on and on " * 40}"\n')
    made = drift("generate", "--model", str(folder), *SHORT)
    assert re.search(r"WARNING: no turn will be made of short/wordy/T0.7: its first prompt of \d+ tokens", made.err)
    assert "WARNING: no turn could be made of short/wordy/T0.7" in made.out
    done = {state.rollout.cell.condition: state.done for state in newest().states()}
    assert done["baseline"] > 0
    assert done["wordy"] == 0
    assert "no turn can be made" in drift("generate", "--model", str(folder), *SHORT, "--condition", "wordy", code=1).err


# --- names that are spelled wrong


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("generate", "--transcript", "lonley"), "Did you mean 'lonely'?"),
        (("generate", *SHORT, "--condition", "simpel"), "Did you mean 'simple'?"),
        (("generate", *SHORT, "--axis", "dmeo"), "Did you mean 'demo'?"),
        (("init", "--preset", "smolm2"), "Did you mean 'smollm2'?"),
    ],
)
def test_a_name_that_is_nearly_right_is_suggested(arguments: tuple[str, ...], hint: str) -> None:
    assert hint in drift(*arguments, code=None).err


def test_an_axis_of_a_run_that_is_nearly_right_is_suggested() -> None:
    drift("generate", *SHORT, "--condition", "baseline")
    assert "Did you mean 'demo'?" in drift("stats", "--axis", "dem0", code=1).err


def test_an_unknown_key_of_a_condition_is_named() -> None:
    Path("drift.toml").write_text("[conditions.a]\nsystem = 'x'\nplacment = 'start'\n")
    with pytest.raises(UsageError, match=r"\[conditions.a\] may hold only .* not 'placment'\nDid you mean 'placement'"):
        resolve({}, environment={})


def test_what_is_left_out_of_a_transcript_is_said() -> None:
    Path("talk.json").write_text(json.dumps([{"role": "system", "content": "S"}, {"role": "user", "content": "hello there"}]))
    line = ("generate", "--transcript", "talk.json", "--samples", "1", "--max-new-tokens", "3", "--condition", "baseline")
    assert "transcript talk: Dropped 1 system message(s)" in drift(*line).err
