"""Where a model runs, and in which dtype."""

from __future__ import annotations

from pathlib import Path

from drift_cli.errors import UsageError

DTYPES = ("auto", "bfloat16", "float16", "float32")


def choose_device(asked: str) -> str:
    """`auto` → the first CUDA device where there is one, else the CPU. Anything else is checked and returned."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"device {asked!r} is unknown", mend="Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {asked} was asked for, but torch sees no CUDA device", mend="Use --device cpu, or see `drift doctor`.")
    return asked


def choose_dtype(asked: str, device: str) -> str:
    """`auto` → bfloat16 on an accelerator, float32 on the CPU."""
    if asked not in DTYPES:
        raise UsageError(f"dtype {asked!r} is unknown", mend=f"Use one of {', '.join(DTYPES)}.")
    if asked != "auto":
        return asked
    return "float32" if device == "cpu" else "bfloat16"


def free_memory() -> int:
    """Bytes of the machine's own memory that may still be taken: what the kernel calls available, within the limit of this process's control group."""
    found = [_available(), *_left_in_group()]
    return min(found)


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not a Linux: nothing is known
        return 1 << 62
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def _left_in_group() -> list[int]:
    """What the control group leaves, where there is one with a limit (version 2, then version 1)."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            most, now = (root / limit).read_text().strip(), (root / used).read_text().strip()
        except OSError:
            continue
        return [max(0, int(most) - int(now))] if most != "max" else []
    return []
