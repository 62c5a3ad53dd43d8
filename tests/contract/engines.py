"""The engines that the contract is asked of. On a machine without a GPU plain torch stands for the Triton kernels, and graphs do their work at once."""

from __future__ import annotations

from collections.abc import Callable

import plain_kernels
import pytest
import torch
from drift_cli.engine.paged import network as paged_network
from drift_cli.engine.paged import slots as paged_slots
from drift_cli.engine.plain.slots import PlainSlots

from drift_cli.engine.contract import Engine, Incident
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import Slots
from drift_cli.models import LoadedModel
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
        if self.backend == "torch":
            return PlainSlots(self.model, self.layers, self.filters, self.batch)
        asked = (self.model, self.layers, self.filters, self.max_new_tokens, self.batch, self.longest)
        made = paged_slots.paged_slots(*asked, lambda incident: None, segmented=self.segmented)
        assert made is not None
        return made


class _OnTriton(_On):
    backend = "triton"


def engine(
    kind: str, model: LoadedModel, *, batch: int = 4, tokens: int = TOKENS, segmented: bool = False, filters: Sampling = FILTERS
) -> Engine:
    """An engine that pools every layer."""
    layers = tuple(range(model.card.layers + 1))
    if kind == "reference":
        return ReferenceEngine(model, layers, filters, tokens, batch)
    return {"torch": _On, "triton": _OnTriton}[kind](model, layers, filters, tokens, batch, 1024, segmented)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Plain torch in place of Triton kernels, where there is no GPU."""
    if not GPU:
        patch.setattr(paged_network, "_kernels", lambda: plain_kernels)
