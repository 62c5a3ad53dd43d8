"""Token traces: the projection of every token of finished replies, by a forward pass over their conversations.

A conversation is read once where the chat format leaves history alone, as a token's residual depends only on what stands before it; where the format
rewrites history (drops reasoning, say), each rewritten prompt is read with its reply. A reply's residual mean, projected, is the mean of its trace up to
rounding: how far they differ is said. Tokens of reasoning, of answers and of the markup around them are all traced; `Turn.segments` tells which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift_cli.chat import scripted, text_of
from drift_cli.chat.replay import replay, user_turns
from drift_cli.pool import Pool
from drift_cli.spec import Answered, Part, spans
from drift_cli.store.traces import TokenTrace, read_traces, write_traces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from drift_cli.axis import Axis
    from drift_cli.chat import Chat
    from drift_cli.models import LoadedModel
    from drift_cli.spec import Turn
    from drift_cli.store.manifest import AxisEntry
    from drift_cli.store.reader import RolloutRecord
    from drift_cli.store.run import Run


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
            difference = max([difference, *_differences(record.turns, traces, entry.name, Pool.of(run.manifest.pool))])
            measured += 1
        step(str(state.rollout))
    return Measured(measured, known, difference, interrupted=False)


def measure_rollout(
    run: Run, record: RolloutRecord, chat: Chat, model: LoadedModel, direction: NDArray[np.float32], layer: int
) -> list[TokenTrace]:
    """The traces of a rollout's replies on `direction` (width,) at a layer. Raises `StoreError` where its conversation is no longer what it was."""
    cell = record.rollout.cell
    transcript, condition = run.manifest.transcripts[cell.transcript], run.manifest.conditions[cell.condition]
    users = user_turns(transcript, record.turns)
    if not users:
        return []
    past = replay(scripted(chat, users, condition, model.card.end_ids), record.turns, str(record.rollout)).past
    values = list(_replies(past, model, direction, layer))
    return [
        TokenTrace(turn.index, found, tuple(token_lengths(chat.tokenizer, answered.content, turn)))
        for turn, found, answered in zip(record.turns, values, past, strict=True)
    ]


def _replies(past: Sequence[Answered], model: LoadedModel, direction: NDArray[np.float32], layer: int) -> Iterator[NDArray[np.float32]]:
    """Projections (tokens,) of every reply, in order: one pass for each stretch of replies that lie in one rendering of the conversation.

    Where a network computes a token otherwise in a longer conversation, each reply has a pass of its own over what its residual mean was measured on: its
    prompt and its ids as sampled.
    """
    from drift_cli.engine.rotary import threshold

    by_length = threshold(model) is not None
    start = 0
    while start < len(past):
        stop = start + 1
        while stop < len(past) and not by_length and _holds(past[stop], past[stop - 1]):
            stop += 1
        last = past[stop - 1]
        values = _project_tokens(model, [*last.prompt, *(last.ids if by_length else last.content)], direction, layer)
        yield from (values[len(turn.prompt) :][: turn.length] for turn in past[start:stop])
        start = stop


def _holds(later: Answered, earlier: Answered) -> bool:
    """Whether the later reply's prompt begins with the earlier one's prompt and reply."""
    whole = (*earlier.prompt, *earlier.content)
    return later.prompt[: len(whole)] == whole


def _project_tokens(model: LoadedModel, ids: Sequence[int], direction: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
    """(len(ids),): projections of every token of a conversation, from one forward pass: on the model's device, in float32."""
    import torch

    from drift_cli.engine.attention import last_logits
    from drift_cli.engine.kernels import repeatable

    few = last_logits(model, len(ids))
    # A network that cannot be asked for a few logits is run without its head, whose logits of every token would take much memory.
    run = model.network if few else model.network.base_model
    with repeatable():
        tokens = torch.tensor([list(ids)], device=model.device)
        states = model.residuals.of(run(input_ids=tokens, output_hidden_states=True, use_cache=False, **few).hidden_states)
        found = states[layer][0].float() @ torch.from_numpy(direction.astype(np.float32)).to(model.device)
        return np.asarray(found.cpu().numpy(), dtype=np.float32)


def token_lengths(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], turn: Turn) -> list[int]:
    """Characters that each token of a reply, whose ids without the end-of-turn token these are, adds to the text of its segment; 0 for markup."""
    if not turn.segments:
        return piece_lengths(tokenizer, ids, turn.text)
    lengths = [0] * len(ids)
    for part, text in ((Part.ANSWER, turn.text), (Part.REASONING, turn.reasoning or "")):
        found, begin = spans(turn.segments, part), 0
        for number, (start, stop) in enumerate(found):
            own = text_of(tokenizer, ids[start:stop])
            # A part's text is that of its segments one after the other; what a chat format puts between them goes to the first token behind it.
            end = len(text) if number == len(found) - 1 else max(text.find(own.strip(), begin), begin) + len(own.strip())
            lengths[start:stop] = _lengths_in(tokenizer, ids[start:stop], own, text[begin:end])
            begin = end
    return lengths


def _lengths_in(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], own: str, text: str) -> list[int]:
    """Characters of `text` that each token adds, where `text` is what a chat format leaves of the tokens' `own` text: without the space around it, say."""
    at = own.find(text)
    if at < 0:
        return [0] * (len(ids) - 1) + [len(text)]
    ends = [min(max(end - at, 0), len(text)) for end in accumulate(piece_lengths(tokenizer, ids, own))]
    return [end - start for start, end in pairwise([0, *ends])]


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


def _differences(turns: Sequence[Turn], traces: Sequence[TokenTrace], axis: str, pool: Pool) -> Iterator[float]:
    for turn, trace in zip(turns, traces, strict=True):
        values = trace.of(turn)[1]
        if axis in turn.projections and len(values):
            counted = np.concatenate([values[start:stop] for start, stop in pool.within([(0, len(values))])])
            yield abs(float(counted.mean(dtype=np.float64)) - turn.projections[axis])
