"""Runs of a model that thinks, with random weights that now and then write the tokens around a thought: history loses its reasoning at every turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from test_session import go
from test_template_end import after
from workers import Place, make

from drift_cli import models
from drift_cli.chat import scripted
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.running.experiment import reopen, settings_of

SPLIT = tiny.OLMO.replace("m['content'] }}", "m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}")
BEGUN = SPLIT.replace("assistant{{ '\n' }}", "assistant\n<think>{{ '\n' }}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny-thinker"
    return str(tiny.save("olmo3", folder, template=BEGUN, added=("<think>", "</think>")))


def prepared(folder: Path, model: str) -> Place:
    folder.parent.mkdir(exist_ok=True)
    script = folder.parent / "script.json"
    script.write_text(json.dumps({"users": ["hello there", "tell me more", "who are you"]}))
    return make(folder, "--transcript", str(script), "--model", model, "--samples", "4", "--max-new-tokens", "40")


@pytest.mark.parametrize("kind", [SlotEngine, ReferenceEngine])
def test_an_interrupted_run_has_the_bytes_and_the_prompts_of_an_uninterrupted_one(
    kind: type[SlotEngine] | type[ReferenceEngine], model: str, tmp_path: Path
) -> None:
    whole, broken = prepared(tmp_path / "whole", model), prepared(tmp_path / "broken", model)
    assert not go(whole.run, lambda: False, kind).interrupted
    interrupted = 0
    while not broken.complete:
        interrupted += go(broken.run, after(110), kind).interrupted
    assert interrupted > 1
    assert broken.files() == whole.files()
    answered = silent = 0
    chat = reopen(whole.run, settings_of(whole.run.manifest)).chat
    ends = chat.end_ids(models.describe(model).end_ids)
    for state in whole.run.states():
        users = whole.run.manifest.transcripts[state.rollout.cell.transcript].users
        talk = scripted(chat, users, whole.run.manifest.conditions[state.rollout.cell.condition], ends)
        for turn in whole.run.record(state.rollout).turns:
            assert turn.ids is not None
            assert turn.text == talk.parts(turn.ids).answer
            assert talk.parts(turn.ids).segments != ()
            answered, silent = answered + bool(turn.text), silent + (not turn.text)
            talk = talk.after(turn.ids)
        history = chat.tokenizer.decode(talk.past[-1].prompt)
        assert history.count("<think>") == 1  # that of the generation prompt: what was thought before is gone
        assert "</think>" not in history
    assert answered
    assert silent
