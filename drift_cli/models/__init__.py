"""Finds a model, says what it is, and loads it: a hub id, a local folder, a GGUF file, an adapter's folder, or the built-in `demo` model."""

from drift_cli.models.builtin import DEMO
from drift_cli.models.card import ModelCard, describe, make_card
from drift_cli.models.devices import DTYPES, choose_device, choose_dtype, free_memory
from drift_cli.models.identity import sampled_digest, tree_digest
from drift_cli.models.network import auto_class, blocks, layer_configs, text_config
from drift_cli.models.residuals import Residuals
from drift_cli.models.weights import LoadedModel, count_parameters, load

__all__ = [
    "DEMO",
    "DTYPES",
    "LoadedModel",
    "ModelCard",
    "Residuals",
    "auto_class",
    "blocks",
    "choose_device",
    "choose_dtype",
    "count_parameters",
    "describe",
    "free_memory",
    "layer_configs",
    "load",
    "make_card",
    "sampled_digest",
    "text_config",
    "tree_digest",
]
