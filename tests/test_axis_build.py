"""`drift axis build`: finishes, goes on after a kill, and its files can be read, exported and imported."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli import drift
from test_kills import Zygote

from drift_cli.axis import Axis
from drift_cli.errors import UsageError
from drift_cli.measuring import personas as people
from drift_cli.measuring.torch_axes import import_torch
from drift_cli.models import describe
from drift_cli.models.axes import demo_axis

PEOPLE = """
questions = ["Who are you?", "What do you do in the evening?", "Can you help me with a letter?"]
[personas.default]
side = "assistant"
[personas.helper]
side = "assistant"
system = "You are a helpful assistant."
[personas.ghost]
side = "role"
system = "You are a ghost in an old house."
[personas.king]
side = "role"
system = "You are a king of a small island."
"""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def _line(model: str, personas: Path) -> list[str]:
    return ["axis", "build", "--model", model, "--name", "made", "--personas", str(personas), "--max-new-tokens", "12", "--batch", "2"]


@pytest.mark.parametrize("which", range(5))
def test_an_axis_is_built_on_any_architecture_and_a_killed_build_ends_with_the_same_axis(
    zygote: Zygote, tiny_models: dict[str, Path], tmp_path: Path, which: int
) -> None:
    model = ["demo", *map(str, tiny_models.values())][which]
    people_file = tmp_path / "people.toml"
    people_file.write_text(PEOPLE)
    drift(*_line(model, people_file))
    axis = Axis.load(Path("data/axes/made.safetensors"))
    assert axis.personas == ("default", "helper", "ghost", "king")
    assert axis.assistants == ("default", "helper")
    assert axis.means is not None
    assert axis.layers == tuple(range(describe(model).layers + 1))
    contrast = axis.means[:2].mean(0) - axis.means[2:].mean(0)
    assert np.allclose(axis.vectors, contrast / np.linalg.norm(contrast, axis=1, keepdims=True), atol=1e-5)
    folder = tmp_path / "killed"
    pid = zygote.start(folder, _line(model, people_file))
    while sum(path.stat().st_size > 0 for path in folder.rglob("0*.jsonl")) < 3:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait() == -signal.SIGKILL
    assert not (folder / "data").exists()
    zygote.start(folder, _line(model, people_file))
    assert zygote.wait() == 0, (folder / "err").read_text()
    assert Axis.load(folder / "data/axes/made.safetensors").digest == axis.digest


def test_what_is_exported_is_imported_again(tmp_path: Path) -> None:
    axis = demo_axis()
    drift("axis", "export", "demo", "-o", "personas.pt", "--kind", "personas")
    again = import_torch(Path("personas.pt"), name="again", assistants=axis.assistants, blocks=lambda: 6)
    assert again.layers == axis.layers
    assert np.allclose(again.vectors, axis.vectors, atol=1e-6)
    drift("axis", "export", "demo", "-o", "axis.pt", "--kind", "axis")
    bare = import_torch(Path("axis.pt"), name="bare", blocks=lambda: 6)
    assert bare.layers == axis.layers[1:]
    assert np.allclose(bare.at(3), axis.at(3), atol=1e-7)


def test_the_built_in_axis_was_built_from_personas_with_the_model_that_is_here() -> None:
    axis, own = demo_axis(), people.read(None)
    assert axis.revision == describe("demo").revision
    assert axis.personas_digest == own.digest
    assert axis.personas == tuple(persona.name for persona in own.personas)
    assert len(own.personas) >= 20
    assert len(own.questions) >= 18


def test_show_draws_the_layers_and_suggests_one(tmp_path: Path) -> None:
    shown = drift("axis", "show", "demo", "--json").json
    assert shown["suggested_layer"] in range(1, 7)
    assert "suggested: --layer" in drift("axis", "show", "demo").out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("questions = [", "is not TOML"),
        ('questions = ["a"]\n[personas.a]\nside = "assistant"', 'no persona with side = "role"'),
        ('questions = ["a", "a"]\n[personas.a]\nside = "assistant"\n[personas.b]\nside = "role"', "stands there twice"),
        ('questions = ["a"]\n[personas.a]\nside = "left"', "has side 'left'"),
        ('[personas.a]\nside = "role"\n[personas.b]\nside = "assistant"', "has no questions"),
    ],
)
def test_a_file_of_personas_that_is_wrong_is_refused_by_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        people.parse(text, "people.toml")
