"""Which engine runs a model: `slots` where it is exact, `reference` where it is not, and why."""

from __future__ import annotations

from itertools import pairwise

import torch

from drift_cli.engine.attention import forward, installed
from drift_cli.engine.contract import Engine
from drift_cli.engine.kernels import repeatable
from drift_cli.engine.plain.attention import ATTENTION, Keeper, put
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.slots import refusal
from drift_cli.errors import DriftError, UsageError
from drift_cli.models import LoadedModel
from drift_cli.spec import Sampling

_TRIAL = 48
"""Tokens of the conversation on which slots and a plain forward are compared before slots are trusted with a model."""
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
"""Largest difference of logits allowed in that trial, as a share of their standard deviation: rounding is well below, another formula well above."""


ROWS = {"cuda": 48, "cpu": 16}
"""Slots where no number is asked for: on a GPU as many as three conditions of 16 samples have, since a step's weights are read once for all of them."""


def rows(asked: int | None, device: str) -> int:
    """How many rollouts to generate together. Never what happens to be free: equal bits need equal rows."""
    return ROWS.get(device.partition(":")[0], 8) if asked is None else asked


_REFUSALS = (DriftError, TypeError, AttributeError, LookupError, ValueError, RuntimeError)
"""What a network that was not written for such a cache or attention may raise; any of them means that slots are not for it."""


def choose(
    asked: str,
    model: LoadedModel,
    *,
    layers: tuple[int, ...],
    filters: Sampling,
    max_new_tokens: int,
    batch: int,
    longest: int | None = None,
    segmented: bool = False,
) -> tuple[Engine, str | None]:
    """The engine (one of `contract.ENGINES`) for a model, and a sentence where the choice is not what `auto` hopes for.

    `segmented` says that replies may have segments.

    Raises:
        UsageError: `slots` was asked for and cannot run this model exactly.
    """
    reason = None if asked == "reference" else refusal(model) or _disagreement(model)
    if asked == "slots" and reason is not None:
        raise UsageError(f"the slots engine cannot run {model.card.name}: {reason}", mend="Use --engine reference (or auto).")
    if asked == "reference" or reason is not None:
        said = None if reason is None else f"the slots engine cannot run {model.card.name} ({reason}): using the slower reference engine"
        return ReferenceEngine(model, layers, filters, max_new_tokens, batch), said
    return SlotEngine(model, layers, filters, max_new_tokens, batch, longest, segmented), None


def _disagreement(model: LoadedModel) -> str | None:
    """Run one conversation through slots, as chunks and as single tokens, and through a plain forward; say where they differ."""
    vocabulary = int(model.card.config.get_text_config().vocab_size)
    ids = torch.randint(0, vocabulary, (1, _TRIAL), generator=torch.Generator().manual_seed(0)).to(model.device)
    with repeatable():
        plain = model.network(input_ids=ids, use_cache=False).logits[0].float()
    try:
        ours = _through_slots(model, ids).float()
    except _REFUSALS as error:
        return f"its network does not take them: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    spread = plain.std(-1).mean()
    worst = (ours - torch.cat([plain, plain])).abs().max() / spread
    if not bool(torch.isfinite(worst)) or float(worst) > _TOLERANCE[model.dtype]:
        return f"its logits differ from a plain forward's by {float(worst):.2g} standard deviations"
    return None


def _through_slots(model: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits (2 × tokens, vocabulary) of the same tokens as one chunk, and in pieces."""
    keeper = Keeper()
    with installed(model, ATTENTION, keeper.attend):
        return torch.cat([put(model, keeper, 0, 0, ids).logits[0], _in_pieces(model, keeper, ids)])


def _in_pieces(model: LoadedModel, keeper: Keeper, ids: torch.Tensor) -> torch.Tensor:
    """Logits (tokens, vocabulary) of the same tokens as a chunk, single tokens and another chunk on one slot."""
    bounds = [0, 20, 21, 22, 23, 24, _TRIAL]
    return torch.cat([_piece(model, keeper, ids[:, a:b], a) for a, b in pairwise(bounds)])


def _piece(model: LoadedModel, keeper: Keeper, ids: torch.Tensor, start: int) -> torch.Tensor:
    if ids.shape[1] > 1:
        return put(model, keeper, 0, start, ids).logits[0]  # type: ignore[no-any-return]
    keeper.step([start], [True])
    return forward(model, ids, torch.tensor([[start]], device=ids.device)).logits[0]  # type: ignore[no-any-return]
