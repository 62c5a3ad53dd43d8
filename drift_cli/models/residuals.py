"""What a network's hidden states are: looked at on a few tokens, once it is loaded.

Layer l is `hidden_states[l]`: 0 is the embeddings, l the output of block l - 1, the last one usually after the final norm. What a network gives instead is
found here by running it, and said, or refused by name: no number is ever made of states whose meaning is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from drift_cli.errors import DriftError
from drift_cli.models.network import blocks, text_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_TOKENS = 8
"""Tokens on which a network is looked at."""
_ROUNDING = 0.01
"""How far apart, as a share of its size, one block's output may be where only rounding differs: in bfloat16 it is half of this."""
_RAISED = (TypeError, ValueError, AttributeError, LookupError, AssertionError, NotImplementedError, RuntimeError)
"""What a network may raise that cannot be run on text alone; want of memory is none of it."""


@dataclass(frozen=True)
class Residuals:
    """What a network's hidden states are."""

    normed: bool = True
    """Whether the last one has been through the final norm, or there is no such norm."""
    stream: int | None = None
    """Of several streams that run side by side, the one that blocks work on, which is the one measured; None where there is one."""

    places: tuple[int, ...] | None = None
    """Of each layer, which of the hidden states it is, where a text does not go through all blocks: what is passed over adds nothing."""

    @property
    def remark(self) -> str | None:
        """What is unlike most networks, in words; None where nothing is."""
        said = [] if self.normed else ["the last layer's residuals are taken before the final norm, as this model's hidden states are"]
        if self.stream is not None:
            said.append(f"this model has several residual streams: measured is stream {self.stream}, on which its blocks work")
        if self.places is not None:
            over = [layer for layer, (before, after) in enumerate(pairwise(self.places), 1) if before == after]
            said.append(
                f"a text does not go through this model's blocks before layers {', '.join(map(str, over))}, whose residuals are those before"
            )
        return "; ".join(said) or None

    def of(self, states: Sequence[Tensor] | None) -> Sequence[Tensor]:
        """The measured (rows, tokens, width) states of each layer, from those that the network gave. Raises `DriftError` where it gave none."""
        if states is None:
            raise DriftError("the network gives no hidden states for a conversation of this length", mend="Give another model.")
        if self.places is not None:
            states = [states[place] for place in self.places]
        return states if self.stream is None else [state[self.stream] for state in states]


def look(network: PreTrainedModel, name: str, layers: int, width: int) -> Residuals:
    """Run a network on a few tokens and see what its hidden states are.

    Raises:
        DriftError: it does not run on text alone, earlier tokens see later ones, or its hidden states are not one for the embeddings and one a block.
    """
    import torch

    if "lsh" in (getattr(network.config, "attn_layers", None) or ()):
        raise DriftError(f"{name} hashes its tokens at random: no two forward passes give the same numbers", mend="Give another model.")
    ids = torch.arange(3, 3 + _TOKENS)[None]
    changed = torch.cat([ids[:, :-1], ids[:, -1:] + 1], 1)
    with torch.inference_mode():
        try:
            ids, changed = (given.to(network.get_input_embeddings().weight.device) for given in (ids, changed))
            with _noted(network) as notes:
                states = network(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            others = network(input_ids=changed, output_hidden_states=True, use_cache=False).hidden_states
        except _RAISED as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DriftError(f"the network of {name} does not run on text alone: {said}", mend="Give a causal language model.") from error
    found = _shape(network, name, states, notes.places(layers), layers, width)
    mine, changed_states = found.of(states), found.of(others)
    if _sees_ahead(mine[1], changed_states[1]):
        raise DriftError(f"{name} is no causal language model: its earlier tokens see later ones", mend="Give one that is.")
    normed = found.stream is None and not any(torch.equal(given, mine[-1]) for given in notes.normed)
    return replace(found, normed=normed)


def _sees_ahead(states: Tensor, changed: Tensor) -> bool:
    """Whether every token's (1, tokens, width) state depends on the last token, which alone was changed.

    The first block's states are asked, and all tokens: rounding, which a mixture of experts may spread to some of them, adds up from block to block.
    """
    before, after = states[0, :-1].float(), changed[0, :-1].float()
    return bool(((after - before).norm(dim=-1) > _ROUNDING * before.norm(dim=-1)).all())


def _shape(
    network: PreTrainedModel, name: str, states: Sequence[Tensor] | None, places: tuple[int, ...], layers: int, width: int
) -> Residuals:
    """Which of its hidden states are measured; refused where they are not what is promised."""
    if states is None or len(states) not in (layers + 1, places[-1] + 1):
        given = "no" if states is None else str(len(states))
        raise DriftError(f"{name} gives {given} hidden states where its configuration's {layers} layers make {layers + 1}")
    kept = None if len(states) == layers + 1 else places
    shapes = {tuple(state.shape) for state in states}
    if shapes == {(1, _TOKENS, width)}:
        return Residuals(places=kept)
    active = getattr(text_config(network.config), "altup_active_idx", None)
    if active is not None and all(shape[1:] == (1, _TOKENS, width) for shape in shapes):
        return Residuals(stream=int(active), places=kept)
    spelled = ", ".join(" × ".join(map(str, shape)) for shape in sorted(shapes))
    raise DriftError(f"{name} gives hidden states of shape {spelled} for {_TOKENS} tokens of width {width}: which to measure is not known")


@dataclass
class _Notes:
    """What was seen of a forward pass."""

    normed: list[Tensor] = field(default_factory=list)
    """What norms were given."""
    ran: set[int] = field(default_factory=set)
    """The blocks that ran."""

    def places(self, layers: int) -> tuple[int, ...]:
        """Of each layer, the last hidden state that a block before it made."""
        return tuple(len([block for block in self.ran if block < layer]) for layer in range(layers + 1))


@contextmanager
def _noted(network: PreTrainedModel) -> Iterator[_Notes]:
    """Norms and blocks are noted within."""
    import torch

    notes = _Notes()

    def norm(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], torch.Tensor):
            notes.normed.append(given[0])

    def block(place: int, *_: Any) -> None:
        notes.ran.add(place)

    hooks = [m.register_forward_pre_hook(norm) for m in network.modules() if "norm" in type(m).__name__.lower()]
    hooks += [found.register_forward_pre_hook(partial(block, place)) for place, found in enumerate(blocks(network))]
    try:
        yield notes
    finally:
        for hook in hooks:
            hook.remove()
