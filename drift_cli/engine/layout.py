"""What a network keeps of every token, and the sizes that all slots share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drift_cli.models import layer_configs, text_config

PAGE = 128
"""Tokens of a page."""
SLACK = 128
"""Tokens before the end of a prompt that a template may rewrite without the whole conversation being encoded anew."""


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
