"""Blocks compiled once a kind, and work captured as CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from drift_cli.engine.kernels import Work, repeatable
from drift_cli.models import LoadedModel, blocks

REPEATABLE: dict[str, str | int | bool | Callable[..., object]] = {"deterministic": True}
"""The compiler tries nothing out on the device: which of several kernels is fastest differs from process to process, and so would the order of sums."""


def captured(work: Callable[[], None], device: torch.device, memory: Any, warm: int) -> Work:
    """`work` as a graph. Its memory is shared with all others of `memory`: nothing in it outlives a replay."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side), repeatable():
        for _ in range(warm):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with repeatable(), torch.cuda.graph(graph, pool=memory):
        work()
    return Work(graph.replay, work)


@contextmanager
def compiled(model: LoadedModel, *, dynamic: bool) -> Iterator[None]:
    """The network's blocks are compiled within: once for each kind of block, not once for each; `dynamic` for any number of tokens."""
    # What was compiled for an engine of before counts towards a limit of torch's, beyond which blocks run as they are, in other bits. Its graphs stay.
    torch._dynamo.reset()
    found = blocks(model.network)
    kinds = {type(block): torch.compile(type(block).forward, dynamic=dynamic, fullgraph=True, options=REPEATABLE) for block in found}
    with _without_hooks(found):
        for block in found:
            block.forward = kinds[type(block)].__get__(block)
        try:
            yield
        finally:
            for block in found:
                del block.forward


@contextmanager
def _without_hooks(found: Sequence[torch.nn.Module]) -> Iterator[None]:
    """transformers leaves hooks on modules whose output it was once asked for. Those inside a block do nothing here, and do not compile."""
    held = [(module, module._forward_hooks) for block in found for module in block.modules() if module is not block]
    for module, _ in held:
        module._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, hooks in held:
            module._forward_hooks = hooks
