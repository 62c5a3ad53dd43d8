"""The built-in model: a small Olmo3 in which drift was planted, so that one can see whether an instrument finds it.

It was trained on conversations made by a generator whose parameters are the ground truth: each sentence of a reply is in an assistant's or in a character's
register, with a probability that pulling users raise and reminders lower. `MODEL.md` says what it is and is not; `tools/demo_model/` in the repository made it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from drift_cli.demo_model.shape import LAYERS

if TYPE_CHECKING:
    from transformers import Olmo3Config, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LAYERS", "NOTE", "Parts", "axis_path", "network", "parts"]

NOTE = "built-in, with planted drift: a positive control for the instrument, which says nothing about other models"
_FOLDER = Path(__file__).parent


class Parts(NamedTuple):
    """What the model's card is made from."""

    revision: str
    config: Olmo3Config
    tokenizer: PreTrainedTokenizerBase
    note: str


def parts() -> Parts:
    """What the model's card is made from."""
    from drift_cli.demo_model import shape, tokens

    tokenizer = tokens.wrap(tokens.load(_FOLDER / "tokenizer.json"))
    return Parts(_revision(), shape.config(len(tokenizer)), tokenizer, NOTE)


def network() -> PreTrainedModel:
    """The network, float32, on the CPU."""
    from safetensors.torch import load
    from transformers import Olmo3ForCausalLM

    from drift_cli.demo_model import shape

    weights = {name: tensor.float() for name, tensor in load((_FOLDER / "model.safetensors").read_bytes()).items()}
    made = Olmo3ForCausalLM(shape.config(len(weights["lm_head.weight"])))
    made.load_state_dict(weights)
    return made


def axis_path() -> Path:
    """The file of its axis, which `drift axis build --model demo` made."""
    return _FOLDER / "axis.safetensors"


@cache
def _revision() -> str:
    """Digest of weights, tokenizer and template."""
    from drift_cli.demo_model.shape import TEMPLATE

    digest = hashlib.sha256(TEMPLATE.encode())
    for name in ("model.safetensors", "tokenizer.json"):
        digest.update((_FOLDER / name).read_bytes())
    return digest.hexdigest()[:40]
