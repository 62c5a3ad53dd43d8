"""At which layer an axis is used: the one rule of `generate`, `measure`, reference lines and `axis show`.

The layer that is asked for; else the axis's only one; else the one at which its personas lie apart most clearly; else, for an axis of several layers that does
not know its personas, the layer 65 % of the way up.
"""

from __future__ import annotations

from dataclasses import dataclass

from drift_cli.axis import Axis
from drift_cli.measuring.diagnostics import suggested_layer

DEPTH = 0.65
"""Where an axis that suggests no layer is used: this share of the way up, as in the experiment of the preset olmo3-003b (layer 21 of 32)."""


@dataclass(frozen=True)
class Chosen:
    """A layer (`hidden_states` index), and why it is this one."""

    layer: int
    why: str
    """In words, as the manifest records it."""


def choose_layer(axis: Axis, asked: int | None, blocks: int) -> Chosen:
    """The layer at which `axis` is used with a model of `blocks` blocks.

    Raises:
        UsageError: the axis does not have the layer.
    """
    found = _choose(axis, asked, blocks)
    axis.at(found.layer)
    return found


def _choose(axis: Axis, asked: int | None, blocks: int) -> Chosen:
    if asked is not None:
        return Chosen(asked, "asked for")
    if len(axis.layers) == 1:
        return Chosen(axis.layers[0], f"the only layer of axis {axis.name}")
    suggested = suggested_layer(axis)
    if suggested is not None:
        return Chosen(suggested, f"suggested by axis {axis.name}")
    return Chosen(by_depth(blocks), f"{100 * DEPTH:.0f} % of the way up, as axis {axis.name} suggests no layer")


def said(axis: Axis) -> str:
    """At which layer an axis is used where nobody names one, in words, before it is known with which model."""
    if len(axis.layers) == 1 or suggested_layer(axis) is not None:
        found = _choose(axis, None, axis.layers[-1])
        return f"layer {found.layer}, {found.why.replace(f'axis {axis.name}', 'the axis')}"
    last = axis.layers[-1]
    return f"no layer suggested: {100 * DEPTH:.0f} % of the way up the model, which is layer {by_depth(last)} of {last}, unless --layer says otherwise"


def by_depth(blocks: int) -> int:
    """The layer where nothing says which."""
    return round(DEPTH * blocks)
