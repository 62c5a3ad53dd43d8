"""Token traces: the projection of every token of finished replies, by a forward pass over their conversations.

A conversation is read once where the chat format leaves history alone, as a token's residual depends only on what stands before it; where the format
rewrites history (drops reasoning, say), each rewritten prompt is read with its reply. A reply's residual mean, projected, is the mean of its trace up to
rounding: how far they differ is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift_cli.chat import Dialogue, prompt_hash
from drift_cli.chat.dialogue import text_of
from drift_cli.errors import StoreError
from drift_cli.store.traces import TokenTrace, read_traces, write_traces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from drift_cli.axes import Axis
    from drift_cli.chat import Chat
    from drift_cli.models import LoadedModel
    from drift_cli.spec import Turn
    from drift_cli.store.manifest import AxisEntry
    from drift_cli.store.reader import RolloutRecord
    from drift_cli.store.run import Run

Reply = tuple[tuple[int, ...], tuple[int, ...]]
"""A reply in its conversation: the prompt's ids, and its own without the end-of-turn token."""


@dataclass(frozen=True)
class Measured:
    """What one call of `measure_run` did."""

    rollouts: int
    """Measured now."""
    known: int
    """Had their traces already."""
    difference: float
    """The largest difference between a trace's mean and the projection of the residual mean that is stored."""
    interrupted: bool


def measure_run(
    run: Run, chat: Chat, model: LoadedModel, axis: Axis, entry: AxisEntry, *, step: Callable[[str], object], stop: Callable[[], bool]
) -> Measured:
    """Measure every rollout that lacks traces of some of its turns; each is on disk before the next is begun. `step` is told of every rollout."""
    measured = known = 0
    difference = 0.0
    for state in run.states():
        if not state.done:
            continue
        if stop():
            return Measured(measured, known, difference, interrupted=True)
        record = run.record(state.rollout)
        if len(read_traces(run.paths, state.rollout, entry, record.turns)) == len(record.turns):
            known += 1
        else:
            traces = measure_rollout(run, record, chat, model, axis.at(entry.layer), entry.layer)
            write_traces(run.paths, state.rollout, entry, record.turns, traces)
            difference = max([difference, *_differences(record.turns, traces, entry.name)])
            measured += 1
        step(str(state.rollout))
    return Measured(measured, known, difference, interrupted=False)


def measure_rollout(
    run: Run, record: RolloutRecord, chat: Chat, model: LoadedModel, direction: NDArray[np.float32], layer: int
) -> list[TokenTrace]:
    """The traces of a rollout's replies on `direction` (width,) at a layer. Raises `StoreError` where its conversation is no longer what it was."""
    cell = record.rollout.cell
    users, condition = run.manifest.transcripts[cell.transcript].users, run.manifest.conditions[cell.condition]
    dialogue = Dialogue(chat, users, condition, model.card.end_ids)
    for turn in record.turns:
        if dialogue.problem is not None or turn.ids is None or prompt_hash(dialogue.prompt) != turn.prompt_hash:
            raise StoreError(
                f"{record.rollout} turn {turn.index}: the conversation's prompt is no longer what it was when this turn was made",
                mend="The tokenizer or transformers changed: `drift runs show` lists the versions in use then. Install those.",
            )
        dialogue.advance(turn.ids)
    values = list(_replies(dialogue.past, model, direction, layer))
    return [
        TokenTrace(turn.index, found, tuple(piece_lengths(chat.tokenizer, ids, turn.text)))
        for turn, found, (_, ids) in zip(record.turns, values, dialogue.past, strict=True)
    ]


def _replies(past: Sequence[Reply], model: LoadedModel, direction: NDArray[np.float32], layer: int) -> Iterator[NDArray[np.float32]]:
    """Projections (tokens,) of every reply, in order: one pass for each stretch of replies that lie in one rendering of the conversation."""
    start = 0
    while start < len(past):
        stop = start + 1
        while stop < len(past) and _holds(past[stop], past[stop - 1]):
            stop += 1
        prompt, reply = past[stop - 1]
        values = _project(model, [*prompt, *reply], direction, layer)
        yield from (values[len(before) : len(before) + len(ids)] for before, ids in past[start:stop])
        start = stop


def _holds(later: Reply, earlier: Reply) -> bool:
    """Whether the later reply's prompt begins with the earlier one's prompt and reply."""
    length = len(earlier[0]) + len(earlier[1])
    return later[0][:length] == (*earlier[0], *earlier[1])


def _project(model: LoadedModel, ids: Sequence[int], direction: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
    """(len(ids),): projections of every token of a conversation, from one forward pass without the head."""
    import torch

    from drift_cli.engine.kernels import repeatable

    with repeatable():
        tokens = torch.tensor([list(ids)], device=model.device)
        states = model.network.base_model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
        found = states[layer][0].float() @ torch.from_numpy(direction.astype(np.float32)).to(model.device)
        return np.asarray(found.cpu().numpy(), dtype=np.float32)


def piece_lengths(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[int]:
    """Characters of `text`, which is the reply of these ids, that each token adds.

    A token that ends in the middle of a character adds none; the one that completes it adds the character. Each token is decoded behind the one before it,
    as some tokenizers write the first token of a text without its space.
    """
    ends: list[int] = []
    end = first = seen = 0
    for place in range(len(ids)):
        before, now = text_of(tokenizer, ids[first:seen]), text_of(tokenizer, ids[first : place + 1])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            end += len(now) - len(before)
            first, seen = seen, place + 1
        ends.append(end)
    if end != len(text):
        # Characters that no token completes, or a tokenizer whose texts do not simply add up: the slow way is always right.
        ends = _whole_prefixes(tokenizer, ids, text)
    return [after - before for before, after in zip([0, *ends], ends, strict=False)]


def _whole_prefixes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[int]:
    """Where each token ends in the text, by decoding everything up to it; the last one ends where the text does."""
    ends = [0]
    for place in range(1, len(ids)):
        prefix = text_of(tokenizer, ids[:place])
        ends.append(len(prefix) if text.startswith(prefix) and len(prefix) >= ends[-1] else ends[-1])
    return [*ends[1:], len(text)]


def _differences(turns: Sequence[Turn], traces: Sequence[TokenTrace], axis: str) -> Iterator[float]:
    for turn, trace in zip(turns, traces, strict=True):
        if axis in turn.projections and len(trace.values):
            yield abs(float(trace.values.mean(dtype=np.float64)) - turn.projections[axis])
