"""A part of the table of verdicts (tests/breadth/table.toml), one of each kind; `make breadth` measures all of it.

Both engines against plain forward passes over the whole conversation: every layer's residual means of every turn, and every token, in conversations that
are longer than every window and cross every threshold of length.
"""

from __future__ import annotations

import pytest
from breadth.verdicts import alone, known_types, table

from drift_cli.engine import reference
from drift_cli.engine.chunks import Arriving
from drift_cli.engine.pooling import pool_parts
from drift_cli.engine.sampling import draw

CHOSEN = {
    "qwen3": "the usual kind",
    "olmo3": "windows in some layers",
    "deepseek_v3": "keys and values of different widths, and experts",
    "qwen3_vl": "the text part of a model that sees, with positions in three parts",
    "gemma3": "another, whose windows and masks its image tokens may change",
    "gemma3n_text-shared": "several residual streams, and layers that share keys",
    "gemma4_text-shared": "layers that share keys and leave out tokens whose logits nobody asked for",
    "ministral3-tempered": "queries scaled by their position",
    "llama-unnormed": "the last hidden state before the final norm",
    "llama-longrope": "a rotary embedding that changes with the length",
    "phimoe": "a window that only the mask knows",
    "llama4_text-full": "queries scaled by what the cache holds",
    "olmo_hybrid": "blocks of two classes, one of them recurrent",
    "lfm2-conv": "convolutions over tokens",
    "gpt_oss": "attention sinks",
    "bloom": "a bias by distance",
    "bart": "positions that padding moves",
    "moshi": "a cache that forgets what the network still sees",
    "gpt2-short": "a table of positions that ends with the context",
}


@pytest.mark.parametrize("name", CHOSEN)
def test_engines_give_what_the_network_gives_or_say_why_not(name: str) -> None:
    if name not in known_types():
        pytest.skip(f"the installed transformers has no {name}")
    found, expected = alone(name), table().get(name)
    assert found.agrees(expected), f"table: {expected}\nmeasured: {found.text}\n{found.detail}"


def test_the_table_has_a_verdict_of_every_kind_and_no_wrong_number() -> None:
    kinds = [verdict.partition(":")[0].partition(";")[0] for verdict in table().values()]
    assert set(kinds) == {"exact", "reference", "refused", "excluded"}
    assert kinds.count("exact") + kinds.count("reference") >= 200
    assert set(CHOSEN) <= set(table())


@pytest.mark.parametrize("engine", ["slots", "reference"])
def test_residuals_that_are_less_than_a_thousandth_off_are_wrong_numbers(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Less than what the trial of slots puts down to rounding: the table is the finer sieve.
    own = Arriving.value
    if engine == "slots":
        monkeypatch.setattr(Arriving, "value", lambda self: {part: 1.0008 * mean for part, mean in own(self).items()})
    else:
        monkeypatch.setattr(reference, "pool_parts", lambda *given: {part: 1.0008 * mean for part, mean in pool_parts(*given).items()})
    found = alone("qwen3")
    assert found.text == f"WRONG: {engine}"
    assert not found.agrees(table()["qwen3"])


def test_a_token_that_other_logits_would_have_drawn_is_a_wrong_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "draw", lambda scores, *how: draw(scores * 1.01, *how))
    assert alone("qwen3").text == "WRONG: reference"
