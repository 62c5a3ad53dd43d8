"""The kernels that engines may use: those that give the same bits every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_REPEATABLE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""cuDNN's attention is not among them: on an H200 (torch 2.11, bfloat16) the same batch decoded four times in one process gave four different conversations
with it, and the same one with any of these."""


@contextmanager
def repeatable() -> Iterator[None]:
    """Run a network without gradients and with repeatable attention. Never held across a `yield` to a caller: both are settings of the whole thread."""
    with torch.inference_mode(), sdpa_kernel(_REPEATABLE):
        yield
