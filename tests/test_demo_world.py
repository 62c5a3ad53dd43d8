"""The built-in model's world: what was planted is in its corpus, and can be read back from its sentences."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

import drift_cli
from drift_cli.models import describe
from tools.demo_model import corpus, register
from tools.demo_model.corpus import ASSISTANT, CHARACTER
from tools.demo_model.encoder import Encoder
from tools.demo_model.planted import Cue, drift

ROOT = Path(drift_cli.__file__).parents[1]


def test_pulling_raises_drift_at_once_and_for_turns_after_and_reminders_lower_it() -> None:
    calm = list(drift([Cue()] * 6))
    assert len(set(calm)) == 1
    pulled = list(drift([Cue(), Cue(3), Cue(), Cue(), Cue(), Cue()]))
    assert pulled[0] == calm[0]
    assert pulled[1] > pulled[2] > pulled[3] > pulled[4] > pulled[5] > calm[5]
    by_grade = [next(drift([Cue(3, grade)])) for grade in (None, "short", "detailed")]
    assert by_grade == sorted(by_grade, reverse=True)
    sides = [next(drift([Cue()], side)) for side in ("assistant", "none", "near", "between", "far")]
    assert all(a < b for a, b in pairwise(sides))
    assert next(drift([Cue()], opening="detailed")) < next(drift([Cue()], opening="short")) < calm[0]


def test_sentences_of_the_corpus_are_in_each_register_as_often_as_planted() -> None:
    random = Random("as often")
    turns = [turn for _ in range(700) for turn in corpus.converse(random, 8).turns]
    p = np.array([turn.p for turn in turns for _ in turn.registers])
    drifted = np.array([one == CHARACTER for turn in turns for one in turn.registers])
    for low, high in pairwise((0, 0.1, 0.3, 0.6, 0.9, 1)):
        here = (p >= low) & (p < high)
        assert here.sum() > 300
        assert abs(drifted[here].mean() - p[here].mean()) < 4 * 0.5 / np.sqrt(here.sum())


def test_the_same_seed_gives_the_same_conversations_and_no_slot_is_left_open() -> None:
    texts = corpus.texts(5, 300)
    assert texts == corpus.texts(5, 300)
    assert texts != corpus.texts(6, 300)
    assert not any("{" in text or "}" in text or "  " in text for text in texts)


@pytest.mark.parametrize("kind", [ASSISTANT, CHARACTER])
def test_a_sentences_register_is_told_from_its_words(kind: str) -> None:
    fresh = register.examples(kind, 3000, f"fresh/{kind}")
    assert sum(register.register(sentence) != kind for sentence in fresh) <= 3


def test_a_replys_share_is_over_its_sentences() -> None:
    one, other = register.examples(ASSISTANT, 1, "one")[0], register.examples(CHARACTER, 1, "other")[0]
    assert register.assistant_share(f"{one} {other}") == 0.5
    assert register.assistant_share("  …  ") is None


def test_training_sees_the_ids_that_the_chat_template_makes() -> None:
    card = describe("demo")
    encoder = Encoder(card.tokenizer.backend_tokenizer)
    random = Random(3)
    for _ in range(12):
        conversation = corpus.converse(random, 5)
        messages = [] if conversation.system is None else [{"role": "system", "content": conversation.system}]
        for turn in conversation.turns:
            messages.append({"role": "user", "content": turn.user})
            messages += [] if turn.system is None else [{"role": "system", "content": turn.system}]
            messages.append({"role": "assistant", "content": " ".join(turn.sentences)})
        row = encoder.row(conversation, encoder.size(conversation))
        text = card.tokenizer.apply_chat_template(messages, tokenize=False)
        assert row.ids.tolist() == card.tokenizer.encode(text, add_special_tokens=False)
        assert set(np.unique(row.sides)) <= {-1, 0, 1}


def test_the_package_holds_what_the_model_needs_to_run_and_nothing_of_its_training() -> None:
    folder = ROOT / "drift_cli"
    kept = {path.name for path in (folder / "demo_model").iterdir() if path.name != "__pycache__"}
    assert kept == {
        *("__init__.py", "shape.py", "tokens.py"),
        *("model.safetensors", "tokenizer.json", "axis.safetensors"),
        "training.json",
        "MODEL.md",
    }
    assert [path for path in folder.rglob("*.py") if "tools.demo_model" in path.read_text(encoding="utf-8")] == []
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["drift_cli"], "force-include": {"data/transcripts": "drift_cli/data/transcripts"}}
