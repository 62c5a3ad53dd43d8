"""Models that come with drift, by name: each is a package with `parts()`, `network()` and `axis_path()`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drift_cli.models.card import ModelCard

DEMO = "demo"
BUILT_IN = {DEMO: "drift_cli.demo_model"}
"""Name → package. What is not asked for is not imported."""


def card(name: str) -> ModelCard:
    """The card of a built-in model."""
    from transformers import GenerationConfig

    from drift_cli.models.card import make_card

    parts = _package(name).parts()
    generation = GenerationConfig(eos_token_id=parts.config.eos_token_id, do_sample=True)
    return make_card(name, parts.revision, parts.config, parts.tokenizer, generation, note=parts.note)


def network(name: str) -> PreTrainedModel:
    """Its network, float32, on the CPU."""
    made: PreTrainedModel = _package(name).network()
    return made


def axis_path(name: str) -> Path:
    """The file of its axis."""
    path: Path = _package(name).axis_path()
    return path


def _package(name: str) -> Any:
    return import_module(BUILT_IN[name])
