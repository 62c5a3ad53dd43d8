"""Rotary position embeddings whose frequencies depend on how long the conversation is.

With longrope, a forward pass in which a position lies beyond the length of the original training takes other frequencies for all of its tokens. Keys that
were cached before keep the frequencies of their own pass, so that a conversation through a cache is not what one pass over the whole of it gives. With
dynamic scaling the frequencies change with every further token. Other kinds depend on positions alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drift_cli.models import LoadedModel, ModelCard, text_config

_FIXED = frozenset({"default", "linear", "llama3", "yarn", "proportional", "axial"})
"""Kinds whose frequencies are the same at every length."""
_BY_LENGTH = frozenset({"longrope", "dynamic"})


def length_rule(model: LoadedModel) -> str | None:
    """Why a model's rotary embedding is not for slots, in words; None where its frequencies are the same at every length that fits the context."""
    unknown = sorted(kind for kind, _ in _kinds(model.card) if kind not in _FIXED | _BY_LENGTH)
    if unknown:
        return f"its rotary embedding is of kind {unknown[0]}, which slots do not know"
    limit = threshold(model)
    return None if limit is None else f"its rotary embedding is another one in conversations of more than {limit} tokens"


def threshold(model: LoadedModel) -> int | None:
    """The longest conversation, in tokens, whose frequencies are those of short ones; None where all that fit the context have the same."""
    return length_threshold(model.card)


def length_threshold(card: ModelCard) -> int | None:
    """`threshold`, as far as a model's configuration tells: before its weights are read."""
    limits = [_limit(card, kind, values) for kind, values in _kinds(card) if kind in _BY_LENGTH]
    return min((limit for limit in limits if limit < card.context), default=None)


def ends_with_context(model: LoadedModel) -> bool:
    """Whether positions beyond the context are not to be given to a model: it has a table of positions, or its frequencies change there."""
    kinds = [kind for kind, _ in _kinds(model.card)]
    return not kinds or "dynamic" in kinds


def settles(model: LoadedModel) -> bool:
    """Whether the frequencies stay as they are in all conversations beyond the threshold."""
    return not any(kind == "dynamic" for kind, _ in _kinds(model.card))


def _limit(card: ModelCard, kind: str, values: dict[str, Any]) -> int:
    config = text_config(card.config)
    longest = int(getattr(config, "max_position_embeddings", 0) or card.context)
    if kind == "dynamic":
        return longest
    return int(values.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None) or longest)


def _kinds(card: ModelCard) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each rotary embedding of the text part: its kind, and what the configuration says of it."""
    found = getattr(text_config(card.config), "rope_parameters", None)
    if not isinstance(found, dict):
        return
    nested = [values for values in found.values() if isinstance(values, dict)]
    for values in nested or [found]:
        yield str(values.get("rope_type") or "default"), values
