"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from drift_cli.errors import StoreError, UsageError
from drift_cli.settings.config import preset_settings, preset_text, resolve
from drift_cli.settings.settings import PRESETS, Settings, keys
from drift_cli.spec import Condition, Placement

TOML = """
samples = 5
seed = 7
max_new_tokens = 99
preset = "olmo3-003b"
[conditions.mine]
system = "Stay."
placement = "start"
"""


def test_flag_beats_environment_beats_file_beats_preset_beats_default() -> None:
    Path("drift.toml").write_text(TOML)
    env = {"DRIFT_SAMPLES": "6", "DRIFT_SEED": "8"}
    settings = resolve({"samples": 9}, environment=env)
    assert (settings.samples, settings.origin("samples")) == (9, "flag --samples")
    assert (settings.seed, settings.origin("seed")) == (8, "environment DRIFT_SEED")
    assert (settings.max_new_tokens, settings.origin("max_new_tokens")) == (99, "drift.toml")
    assert (settings.temperatures, settings.origin("temperatures")) == ((0.5,), "preset olmo3-003b")
    assert (settings.dtype, settings.origin("dtype")) == ("auto", "default")


def test_without_anything_the_demo_is_meant() -> None:
    settings = resolve({}, environment={})
    assert settings.model == "demo"
    assert [c.name for c in settings.conditions] == ["baseline", "simple", "complex", "placebo"]


def test_a_real_model_does_not_take_over_the_demos_settings() -> None:
    settings = resolve({"model": "org/model"}, environment={})
    assert settings.max_new_tokens == 512
    assert settings.axis is None
    assert settings.conditions == (Condition("baseline"),)


def test_the_preset_of_the_original_experiment() -> None:
    settings = resolve({"preset": "olmo3-003b"}, environment={})
    assert (settings.samples, settings.temperatures, settings.seed, settings.max_new_tokens) == (16, (0.5,), 42, 512)
    assert settings.layers == "all"
    assert (settings.axis, settings.layer) == (None, None)
    assert settings.model == "allenai/Olmo-3-7B-Instruct"
    simple = next(c for c in settings.conditions if c.name == "simple")
    assert simple == Condition("simple", "Reminder: You are a helpful assistant.", Placement.EVERY_TURN)


def test_prompts_of_the_preset_are_those_of_the_real_data(seed_data: Path) -> None:
    import json

    settings = preset_settings("olmo3-003b")
    theirs = [condition for condition in settings.conditions if condition.placebo_of is None]
    assert {condition.name for condition in theirs} == {"baseline", "simple", "complex"}
    for condition in theirs:
        name = condition.name if condition.name == "baseline" else f"{condition.name}_sysprompt"
        assert json.loads((seed_data / f"003b_{name}.json").read_text())["system_prompt"] == condition.system


def test_conditions_of_the_file_are_used_and_can_be_chosen() -> None:
    Path("drift.toml").write_text(TOML)
    assert [c.name for c in resolve({}, environment={}).conditions] == ["mine"]
    chosen = resolve({}, chosen=["complex", "mine"], environment={}).conditions
    assert [c.name for c in chosen] == ["complex", "mine"]


