"""What a scheduler needs of slots, whatever they are made of: `plain` (any device, a token at a time) or `paged` (CUDA graphs over pages).

A slot is a row. What it holds is a function of the conversation and of its turn boundaries alone: `encode` puts a chunk behind the first `start` tokens,
replacing what decoding wrote there. Layers with a window keep only what a query may still come back for: nothing before `start - window + 1 - SLACK`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from drift_cli.engine.plan import Draw, Residual
from drift_cli.models import LoadedModel, layer_configs, text_config
from drift_cli.spec import Segment

__all__ = ["ATTENTION_KINDS", "PAGE", "SLACK", "Draw", "Layout", "NoRoom", "Residual", "Slots", "layout_from", "refusal"]

PAGE = 128
"""Tokens of a page, where slots have pages."""
ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention"})
"""What a configuration calls layers that attend to every token, or to those in a window."""
SLACK = 128
"""Tokens before the end of a prompt that a template may rewrite without the whole conversation being encoded anew."""


class NoRoom(Exception):
    """The slots' memory is used up: the row asked for cannot grow now."""


@dataclass(frozen=True)
class Layout:
    """What a network keeps of every token, layer by layer."""

    windows: tuple[int, ...]
    """Keys that a query of this layer sees, itself included; 0 where it sees all."""
    heads: tuple[int, ...]
    """Key and value heads."""
    widths: tuple[tuple[int, int], ...]
    """Width of a key and of a value head."""

    @property
    def window(self) -> int:
        """The narrowest window, 0 where every layer sees all."""
        return min((window for window in self.windows if window > 0), default=0)

    @property
    def uniform(self) -> bool:
        """Whether all layers have keys and values of one shape."""
        return len(set(self.heads)) == 1 and len({width for pair in self.widths for width in pair}) == 1

    def held(self, tokens: int, reply: int, slack: int = SLACK) -> int:
        """Numbers kept of a conversation of `tokens` tokens whose newest reply has up to `reply`; with neither reply nor slack, those a query looks at."""
        kept = [tokens if window == 0 else min(tokens, window + slack + reply) for window in self.windows]
        return sum(n * heads * sum(pair) for n, heads, pair in zip(kept, self.heads, self.widths, strict=True))

    def rewound(self, prompt: int, keep: int) -> int:
        """Where to encode from when the first `keep` tokens of a conversation stay as they were and the last reply began at `prompt`: `keep`, or 0
        where a windowed layer has already let go of what `keep` would look at. A function of lengths alone, so that a resumed process decides alike.
        """
        trimmed = self.window > 0 and prompt + 1 > self.window + SLACK
        return 0 if trimmed and keep < prompt - SLACK else keep


def layout_from(config: Any) -> Layout:
    """What a network of this configuration keeps of every token, as far as its configuration tells: for estimates, before there is a network."""
    layers = layer_configs(config)
    kinds = getattr(text_config(config), "layer_types", None) or [None] * len(layers)
    windows = tuple(_window(layer, kind) for layer, kind in zip(layers, kinds, strict=True))
    heads = tuple(_whole(getattr(layer, "num_key_value_heads", None)) or _queries(layer) for layer in layers)
    widths = tuple(_whole(getattr(layer, "head_dim", None)) or int(layer.hidden_size) // _queries(layer) for layer in layers)
    return Layout(windows, heads, tuple((width, width) for width in widths))


def _window(layer: Any, kind: str | None) -> int:
    """The window of a layer, 0 where it sees all. Where a configuration does not name its layers' kinds, a window is all layers', unless it is switched off."""
    windowed = getattr(layer, "use_sliding_window", True) if kind is None else kind == "sliding_attention"
    return _whole(getattr(layer, "sliding_window", None)) if windowed else 0


def _queries(layer: Any) -> int:
    return _whole(getattr(layer, "num_attention_heads", None)) or 1


def _whole(size: Any) -> int:
    """A size as a number: the largest where each layer has its own, 0 where there is none."""
    return max((int(each) for each in size), default=0) if isinstance(size, list | tuple) else int(size or 0)


class Slots(Protocol):
    """Rows of a cache, and what is done with them. Calls are in order: what a later one reads, an earlier one has written."""

    rows: int
    layers: tuple[int, ...]
    """Residual layers that `encode` pools."""
    layout: Layout

    def encode(
        self, row: int, ids: Sequence[int], start: int, counted: int, hold: int | None = None, segments: Sequence[Segment] = ()
    ) -> Residual | None:
        """Put a chunk behind a row's first `start` tokens; the mean residuals of its first `counted` tokens, None for 0.

        `hold` is the earliest position at which a following chunk may start, where that is before this chunk's end. `segments` are parts of the counted
        tokens: with them there are means of the answer, of the reasoning and of all counted tokens, without them one mean.

        Raises:
            NoRoom: the row cannot grow.
        """

    def begin(self, row: int, draw: Draw) -> None:
        """Draw the first token of a reply from the logits of the row's last chunk; `step` goes on with it."""

    def step(self) -> None:
        """One token for every row that has begun and not ended.

        Raises:
            NoRoom: a row cannot grow; none has moved.
        """

    def say(self, row: int, token: int) -> None:
        """Put another token in the place of the newest one drawn in a row; the next `step` goes on with it."""

    def newest(self, row: int) -> Tensor:
        """(vocabulary,) logits of a row's newest token: of its last step, or, before there is one, of the chunk encoded last."""

    def every_layer(self, row: int, ids: Sequence[int], start: int, counted: int) -> NDArray[np.float32]:
        """(layers + 1, width) float32: `encode`, and the mean residuals of the first `counted` tokens at every layer. Slower: for trials."""

    def ended(self) -> Iterable[int]:
        """Rows whose reply has ended, as far as is known; each is named until `begin` or `free`."""

    def said(self, row: int) -> list[int]:
        """The ids of a row's reply so far, as far as is known."""

    def free(self, row: int) -> None:
        """Forget a row."""

    def close(self) -> None:
        """Give memory back, and the network its own attention."""


def refusal(model: LoadedModel) -> str | None:
    """Why slots cannot run a model exactly, in words; None where no rule says so.

    Rules first that the configuration answers, then what the network's own attention and masks say (`structure`).
    """
    from drift_cli.engine.rotary import length_rule
    from drift_cli.engine.structure import disagreement

    return _of_configuration(model) or length_rule(model) or disagreement(model)


def _of_configuration(model: LoadedModel) -> str | None:
    network, config = model.network, text_config(model.card.config)
    parts = (network, network.get_decoder())
    if any(getattr(part, "_is_stateful", False) for part in parts):
        return "it keeps a recurrent state"
    if not any(getattr(part, "_supports_attention_backend", False) for part in parts):
        return "its attention is not open to other implementations"
    if getattr(config, "attn_logit_softcapping", None):
        return "it soft-caps its attention"
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS
    if kinds:
        return f"it has layers of kind {', '.join(sorted(kinds))}"
    if any(name.endswith("sinks") for name, _ in network.named_parameters()):
        return "it has attention sinks"
    return None
