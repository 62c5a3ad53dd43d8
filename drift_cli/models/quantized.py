"""Models whose weights were quantized: what kind it is, what it takes to load it, and whether it is unpacked.

Two ways, and which of them is said and recorded:

- *unpacked*: transformers turns the weights into ordinary ones while it loads them (FP8, MXFP4, compressed-tensors, Metal). Drift asks for that on every
  device, also where a GPU could compute with the packed weights: the kernels for that are downloaded code, differ from machine to machine, and round
  activations, so that the same run would give other numbers elsewhere. The result is an ordinary network in the run's dtype.
- *as they are*: the kind's own package computes with the packed weights (GPTQ, AWQ, bitsandbytes, HQQ, torchao …). Nothing of such a network is ever cast.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drift_cli.errors import DriftError, UsageError

ACCELERATE = ("accelerate", "accelerate")


@dataclass(frozen=True)
class _Kind:
    title: str
    packages: tuple[tuple[str, str], ...] = (ACCELERATE,)
    """Module that must be importable → what to install."""
    gpu: bool = False
    unpacked: bool = False
    refused: str | None = None
    """Why it cannot be loaded at all."""


def _needs(title: str, *packages: str, gpu: bool = False) -> _Kind:
    """A kind whose packages are given as `module` or `module=name to install`."""
    pairs = tuple((module, install or module) for module, _, install in (package.partition("=") for package in packages))
    return _Kind(title, (ACCELERATE, *pairs), gpu)


_KINDS: Mapping[str, _Kind] = {
    # From the `validate_environment` of transformers' quantizers.
    "fp8": _Kind("FP8", unpacked=True),
    "mxfp8": _Kind("MXFP8", unpacked=True),
    "mxfp4": _Kind("MXFP4", unpacked=True),
    "metal": _Kind("Metal", unpacked=True),
    "compressed-tensors": _Kind("compressed-tensors", (ACCELERATE, ("compressed_tensors", "compressed-tensors")), unpacked=True),
    "awq": _needs("AWQ", "gptqmodel"),
    "gptq": _needs("GPTQ", "optimum", "gptqmodel"),
    "bitsandbytes": _needs("bitsandbytes", "bitsandbytes"),
    "fbgemm_fp8": _needs("FBGEMM FP8", "fbgemm_gpu=fbgemm-gpu", gpu=True),
    "hqq": _needs("HQQ", "hqq", gpu=True),
    "torchao": _needs("torchao", "torchao"),
    "quanto": _needs("quanto", "optimum.quanto=optimum-quanto"),
    "aqlm": _needs("AQLM", "aqlm=aqlm[gpu,cpu]"),
    "vptq": _needs("VPTQ", "vptq", gpu=True),
    "higgs": _needs("HIGGS", "flute=flute-kernel", "fast_hadamard_transform", gpu=True),
    "spqr": _needs("SpQR", "spqr_quant=spqr_quant[gpu]", gpu=True),
    "eetq": _needs("EETQ", "kernels", gpu=True),
    "bitnet": _needs("BitNet"),
    "auto-round": _needs("AutoRound", "auto_round=auto-round"),
    "quark": _needs("Quark", "quark=amd-quark"),
    "fp_quant": _needs("FP-Quant", "fp_quant", gpu=True),
    "sinq": _needs("SINQ", "sinq"),
    "fouroversix": _needs("Four Over Six", "fouroversix"),
    # What transformers does not load.
    "mlx": _Kind("MLX", refused="it is made for Apple's MLX, which packs weights in a way that transformers does not read"),
    "nvfp4": _Kind("NVFP4", refused="transformers does not load weights that are stored so"),
    "modelopt": _Kind("NVIDIA ModelOpt", refused="transformers does not load weights that are stored so"),
    "exl2": _Kind("EXL2", refused="only ExLlama reads weights that are stored so"),
    "exl3": _Kind("EXL3", refused="only ExLlama reads weights that are stored so"),
}


@dataclass(frozen=True)
class Quantization:
    """How a model's weights are quantized."""

    method: str
    """As its configuration says: `gptq`."""
    text: str
    """For people and the manifest: `GPTQ, 4 bits`, `FP8, unpacked`."""
    unpacked: bool

    @property
    def kind(self) -> _Kind:
        """What is known of it; a kind that only transformers knows is tried as it is."""
        return _KINDS.get(self.method, _Kind(self.method))


def quantization_of(name: str, config: Mapping[str, Any]) -> Quantization | None:
    """The quantization that a configuration (as JSON) names; None where there is none. `DriftError` where it is a kind that cannot be loaded."""
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        text = config.get("text_config")
        found = text.get("quantization_config") if isinstance(text, dict) else None
    mlx = config.get("quantization")
    if isinstance(mlx, dict) or (isinstance(found, dict) and "quant_method" not in found and {"bits", "group_size"} <= set(found)):
        found = {**(mlx if isinstance(mlx, dict) else {}), **(found or {}), "quant_method": "mlx"}
    if not isinstance(found, dict):
        return None
    made = _named(name, found)
    if made.kind.refused is not None:
        raise DriftError(f"model {name} is quantized ({made.text}): {made.kind.refused}", mend=_ORIGINAL)
    return made


_ORIGINAL = "Use the original model, or one quantized in another way."


def _named(name: str, found: Mapping[str, Any]) -> Quantization:
    method = found.get("quant_method")
    if method is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = "bitsandbytes"
    if not isinstance(method, str):
        raise DriftError(f"model {name} is quantized in a way that its configuration does not name (quant_method)", mend=_ORIGINAL)
    method = (
        method.removeprefix("QuantizationMethod.")
        .lower()
        .replace("bitsandbytes_4bit", "bitsandbytes")
        .replace("bitsandbytes_8bit", "bitsandbytes")
    )
    kind = _KINDS.get(method, _Kind(method))
    bits = next((found[key] for key in ("bits", "w_bit", "nbits") if isinstance(found.get(key), int)), None)
    if method == "bitsandbytes":
        bits = 8 if found.get("load_in_8bit") else 4
    text = kind.title + (f", {bits} bits" if bits else "") + (", unpacked" if kind.unpacked else "")
    return Quantization(method, text, kind.unpacked)


def check_packages(name: str, quantization: Quantization) -> None:
    """Refuse a kind whose packages are not installed, or that this transformers does not know."""
    missing = [install for module, install in quantization.kind.packages if not _is_there(module)]
    if missing:
        quoted = " ".join(f"'{package}'" if "[" in package else package for package in missing)
        raise DriftError(
            f"model {name} is quantized ({quantization.text}); loading it takes {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed",
            mend=f"pip install {quoted}. Or use the original model.",
        )
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if not any(known == quantization.method or known.startswith(f"{quantization.method}_") for known in AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise DriftError(f"model {name} is quantized ({quantization.text}), which this transformers does not load", mend=_ORIGINAL)


def check_device(name: str, quantization: Quantization, device: str) -> None:
    """Refuse a kind that computes on GPUs only where the device is none."""
    if quantization.kind.gpu and not device.startswith("cuda"):
        raise UsageError(
            f"model {name} is quantized ({quantization.text}), which runs on GPUs only, and the device is {device}",
            mend="Use a machine with a GPU, or the original model.",
        )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