def test_a_condition_from_the_command_line() -> None:
    settings = resolve({}, chosen=["x"], ad_hoc=Condition("x", "Hi.", Placement.START), environment={})
    assert settings.conditions == (Condition("x", "Hi.", Placement.START),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampels = 3", "'sampels' does not exist\nDid you mean 'samples'"),
        ("samples = 'many'", "samples is 'many', but wants a whole number"),
        ("samples = 2.5", "wants a whole number"),
        ("samples = true", "wants a whole number"),
        ("layers = 'some'", "layers is 'some', but wants"),
        ("= 3", "drift.toml is not valid TOML"),
        ("[conditions.a]\nprompt = 'x'", r"\[conditions.a\] may hold only"),
        ("[conditions.a]\nsystem = 'x'\nplacement = 'top'", "placement 'top' does not exist"),
        ("[conditions.'../a']\nsystem = 'x'", "condition name '../a' cannot be used"),
        ("conditions = 3", "conditions must be tables"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, message: str) -> None:
    Path("drift.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        resolve({}, environment={})


def test_unknown_condition_preset_and_file_are_refused_with_what_there_is() -> None:
    with pytest.raises(UsageError, match="Defined: baseline, simple, complex"):
        resolve({}, chosen=["nobody"], environment={})
    with pytest.raises(UsageError, match="demo, olmo3-003b"):
        resolve({"preset": "nothing"}, environment={})
    with pytest.raises(UsageError, match="drift init"):
        resolve({}, config=Path("absent.toml"), environment={})


def test_every_preset_is_a_valid_file() -> None:
    for name in PRESETS:
        Path("drift.toml").write_text(preset_text(name))
        settings = resolve({}, environment={})
        assert settings.conditions == preset_settings(name).conditions
        assert {**settings.values, "preset": name} == preset_settings(name).values


def test_chat_options_are_read_as_json_where_they_are() -> None:
    settings = resolve({"chat_options": ["enable_thinking=false", "style=plain"]}, environment={})
    assert settings.chat_options == '{"enable_thinking": false, "style": "plain"}'


SAMPLES: dict[str, tuple[str, str, object]] = {
    # As a variable or flag says it, as TOML says it, as a manifest of earlier versions has it.
    "name": ("mine", '"mine"', "mine"),
    "preset": ("smollm2", '"smollm2"', "smollm2"),
    "model": ("org/m", '"org/m"', "org/m"),
    "revision": ("abc", '"abc"', "abc"),
    "adapter": ("folder", '"folder"', "folder"),
    "dtype": ("float16", '"float16"', "float16"),
    "device": ("cuda:1", '"cuda:1"', "cuda:1"),
    "chat": ("raw", '"raw"', "raw"),
    "chat_date": ("2025-02-03", '"2025-02-03"', "2025-02-03"),
    "chat_options": ("think=true", "{ think = true }", '{"think": true}'),
    "transcripts": ("a,b", '["a", "b"]', ["a", "b"]),
    "strip_private": ("yes", "true", True),
    "turns": ("3", "3", 3),
    "temperatures": ("0.5,1", "[0.5, 1]", [0.5, 1.0]),
    "samples": ("4", "4", 4),
    "seed": ("9", "9", 9),
    "max_new_tokens": ("7", "7", 7),
    "top_p": ("0.9", "0.9", 0.9),
    "top_k": ("5", "5", 5),
    "min_p": ("0.1", "0.1", 0.1),
    "independent_noise": ("on", "true", True),
    "layers": ("1,2", "[1, 2]", [1, 2]),
    "pool": ("first:4", '"first:4"', "first:4"),
    "axis": ("demo", '"demo"', "demo"),
    "layer": ("2", "2", 2),
    "foreign_axis": ("true", "true", True),
    "engine": ("reference", '"reference"', "reference"),
    "batch": ("8", "8", 8),
}


@pytest.mark.parametrize("name", sorted(keys()))
def test_a_setting_means_the_same_wherever_it_is_said(name: str) -> None:
    said, toml, recorded = SAMPLES[name]
    Path("drift.toml").write_text(f"{name} = {toml}\n")
    in_file = resolve({}, environment={})
    found = getattr(in_file, name)
    assert found != keys()[name].default
    assert in_file.origin(name) == "drift.toml"
    Path("drift.toml").unlink()
    of_variable = resolve({}, environment={keys()[name].variable: said})
    assert (getattr(of_variable, name), of_variable.origin(name)) == (found, f"environment {keys()[name].variable}")
    of_flag = resolve({name: recorded if isinstance(recorded, list) else said}, environment={})
    assert (getattr(of_flag, name), of_flag.origin(name)) == (found, f"flag {keys()[name].option}")
    of_run = Settings.recorded({name: recorded}, (), "run r-1")
    assert (getattr(of_run, name), of_run.origin(name)) == (found, "run r-1")


def test_what_a_manifest_does_not_have_is_the_default_and_what_it_cannot_have_is_refused() -> None:
    old = Settings.recorded({"seed": 3, "layers": None, "of_a_later_version": 1}, (Condition("a"),), "run r-1")
    assert (old.seed, old.layers, old.samples, old.conditions) == (3, "auto", 16, (Condition("a"),))
    with pytest.raises(StoreError, match="run r-1: samples is 'many', but wants a whole number"):
        Settings.recorded({"samples": "many"}, (), "run r-1")


def test_flags_on_top_of_a_run_are_read_as_strictly_as_others() -> None:
    settings = Settings.recorded({"batch": 4}, (), "run r-1")
    assert settings.given({"batch": 9, "device": None}).batch == 9
    with pytest.raises(UsageError, match="the command line: batch is 0, but wants at least 1"):
        settings.given({"batch": 0})


def test_generate_has_a_flag_for_every_setting_and_every_flag_a_help_text() -> None:
    from typer.main import get_command

    from drift_cli.__main__ import app

    parameters = {one.name: one for one in get_command(app).commands["generate"].params}  # type: ignore[attr-defined]
    for name, key in keys().items():
        assert key.option in parameters[name].opts
        assert parameters[name].help == key.help
        assert len(key.help) > 10
