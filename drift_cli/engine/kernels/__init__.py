"""The kernels that slots run on: what differs between `torch` (any device, work done at once) and `triton` (CUDA graphs, compiled blocks), as one protocol.

Attention goes through `attend` of either, which stores the keys and values that a forward pass brings in the pages of their row, and reads the row's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, inference_mode  # not `import torch`: here that name is the package of torch kernels
from torch.nn.attention import SDPBackend, sdpa_kernel

from drift_cli.engine.pages import Pages

_REPEATABLE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""cuDNN's attention is not among them: on an H200 (torch 2.11, bfloat16) the same batch decoded four times in one process gave four different conversations
with it, and the same one with any of these."""


@contextmanager
def repeatable() -> Iterator[None]:
    """Run a network without gradients and with repeatable attention. Never held across a `yield` to a caller: both are settings of the whole thread."""
    with inference_mode(), sdpa_kernel(_REPEATABLE):
        yield


@dataclass(frozen=True)
class Batch:
    """The tokens of one forward pass: one of every row, or (with `bounds`) a chunk of one row."""

    rows: Tensor
    """(tokens,) int32: the row of each token."""
    places: Tensor
    """(tokens,) int32: the position of each token, -1 for one that does not count."""
    bounds: Tensor | None = None
    """(2,) int32: of a chunk, the position of its first token, and one past that of its last."""


@dataclass(frozen=True)
class Work:
    """Work that can be done again and again."""

    run: Callable[[], object]
    """Does it, or queues it on the device."""
    graph: Callable[[], None] | None = None
    """Where it is a CUDA graph, which needs the network no more: the work that was captured, so that what it reads stays alive."""


Uniforms = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Kernels(Protocol):
    """What slots need of a device."""

    pages: Pages
    """Which page holds which tokens. Its memory is the kernels' own."""
    ahead: int
    """Steps that are queued before the first of them is looked at."""
    grain: int
    """A chunk's tokens are padded to a multiple of this."""
    static: bool
    """Whether work is captured, so that no shape may depend on a number that is on the device."""

    def attending(self) -> AbstractContextManager[None]:
        """The network's attention goes to the pages within."""

    def batch(self, batch: Batch) -> AbstractContextManager[None]:
        """Forward passes within have these tokens."""

    def flush(self) -> None:
        """Have memory for all pages, and let the device know of changes of the table; before every pass whose rows have changed."""

    def compiled(self, *, dynamic: bool) -> AbstractContextManager[None]:
        """The network's blocks are compiled within, where that is done at all: `dynamic` for any number of tokens."""

    def capture(self, work: Callable[[], None], warm: int = 1) -> Work:
        """`work` made ready to be run again and again; run `warm` times before."""

    def fused(self, work: Uniforms) -> Uniforms:
        """`work` as one kernel, where there is a compiler."""

    def settle(self) -> None:
        """Forget what was written while work was captured."""

    def close(self) -> None:
        """Give memory back."""
