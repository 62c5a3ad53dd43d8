"""Models that one device does not hold: spread by transformers, run by the reference engine. Here a disk stands in for the second GPU."""

from __future__ import annotations

from pathlib import Path

import jobs
import pytest

from drift_cli import models
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.errors import UsageError
from drift_cli.models import LoadedModel
from drift_cli.running.loading import engine_for
from drift_cli.settings.settings import EngineChoice
from drift_cli.spec import Sampling


def engine(model: LoadedModel) -> ReferenceEngine:
    return ReferenceEngine(model, (0, 2, model.card.layers), Sampling(top_p=0.95), 8, 4)


@pytest.mark.parametrize("name", ["llama", "olmo3", "gemma"])
def test_a_spread_model_says_what_it_says_in_one_piece(
    name: str, tiny_models: dict[str, Path], loaded: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    placed |= {f"model.layers.{place}": "disk" if place else "cpu" for place in range(loaded[name].card.layers)}
    monkeypatch.setattr(models.weights, "_spread", lambda gpus: {"device_map": placed, "offload_folder": str(tmp_path)})
    spread = models.load(models.describe(str(tiny_models[name])), dtype="float32", device="cpu", gpus=2)
    assert {parameter.device.type for parameter in spread.network.parameters()} == {"cpu", "meta"}  # it was spread indeed
    assert spread.device.type == "cpu"
    assert jobs.same_bits(jobs.run(engine(loaded[name]), jobs.jobs(loaded[name])), jobs.run(engine(spread), jobs.jobs(spread)))


def test_more_gpus_than_there_are_are_refused(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="64 GPUs were asked for, torch sees"):
        models.load(models.describe(str(tiny_models["llama"])), dtype="float32", device="cpu", gpus=64)


def test_a_spread_model_runs_on_the_reference_engine_and_that_is_said() -> None:
    said: list[str] = []
    assert engine_for(EngineChoice.AUTO, 2, said.append) is EngineChoice.REFERENCE
    assert "spread over 2 GPUs: using the slower reference engine" in said[0]
    with pytest.raises(UsageError, match="slots engine cannot run"):
        engine_for(EngineChoice.SLOTS, 2, said.append)
