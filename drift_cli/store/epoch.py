"""What turns are made with: software, device, engine. A run's manifest lists its epochs, and each turn names its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_CPU = re.compile(r"cpu \(([1-9][0-9]{0,3}) threads\)")


@dataclass(frozen=True)
class Epoch:
    """What turns were made with, as far as it may change while a run goes on."""

    versions: Mapping[str, str]
    device: str
    engine: str
    batch: int

    @property
    def threads(self) -> int | None:
        """Of a CPU that was computed on; None for other devices."""
        found = _CPU.fullmatch(self.device)
        return None if found is None else int(found[1])


def cpu_name(threads: int) -> str:
    """How an epoch names a CPU."""
    return f"cpu ({threads} threads)"
