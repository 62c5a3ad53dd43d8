"""Copies between the host and a device. On a CUDA device they are queued behind the work that is there; on the CPU the same calls copy at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device that neither waits for its work nor is overtaken by it."""
    made = torch.from_numpy(np.ascontiguousarray(numbers))
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.clone()


@dataclass(frozen=True)
class Copy:
    """A tensor on its way to the host, behind the work that makes it."""

    tensor: Tensor
    there: torch.cuda.Event | None

    def ready(self) -> bool:
        """Whether it has arrived."""
        return self.there is None or bool(self.there.query())  # type: ignore[no-untyped-call]

    def numpy(self) -> NDArray[Any]:
        """Its numbers; waits for them."""
        if self.there is not None:
            self.there.synchronize()
        return np.asarray(self.tensor.numpy())


def to_host(tensor: Tensor) -> Copy:
    """Queue a copy to the host."""
    if tensor.device.type != "cuda":
        return Copy(tensor.clone(), None)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()
    return Copy(pinned, there)
