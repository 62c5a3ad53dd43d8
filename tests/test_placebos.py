"""A placebo is as many tokens as the prompt it is of, in the same place, the same words always; and where a comparison has none, that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from cli import drift

from drift_cli.analysis.placebos import placebos, unmatched
from drift_cli.chat.placebo import filled, scrambled
from drift_cli.errors import UsageError
from drift_cli.settings.config import PRESETS, preset_settings, resolve
from drift_cli.spec import Condition, Placement
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

PROMPTS = ("Reminder: You are a helpful assistant.", "You are a helpful, harmless, and honest AI assistant. " * 8, "Hi.")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", ["olmo3", "llama"])
def test_a_placebo_is_as_many_tokens_as_its_prompt_and_says_nothing_of_it(name: str, prompt: str) -> None:
    tokenizer = tiny.tokenizer(tiny.ARCHITECTURES[name])
    made = scrambled(prompt, tokenizer)
    assert abs(len(tokenizer.encode(made)) - len(tokenizer.encode(prompt))) <= 1
    assert made == scrambled(prompt, tokenizer)
    assert "assistant" not in made
    assert "helpful" not in made


def test_it_stands_where_its_prompt_stands() -> None:
    tokenizer = tiny.tokenizer(tiny.ARCHITECTURES["llama"])
    of = Condition("kind", PROMPTS[0], Placement.USER_SUFFIX)
    (made,) = filled([Condition("nothing", placebo_of="kind")], {"kind": of}, tokenizer)
    assert (made.placement, made.placebo_of) == (Placement.USER_SUFFIX, "kind")
    assert made.system == scrambled(PROMPTS[0], tokenizer)
    assert filled([made], {}, tokenizer) == (made,)  # one that has its words keeps them
    with pytest.raises(UsageError, match="has no system prompt here"):
        filled([Condition("nothing", placebo_of="baseline")], {"baseline": Condition("baseline")}, tokenizer)


def test_which_conditions_have_a_placebo_of_their_own() -> None:
    long, near = "one two three four five six seven eight nine ten", "a b c d e f g h i j"
    conditions = {
        "baseline": Condition("baseline"),
        "long": Condition("long", long),
        "short": Condition("short", "one two"),
        "elsewhere": Condition("elsewhere", long, Placement.EVERY_TURN),
        "placebo": Condition("placebo", near),
    }
    assert placebos(conditions) == {"long": "placebo"}
    assert unmatched(conditions, "baseline") == ("short", "elsewhere")
    conditions["nothing"] = Condition("nothing", "x y z", placebo_of="short")
    assert placebos(conditions) == {"long": "placebo", "short": "nothing"}
    assert unmatched({"baseline": Condition("baseline"), "a": Condition("a", "b")}, "baseline") == ()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_placebo(name: str) -> None:
    assert any(one.name == "placebo" for one in preset_settings(name).conditions)


@pytest.mark.parametrize(
    "text", ['[conditions.p]\nplacebo_of = "none"', '[conditions.a]\nsystem = "x"\n[conditions.p]\nplacebo_of = "a"\nsystem = "y"']
)
def test_a_placebo_of_nothing_or_with_words_of_its_own_is_refused(text: str) -> None:
    Path("drift.toml").write_text(text)
    with pytest.raises(UsageError, match="placebo"):
        resolve({})


def test_a_run_keeps_its_placebo_and_stats_says_which_comparison_has_none(tiny_models: dict[str, Path]) -> None:
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you"]}))
    Path("drift.toml").write_text(
        '[conditions.baseline]\n[conditions.kind]\nsystem = "be kind"\nplacement = "user-suffix"\n[conditions.long]\nsystem = "be kind and be light to them"\n'
        'placement = "user-suffix"\n[conditions.nothing]\nplacebo_of = "kind"\n'
    )
    command = ("generate", "--model", str(tiny_models["llama"]), "--transcript", "short.json", "--max-new-tokens", "5", "--samples", "2")
    drift(*command, "--dtype", "float32", "--layers", "all", "--no-same-replies")
    run = Run.newest(Store(Path("checkpoints")))
    placebo = run.manifest.conditions["nothing"]
    assert placebo.system
    assert placebo.placement is Placement.USER_SUFFIX
    drift(*command, "--dtype", "float32", "--layers", "all", "--no-same-replies", "--samples", "3")
    drift("resume", "--no-same-replies")
    assert Run.open(Store(Path("checkpoints")), run.paths.run_id).manifest.conditions["nothing"] == placebo
