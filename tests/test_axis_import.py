"""What comes in as an axis: layers are told apart or asked for, never guessed; and what cannot be read is refused in drift's own words."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli import drift
from made_axes import made_axis, put

from drift_cli.axis import Axis
from drift_cli.errors import DriftError, UsageError
from drift_cli.measuring.torch_axes import import_torch

BLOCKS = 3  # of tiny-llama
WIDTH = 32


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))


def bare(count: int) -> Any:
    return rows(count)


def by_persona(count: int) -> Any:
    return {"assistant": rows(count), "bard": -rows(count)}


@pytest.mark.parametrize("kind", [bare, by_persona])
@pytest.mark.parametrize(("count", "first"), [(BLOCKS + 1, 0), (BLOCKS, 1)], ids=["hidden states", "blocks"])
def test_a_known_model_tells_how_layers_are_numbered(kind: Any, count: int, first: int, tiny_models: dict[str, Path]) -> None:
    torch.save(kind(count), "vectors.pt")
    drift("axis", "import", "vectors.pt", "--name", "x", "--model", str(tiny_models["llama"]))
    axis = Axis.load(Path("data/axes/x.safetensors"))
    assert axis.layers == tuple(range(first, first + count))
    given = rows(count).double().numpy()
    for row in range(count):
        assert axis.at(row + first) == pytest.approx(given[row] / np.linalg.norm(given[row]), abs=1e-6)


@pytest.mark.parametrize("kind", [bare, by_persona])
@pytest.mark.parametrize("count", [BLOCKS - 1, BLOCKS + 2])
def test_rows_that_fit_neither_numbering_of_the_model_are_refused(kind: Any, count: int, tiny_models: dict[str, Path]) -> None:
    torch.save(kind(count), "vectors.pt")
    refused = drift("axis", "import", "vectors.pt", "--name", "x", "--model", str(tiny_models["llama"]), code=2).err
    assert f"has {count} rows, and the model, which has 3 blocks, asks for 4 (hidden-states) or 3 (blocks)" in refused
    assert not Path("data/axes").exists()


@pytest.mark.parametrize("kind", [bare, by_persona])
@pytest.mark.parametrize("count", [3, 4, 33])
def test_without_a_model_or_a_convention_several_rows_are_refused(kind: Any, count: int) -> None:
    torch.save(kind(count), "vectors.pt")
    refused = drift("axis", "import", "vectors.pt", "--name", "x", code=2).err
    assert f"vectors.pt has {count} rows, and nothing says whether the first is the embeddings" in refused
    assert "--model" in refused
    assert "--convention hidden-states or --convention blocks" in refused
    assert not Path("data/axes").exists()


@pytest.mark.parametrize("kind", [bare, by_persona])
@pytest.mark.parametrize(("convention", "first"), [("hidden-states", 0), ("blocks", 1), ("block-outputs", 1)])
def test_a_convention_that_is_said_is_taken(kind: Any, convention: str, first: int) -> None:
    torch.save(kind(5), "vectors.pt")
    drift("axis", "import", "vectors.pt", "--name", "x", "--convention", convention)
    assert Axis.load(Path("data/axes/x.safetensors")).layers == tuple(range(first, first + 5))


@pytest.mark.parametrize(("convention", "count"), [("hidden-states", BLOCKS), ("blocks", BLOCKS + 1)])
def test_a_convention_that_contradicts_the_model_is_refused(convention: str, count: int, tiny_models: dict[str, Path]) -> None:
    torch.save(bare(count), "vectors.pt")
    line = ("axis", "import", "vectors.pt", "--name", "x", "--convention", convention, "--model", str(tiny_models["llama"]))
    assert f"({convention})" in drift(*line, code=2).err


def test_a_model_that_cannot_be_asked_is_named_and_nothing_is_guessed() -> None:
    torch.save(bare(4), "vectors.pt")
    refused = drift("axis", "import", "vectors.pt", "--name", "x", "--model", "./absent", code=2).err
    assert "the number of blocks of ./absent is not known here" in refused
    assert "--convention" in refused


def test_an_axis_that_was_built_on_the_model_tells_its_blocks() -> None:
    put(replace(made_axis("built", 4, 2, model="org/far-away"), personas_digest="0" * 64))
    put(made_axis("imported", 2, 1, model="org/elsewhere"))
    torch.save(bare(4), "vectors.pt")
    said = drift("axis", "import", "vectors.pt", "--name", "x", "--model", "org/far-away").err
    assert "org/far-away has 4 blocks, as axis built tells" in said
    assert Axis.load(Path("data/axes/x.safetensors")).layers == (1, 2, 3, 4)
    torch.save(bare(3), "vectors.pt")
    assert "nothing says" in drift("axis", "import", "vectors.pt", "--name", "y", "--model", "org/elsewhere", code=2).err


def test_a_layer_says_nothing_of_a_file_with_a_row_to_each() -> None:
    torch.save(bare(4), "vectors.pt")
    line = ("axis", "import", "vectors.pt", "--name", "x", "--convention", "blocks", "--layer", "2")
    assert "--layer 2 says nothing of them" in drift(*line, code=2).err


def test_single_vectors_keep_their_layer_and_a_bare_one_has_to_say_how_it_is_counted() -> None:
    torch.save({"assistant": rows(1)[0], "bard": -rows(1)[0]}, "people_layer2.pt")
    assert import_torch(Path("people_layer2.pt"), name="x").layers == (2,)
    assert import_torch(Path("people_layer2.pt"), name="x", convention="blocks").layers == (3,)
    torch.save(rows(1)[0], "one_layer2.pt")
    with pytest.raises(UsageError, match="nothing says how its layer is counted"):
        import_torch(Path("one_layer2.pt"), name="x")
    assert import_torch(Path("one_layer2.pt"), name="x", convention="hidden-states").layers == (2,)
    assert import_torch(Path("one_layer2.pt"), name="x", convention="blocks", layer=7).layers == (8,)


def test_an_unknown_convention_is_refused_with_those_there_are() -> None:
    torch.save(bare(4), "vectors.pt")
    refused = drift("axis", "import", "vectors.pt", "--convention", "block", code=2).err
    assert "Did you mean 'blocks'? Use hidden-states or blocks." in refused


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["module", "number", "pickle", "text", "nothing"])
def test_a_file_that_is_no_tensor_is_refused_without_torchs_advice(kind: str) -> None:
    path = Path("bad_layer3.pt")
    if kind == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "number":
        torch.save({"a": np.float64(3)}, path)
    else:
        path.write_bytes({"pickle": pickle.dumps(Evil()), "text": b"hello", "nothing": b""}[kind])
    with pytest.raises(DriftError) as refused:
        import_torch(path, name="x")
    said = str(refused.value)
    assert "bad_layer3.pt is not a torch file of plain tensors" in said
    for advice in ("weights_only", "Weights only", "trust", "pytorch.org", "file an issue", "\x1b"):
        assert advice not in said
    if kind == "module":
        assert "it holds torch.nn.modules.linear.Linear" in said


def test_the_list_of_axes_says_what_each_is_and_a_damaged_one_hides_no_other() -> None:
    put(made_axis("mine", 4, 2, model="org/some-model"))
    Path("data/axes/broken.safetensors").write_bytes(b"nothing")
    listed = {row["name"]: row for row in drift("axis", "show", "--json").json}
    assert list(listed) == ["demo", "broken", "mine"]
    mine = listed["mine"]
    assert (mine["model"], mine["layers"], mine["width"], mine["suggested_layer"]) == ("org/some-model", "0 to 4", 32, 2)
    assert len(mine["date"]) == 10
    assert (listed["demo"]["layers"], listed["demo"]["width"], listed["demo"]["date"]) == ("0 to 6", 192, "built in")
    assert listed["broken"]["layers"].startswith("damaged: ")
    table = drift("axis", "show").out
    assert "suggested layer" in table
    assert "org/some-model" in table


def test_an_axis_that_is_not_there_is_told_from_one_that_is_spelled_wrong() -> None:
    put(made_axis("assistant-axis", 4, 2))
    assert "Did you mean 'assistant-axis'?" in drift("axis", "show", "asistant-axis", code=1).err
    assert "Did you mean" not in drift("axis", "show", "something", code=1).err
