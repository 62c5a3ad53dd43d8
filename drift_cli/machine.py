"""The software and the device that turns are made with, as far as bits depend on them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from drift_cli import __version__
from drift_cli.store.epoch import Epoch, cpu_name
from drift_cli.store.manifest import Manifest

_NAMED = ("torch", "transformers", "tokenizers", "numpy")


def epoch_now(device: str, engine: str, batch: int, gpus: int) -> Epoch:
    """What the software and the device are now."""
    import torch

    versions = {"drift": __version__, "python": platform.python_version(), **{name: version(name) for name in _NAMED}}
    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name(torch.get_num_threads())
    return Epoch(versions, named if gpus == 1 else f"{gpus} × {named}", engine, batch)


def keep_threads(manifest: Manifest, device: str) -> str | None:
    """On a CPU, go on with as many threads as a run was made with so far: matrix products round differently with another number.

    Returns a sentence to show, None where nothing had to change. What OMP_NUM_THREADS says is left alone.
    """
    import torch

    known = manifest.threads
    if device != "cpu" or known is None or "OMP_NUM_THREADS" in os.environ or known == torch.get_num_threads():
        return None
    torch.set_num_threads(known)
    return (
        f"on {known} thread{'' if known == 1 else 's'}, as this run was begun, so that its bits stay the same (OMP_NUM_THREADS overrides)"
    )
