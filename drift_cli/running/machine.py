"""The software and the device that turns are made with, as far as bits depend on them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from drift_cli import __version__
from drift_cli.store.epoch import Epoch, cpu_name
from drift_cli.store.manifest import Manifest

LOADING = "2"
"""How weights get into memory, where bits depend on it: in half precision. 2: as transformers loads them, rotary frequencies in float32.
Earlier versions rounded those to the run's dtype as well, and recorded nothing."""
SLOTS = "2"
"""How slots round on a CPU. 2: pages of 128 tokens, and chunks in pieces of 512. Earlier versions had pages of 64 and chunks in one, and recorded nothing."""
_NAMED = ("torch", "transformers", "tokenizers", "numpy")


def epoch_now(device: str, engine: str, batch: int, gpus: int, dtype: str = "float32") -> Epoch:
    """What the software and the device are now, for a run in `dtype`."""
    import torch

    versions = {"drift": __version__, "python": platform.python_version(), **{name: version(name) for name in _NAMED}}
    if dtype != "float32":
        versions["loading"] = LOADING
    if engine == "slots" and not device.startswith("cuda"):
        versions["slots"] = SLOTS
    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name(torch.get_num_threads())
    return Epoch(versions, named if gpus == 1 else f"{gpus} × {named}", engine, batch)


def loaded_otherwise(manifest: Manifest) -> str | None:
    """A sentence on turns that were made with weights loaded in another way; None where there are none."""
    if manifest.spec.dtype == "float32" or all(epoch.versions.get("loading") == LOADING for epoch in manifest.epochs):
        return None
    return (
        f"turns that an earlier version made of this run had the rotary frequencies rounded to {manifest.spec.dtype}, which was wrong: "
        "those made from now on do not, and are not quite comparable. A new run (another --name) makes all of them alike"
    )


def rounded_otherwise(manifest: Manifest) -> str | None:
    """A sentence on turns that slots of an earlier version made on a CPU; None where there are none."""
    slots = [epoch for epoch in manifest.epochs if epoch.engine == "slots" and epoch.threads is not None]
    if all(epoch.versions.get("slots") == SLOTS for epoch in slots):
        return None
    return "an earlier version made turns of this run, whose slots rounded otherwise on a CPU: numbers may differ in their last digits from now on"


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
