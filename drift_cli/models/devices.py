"""Where a model runs, and in which dtype."""

from __future__ import annotations

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
