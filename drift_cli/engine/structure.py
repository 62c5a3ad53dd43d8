"""How a network's attention is built, asked of the network itself before slots are trusted with it.

A few tokens are run with an attention that notes what every layer hands over, and with masks that are not made but asked: transformers describes a mask as a
function of the positions of a query and a key. So what a mask hides is known for conversations of any length, and is compared with what slots would let the
query see, which is all that the layer's window says. A window that only the mask knows, a chunk, a bias or a second call of a layer is found by this rule,
whatever the architecture is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from drift_cli.engine.attention import PassingCache, cache_argument, installed, last_logits, unknown_arguments
from drift_cli.engine.contract import is_out_of_memory
from drift_cli.engine.kernels import repeatable
from drift_cli.models import LoadedModel, blocks, text_config

_NAME = "drift_structure"
_TOKENS = 6
"""Tokens on which a network is asked."""
ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention"})
"""What a configuration calls layers that attend to every token, or to those in a window."""
_LONGEST = 4096
"""As many are run where a mask can only be asked about tokens that are run."""
_RAISED = (TypeError, ValueError, AttributeError, LookupError, AssertionError, RuntimeError, NotImplementedError)
"""What a network may raise that was not written for an attention of ours; any of them but want of memory means that slots are not for it."""
Sees = Callable[[int, int, Tensor, Tensor], Tensor]
"""(batch, head, positions of queries, positions of keys) → which of them each query sees."""


@dataclass
class _Notes:
    """What the attention and the masks of one forward pass were asked."""

    masks: list[Sees] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)


@dataclass(frozen=True)
class _Call:
    """What one layer handed over."""

    layer: int | None
    queries: int
    keys: int
    window: int
    sees: Sees | None
    """What its mask shows; None where it has none."""
    strange: tuple[str, ...]
    """Arguments that slots do not apply."""


def refusal(model: LoadedModel) -> str | None:
    """Why slots cannot run a model exactly, in words; None where no rule says so.

    Rules first that the configuration answers, then what the network's own attention and masks say (`structure`).
    """
    from drift_cli.engine.rotary import length_rule

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


def disagreement(model: LoadedModel) -> str | None:
    """What of a network's attention slots would compute otherwise, in words; None where nothing is found."""
    try:
        calls = _calls(model, _TOKENS)
        said = _of_calls(calls, model.card.layers)
        if said is None and asks_length(model):
            said = "its layers ask the cache for its length"
        return said or _of_masks(model, calls)
    except _RAISED as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return f"its network does not take an attention of ours: {(str(error).strip() or type(error).__name__).splitlines()[0]}"


def _of_calls(calls: list[_Call], layers: int) -> str | None:
    """What is strange about how often layers attend and what they hand over."""
    times = Counter(call.layer for call in calls)
    strange = sorted({name for call in calls for name in call.strange})
    if strange:
        return f"attention asks for {', '.join(strange)}, which slots do not apply"
    if None in times:
        return "its attention does not say which layer it belongs to"
    if any(count > 1 for count in times.values()):
        return "a layer attends more than once a token"
    if len(times) != layers:
        return f"{len(times)} of its {layers} layers attend"
    if any(call.queries != call.keys for call in calls):
        return "its layers hand over other numbers of queries and keys"
    return None


def _of_masks(model: LoadedModel, calls: list[_Call]) -> str | None:
    """Where a layer's mask shows other tokens than its window says, which is what slots go by.

    A mask that also depends on what the tokens are (some let the tokens of an image see each other) is asked about those that were run, which must be more
    than the window.
    """
    try:
        return _first_wrong(model, calls, model.card.context - 1)
    except IndexError:
        tokens = max(call.window for call in calls) + _TOKENS
        if tokens > _LONGEST:
            return f"its masks depend on more than positions, and its window is wider than {_LONGEST} tokens"
        return _first_wrong(model, _calls(model, tokens), tokens - 1)


def _first_wrong(model: LoadedModel, calls: list[_Call], last: int) -> str | None:
    """The first thing that the layers' masks show or hide against their windows, up to position `last`. Raises `IndexError` where a mask cannot be asked."""
    for call in {(call.sees, call.window): call for call in reversed(calls)}.values():
        if call.sees is None:
            if call.window:
                return f"layer {call.layer} has a window and no mask"
            continue
        queries, keys = _pairs(model, call.window, last)
        seen = torch.as_tensor(call.sees(0, 0, queries.to(model.device), keys.to(model.device))).cpu().expand(len(queries))
        expected = (keys <= queries) & (queries - keys < call.window) if call.window else keys <= queries
        wrong = (seen != expected).nonzero()
        if len(wrong):
            first = int(wrong[0])
            says = "shows" if bool(seen[first]) else "hides"
            told = f"a window of {call.window}" if call.window else "no window"
            pair = f"token {int(keys[first])} to token {int(queries[first])}"
            return f"the mask of layer {call.layer} {says} {pair}, where its attention is told of {told}"
    return None


