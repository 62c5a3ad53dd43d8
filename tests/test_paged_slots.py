"""Paged slots against plain ones. On a machine without a GPU the kernels are replaced by plain torch, and graphs do their work at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import plain_kernels
import pytest
import tiny
import torch
from jobs import USERS, jobs, never, run, silent

from drift_cli import models
from drift_cli.engine import paged_network, paged_slots
from drift_cli.engine.contract import Incident, Job, Reply
from drift_cli.engine.pages import Pages
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import Slots
from drift_cli.models import LoadedModel
from drift_cli.spec import Rollout, Sampling

GPU = torch.cuda.is_available()
TOKENS = 12
ARCHITECTURES = list(tiny.ARCHITECTURES)
Key = tuple[Rollout, int]


@pytest.fixture(scope="module")
def models_here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    root = tmp_path_factory.mktemp("paged")
    device = "cuda" if GPU else "cpu"
    return {name: models.load(models.describe(str(tiny.save(name, root / name))), dtype="float32", device=device) for name in ARCHITECTURES}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not GPU:
        monkeypatch.setattr(paged_network, "_kernels", lambda: plain_kernels)
    yield


class Paged(SlotEngine):
    """Slots with pages whatever the device."""

    counted: int | None = None

    def prepare(self, report: object) -> Slots:
        if self.slots is None:
            self.slots = paged_slots.paged_slots(
                self.model, self.layers, self.filters, self.max_new_tokens, self.batch, self.longest, lambda incident: None
            )
        assert self.slots is not None
        return self.slots


def _engine(kind: type[SlotEngine], model: LoadedModel, *, batch: int = 4, tokens: int = TOKENS) -> SlotEngine:
    return kind(model, tuple(range(model.card.layers + 1)), Sampling(top_p=0.9), tokens, batch, 1024)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_paged_slots_give_the_plain_slots_tokens_and_residuals(name: str, models_here: dict[str, LoadedModel]) -> None:
    model = models_here[name]
    plain, paged = run(_engine(SlotEngine, model), jobs(model)), run(_engine(Paged, model), jobs(model))
    assert {key: reply.ids for key, reply in paged.items()} == {key: reply.ids for key, reply in plain.items()}
    for key, reply in plain.items():
        assert (paged[key].prompt, paged[key].text, paged[key].finish) == (reply.prompt, reply.text, reply.finish)
        if reply.residual is None:
            assert paged[key].residual is None
            continue
        error = np.linalg.norm(paged[key].residual - reply.residual, axis=1) / np.linalg.norm(reply.residual, axis=1)
        assert error.max() < 1e-4
