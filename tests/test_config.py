"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from drift_cli.errors import UsageError
from drift_cli.settings.config import PRESETS, preset_settings, preset_text, resolve
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
    for condition in settings.conditions:
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