def _pairs(model: LoadedModel, window: int, last: int) -> tuple[Tensor, Tensor]:
    """(pairs,) positions, up to `last`, of queries and of keys between which a mask may change: around every number in the configuration and every power
    of two.
    """
    numbers = {window, *_numbers(text_config(model.card.config).to_dict()), *(2**power for power in range(32))}
    edges = torch.tensor(sorted({number + near for number in numbers for near in (-1, 0, 1) if 0 <= number + near <= last}))
    queries = torch.unique(torch.cat([edges, 2 * edges, torch.tensor([last])]).clamp(max=last))
    keys = torch.cat([edges[None].expand(len(queries), -1), queries[:, None] - edges[None]], 1)
    inside = (keys >= 0) & (keys <= last)
    return queries[:, None].expand_as(keys)[inside], keys[inside]


def _numbers(value: Any) -> Iterator[int]:
    """Every whole number above 1 in a configuration."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int) and value > 1:
        yield value


def _calls(model: LoadedModel, tokens: int) -> list[_Call]:
    """What the layers hand over when tokens are run as slots run a chunk, without what slots keep."""
    with _noting(model) as notes, repeatable():
        model.network(input_ids=_ids(model, tokens), use_cache=False, **last_logits(model, tokens))
    return notes.calls


def _ids(model: LoadedModel, tokens: int) -> Tensor:
    """(1, tokens) ids of ordinary tokens, or what is most likely to be such."""
    return torch.arange(tokens, device=model.device)[None] % 7 + 3


@contextmanager
def _noting(model: LoadedModel) -> Iterator[_Notes]:
    """The network's attention and masks are noted within."""
    notes = _Notes()

    def mask(*, mask_function: Sees, device: Any = "cpu", **how: Any) -> Tensor:
        # The tensor stands for the function, by its number: transformers passes it on and may cut it to the number of keys.
        notes.masks.append(mask_function)
        return torch.full((1, 1, how["q_length"], how["kv_length"]), float(len(notes.masks) - 1), device=device)

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        sliding_window: int | None = None,
        **how: Any,
    ) -> tuple[Tensor, None]:
        strange = unknown_arguments({name: given for name, given in how.items() if name != "scaling"})
        sees, odd = _function(notes, attention_mask)
        layer = getattr(module, "layer_idx", None)
        notes.calls.append(_Call(layer, query.shape[2], key.shape[2], sliding_window or 0, sees, (*strange, *odd)))
        return _nothing(module, query, key, value)

    before = model.network.config._attn_implementation
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, mask)
    model.network.set_attn_implementation(_NAME)
    try:
        yield notes
    finally:
        model.network.set_attn_implementation(before)


def _function(notes: _Notes, mask: Any) -> tuple[Sees | None, tuple[str, ...]]:
    """The function that a mask stands for, and what is odd about it."""
    if mask is None:
        return None, ()
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.is_floating_point() and bool((mask == mask.flatten()[0]).all()):
        number = float(mask.flatten()[0])
        if number.is_integer() and 0 <= number < len(notes.masks):
            return notes.masks[int(number)], ()
    return None, ("a mask of its own",)


def _nothing(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """An attention that sees nothing: (rows, tokens, heads, width) zeros."""
    return query.new_zeros((len(query), query.shape[2], query.shape[1], value.shape[-1])), None


class _Asked(PassingCache):
    """Notes whether a layer asks how much it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.by_layer = False

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """0, noting whether a layer asks about itself."""
        self.by_layer |= self.inside and bool(args or kwargs)
        return 0

    @contextmanager
    def watching(self, layers: Sequence[torch.nn.Module]) -> Iterator[None]:
        """Questions that are asked while one of these runs are a layer's own."""

        def enter(*_: Any) -> None:
            self.inside = True

        def leave(*_: Any) -> None:
            self.inside = False

        hooks = [hook for layer in layers for hook in (layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def asks_length(model: LoadedModel) -> bool:
    """Whether a network's layers compute with how much the cache holds rather than with the positions that they are given: padding counts there, and slots
    hold nothing.
    """
    cache = _Asked()
    try:
        with installed(model, f"{_NAME}_length", _nothing), cache.watching(blocks(model.network)), repeatable():
            model.network(input_ids=_ids(model, _TOKENS), use_cache=True, **{cache_argument(model.network.__class__): cache})
    except _RAISED:
        return False
    return cache.by_layer
