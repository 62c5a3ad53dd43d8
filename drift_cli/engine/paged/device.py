"""Queued work: graphs and copies on a CUDA device. On the CPU the same calls do the work at once, so that what is built on them can be tested anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.kernels import repeatable


@dataclass(frozen=True)
class Graph:
    """Work that can be queued again and again at the cost of one launch."""

    work: Callable[[], None]
    graph: torch.cuda.CUDAGraph | None

    def replay(self) -> None:
        """Queue it."""
        if self.graph is not None:
            self.graph.replay()
        else:
            with repeatable():
                self.work()


def captured(work: Callable[[], None], device: torch.device, memory: Any, warm: int = 1) -> Graph:
    """`work` as a graph. Its memory is shared with all others of `memory`: nothing in it outlives a replay."""
    if device.type != "cuda":
        return Graph(work, None)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side), repeatable():
        for _ in range(warm):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with repeatable(), torch.cuda.graph(graph, pool=memory):
        work()
    return Graph(work, graph)


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
