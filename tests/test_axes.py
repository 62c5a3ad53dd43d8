"""Axes: import, files, layer conventions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from drift_cli.axis import Axis
from drift_cli.errors import DriftError, UsageError
from drift_cli.measuring.diagnostics import diagnose
from drift_cli.measuring.torch_axes import import_torch
from drift_cli.models.axes import demo_axis, find

PERSONAS = ("default", "assistant", "bard", "ghost", "oracle")


def _personas(*shape: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name in PERSONAS}


def test_persona_vectors_become_assistant_minus_others_with_unit_norm(tmp_path: Path) -> None:
    personas = _personas(8)
    torch.save(personas, tmp_path / "olmo_layer21.pt")
    axis = import_torch(tmp_path / "olmo_layer21.pt", name="a")
    expected = (personas["default"] + personas["assistant"]) / 2 - (personas["bard"] + personas["ghost"] + personas["oracle"]) / 3
    assert axis.layers == (21,)
    assert axis.assistants == ("default", "assistant")
    assert np.allclose(axis.at(21), (expected / expected.norm()).numpy(), atol=1e-6)
    assert abs(float(np.linalg.norm(axis.at(21))) - 1) < 1e-6


def test_layers_of_block_outputs_are_moved_up_by_one_and_it_is_recorded(tmp_path: Path) -> None:
    tensor = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    torch.save(tensor, tmp_path / "axis.pt")
    axis = import_torch(tmp_path / "axis.pt", name="a", convention="blocks")
    assert axis.layers == (1, 2, 3, 4, 5, 6)
    assert "1 added to every layer" in axis.source
    assert np.allclose(axis.at(4), (tensor[3] / tensor[3].norm()).numpy(), atol=1e-6)
    ours = import_torch(tmp_path / "axis.pt", name="a", convention="hidden-states")
    assert ours.layers == (0, 1, 2, 3, 4, 5)


def test_files_round_trip(tmp_path: Path) -> None:
    torch.save(_personas(3, 8), tmp_path / "p.pt")
    axis = import_torch(tmp_path / "p.pt", name="a", model="org/model", convention="hidden-states")
    axis.save(tmp_path / "a.safetensors")
    again = Axis.load(tmp_path / "a.safetensors")
    assert again.digest == axis.digest
    assert (again.name, again.layers, again.model, again.personas, again.assistants) == (
        "a",
        (0, 1, 2),
        "org/model",
        PERSONAS,
        ("default", "assistant"),
    )
    assert again.means is not None
    assert axis.means is not None
    assert np.array_equal(again.means, axis.means)


def test_a_changed_vector_is_found_out(tmp_path: Path) -> None:
    demo_axis().save(tmp_path / "a.safetensors")
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[header + 3] ^= 1  # the first number of the first tensor, `axis`
    (tmp_path / "a.safetensors").write_bytes(bytes(data))
    with pytest.raises(DriftError, match=r"digest does not match|not of unit norm"):
        Axis.load(tmp_path / "a.safetensors")


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "owned"),))  # type: ignore[return-value]

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DriftError, match="not a torch file of plain tensors"):
        import_torch(tmp_path / "evil.pt", name="a", layer=1)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(3), "b": torch.ones(4)}, "different shapes"),
        ({"a": torch.ones(3), "b": torch.ones(3)}, "no two sides"),
        ({"assistant": torch.ones(3), "b": torch.ones(3)}, "axis is zero"),
        ({"assistant": torch.ones(3), "b": torch.full((3,), float("nan"))}, "not finite"),
        ([1, 2, 3], "neither a tensor nor a dict"),
        ({"a": torch.ones(2, 2, 2)}, "neither a tensor nor a dict"),
    ],
)
def test_wrong_files_are_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x_layer3.pt")
    with pytest.raises(DriftError, match=message):
        import_torch(tmp_path / "x_layer3.pt", name="a")


def test_missing_names_and_layers_say_what_to_do(tmp_path: Path) -> None:
    torch.save(_personas(8), tmp_path / "x.pt")
    with pytest.raises(UsageError, match="--layer 21"):
        import_torch(tmp_path / "x.pt", name="a")
    with pytest.raises(UsageError, match="It has: default, assistant, bard"):
        import_torch(tmp_path / "x.pt", name="a", layer=3, assistants=("nobody",))
    with pytest.raises(DriftError, match="drift axis import"):
        find("nothing", tmp_path)
    with pytest.raises(UsageError, match=r"drift axis import x\.pt"):
        find("x.pt", tmp_path)
    with pytest.raises(UsageError, match="has no layer 9"):
        demo_axis().at(9)


def test_another_model_or_width_is_refused_by_name() -> None:
    axis = demo_axis()
    axis.check_model("demo", axis.width, 6)
    with pytest.raises(UsageError, match="built on demo, not on org/other"):
        axis.check_model("org/other", axis.width, 6)
    with pytest.raises(UsageError, match="has width 192, but demo has width 65"):
        axis.check_model("demo", 65, 6)
    with pytest.raises(UsageError, match="has layer 4, but demo has layers 0 to 3"):
        axis.check_model("demo", axis.width, 3)


def test_an_axis_that_is_not_of_unit_norm_cannot_be_made() -> None:
    with pytest.raises(DriftError, match="unit norm"):
        Axis("a", (0,), np.ones((1, 4), dtype=np.float32))


def test_real_vectors_give_the_axis_of_the_original_experiment(seed_data: Path) -> None:
    path = seed_data / "olmo3_Olmo-3-7B-Instruct_layer21.pt"
    axis = import_torch(path, name="olmo3")
    assert axis.layers == (21,)
    assert len(axis.personas) == 23
    assert set(axis.assistants) == {"default", "default_assistant", "default_llm", "default_helpful", "assistant"}
    raw = {name: vector.double().numpy() for name, vector in torch.load(path, weights_only=True).items()}
    ours = np.mean([raw[p] for p in axis.assistants], 0) - np.mean([v for n, v in raw.items() if n not in axis.assistants], 0)
    assert np.allclose(axis.at(21), ours / np.linalg.norm(ours), atol=1e-7)
    found = diagnose(axis, 21)
    assert found is not None
    centred = np.stack(list(raw.values())) - np.mean(list(raw.values()), 0)
    variances = np.linalg.eigvalsh(centred @ centred.T)[::-1]
    first = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, -1]
    assert found.cosine_with_pc1 == pytest.approx(abs(first @ axis.at(21)) / np.linalg.norm(first), abs=1e-5)
    assert found.pc1_variance == pytest.approx(variances[0] / variances.sum(), abs=1e-5)
    assert found.variance_explained == pytest.approx(((centred @ axis.at(21)) ** 2).sum() / (centred**2).sum(), abs=1e-6)
    assert {name for name, _ in found.ordering[:5]} <= {*axis.assistants, "evaluator", "analyst", "generalist", "rationalist"}
