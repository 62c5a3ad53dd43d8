"""The engines that the contract is asked of. On a machine without a GPU plain torch stands for the Triton kernels, and graphs do their work at once."""

from __future__ import annotations

from collections.abc import Callable

import plain_kernels
import pytest
import torch

from drift_cli.engine.contract import Engine, Incident
from drift_cli.engine.kernels.triton import backend as triton_backend
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import Slots, make_slots
from drift_cli.models import LoadedModel
from drift_cli.pool import MEAN, Pool
from drift_cli.spec import Sampling

KINDS = ("reference", "torch", "triton")
GPU = torch.cuda.is_available()
TOKENS, FILTERS = 10, Sampling(top_p=0.9)


class _On(SlotEngine):
    """Slots on one kind of kernels, whatever the device."""

    backend = "torch"

    def prepare(self, report: Callable[[Incident], None]) -> Slots:
        while self.slots is None:
            try:
                self.slots = self._made()
            except torch.OutOfMemoryError:
                self.halve(report)
        return self.slots

    def _made(self) -> Slots:
        asked = (self.model, self.layers, self.filters, self.max_new_tokens, self.batch)
        return make_slots(*asked, longest=self.longest, segmented=self.segmented, pool=self.pool, backend=self.backend)


class _OnTriton(_On):
    backend = "triton"


def engine(
    kind: str,
    model: LoadedModel,
    *,
    batch: int = 4,
    tokens: int = TOKENS,
    segmented: bool = False,
    filters: Sampling = FILTERS,
    pool: Pool = MEAN,
) -> Engine:
    """An engine that pools every layer."""
    layers = tuple(range(model.card.layers + 1))
    if kind == "reference":
        return ReferenceEngine(model, layers, filters, tokens, batch, pool)
    return {"torch": _On, "triton": _OnTriton}[kind](model, layers, filters, tokens, batch, 1024, segmented, pool)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Plain torch in place of Triton kernels, where there is no GPU."""
    if not GPU:
        patch.setattr(triton_backend, "_kernels", lambda: plain_kernels)
