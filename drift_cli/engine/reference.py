"""The plain engine: `model.generate` for replies, one more forward pass to measure them. Slow, and right for every causal language model.

Jobs of a group advance in step, turn by turn, as one left-padded batch whose whole prompt is encoded anew each turn. Each reply is then measured by a
forward pass over its own prompt and reply alone, so a residual mean depends on its own conversation and on nothing else.

Rounding in a batch depends on its shape. So that a resumed run repeats an uninterrupted one to the bit, a group keeps its members: a row whose turn was
already committed when its group was interrupted is computed again, compared with what was committed, and not handed out twice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from drift_cli.engine.attention import last_logits
from drift_cli.engine.contract import (
    Incident,
    Job,
    JobSource,
    Reply,
    Stopped,
    cannot_go_on,
    finish_of,
    is_out_of_memory,
    last_reply,
    no_memory,
    not_finite,
)
from drift_cli.engine.decoding import Decoding, decoding, generate, left_padded
from drift_cli.engine.kernels import repeatable
from drift_cli.engine.pooling import Means, mean_over, pool_parts
from drift_cli.engine.sampling import draw, split_key, uniforms
from drift_cli.models import LoadedModel
from drift_cli.pool import MEAN, Pool
from drift_cli.spec import Answered, Finish, Sampling, Segment


@dataclass(frozen=True)
class _Row:
    """One row of a batch: a job at a turn, and the prompt it has there."""

    job: Job
    turn: int
    prompt: tuple[int, ...]
    known: Answered | None
    """The turn, where it is committed already: it is computed so that the batch keeps its shape."""


class _KeyedDraw(LogitsProcessor):  # type: ignore[misc]
    """Leaves only the token that the row's uniform draws, so that a greedy `generate` takes it."""

    def __init__(self, rows: Sequence[_Row], filters: Sampling, stop: Callable[[], bool], device: torch.device) -> None:
        self.rows, self.filters, self.stop = rows, filters, stop
        self.keys = torch.tensor([split_key(row.job.key) for row in rows], device=device)
        self.samples = torch.tensor([row.job.rollout.sample for row in rows], device=device)
        self.turns = torch.tensor([row.turn for row in rows], device=device)
        self.temperature = torch.tensor([row.job.rollout.cell.temperature for row in rows], device=device, dtype=torch.float32)
        self.token = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) → the same shape, -inf but for one token a row."""
        if self.stop():
            raise Stopped
        finite = torch.isfinite(scores.amax(-1))
        if not bool(finite.all()):
            row = self.rows[int((~finite).nonzero()[0])]
            raise not_finite(row.job.rollout, row.turn)
        u = uniforms(self.keys, self.samples, self.turns, torch.full_like(self.samples, self.token))
        self.token += 1
        drawn = draw(scores, self.temperature, u, self.filters)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn[:, None], 0.0)


class _StopStrings(StoppingCriteria):  # type: ignore[misc]
    """Ends a row whose reply contains one of its chat format's stop strings."""

    def __init__(self, rows: Sequence[_Row], width: int) -> None:
        self.rows, self.width = rows, width

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """(rows,) bool."""
        replies = input_ids[:, self.width :].tolist()
        ended = [row.job.conversation.stop_length(ids) is not None for row, ids in zip(self.rows, replies, strict=True)]
        return torch.tensor(ended, device=input_ids.device)


@dataclass
class ReferenceEngine:
    """See the module's docstring. `layers` are the residual layers to pool; `batch` is the number of rows generated together."""

    model: LoadedModel
    layers: tuple[int, ...]
    filters: Sampling
    max_new_tokens: int
    batch: int = 4
    pool: Pool = MEAN
    name: str = field(default="reference", init=False)
    fixed_groups: bool = field(default=True, init=False)
    how: Decoding = field(default=Decoding(), init=False)

    def run(self, jobs: JobSource, stop: Callable[[], bool], report: Callable[[Incident], None]) -> Generator[Reply]:
        """See `contract.Engine.run`."""
        self._settle(report)
        while group := jobs.take():
            yield from self._run_group(group, stop, report)

    def _settle(self, report: Callable[[Incident], None]) -> None:
        """Find out how this network is to be generated with, and say what is slower than usual."""
        try:
            self.how = decoding(self.model)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise no_memory("two short rollouts") from error
            raise
        if self.how.alone is not None and self.batch > 1:
            self.batch = 1
            report(Incident("one-at-a-time", f"{self.how.alone}: rollouts are generated one at a time"))
        if self.how.uncached is not None:
            report(Incident("no-cache", f"{self.how.uncached}: every token is computed from the whole conversation, which is slow"))

    def _run_group(self, group: Sequence[Job], stop: Callable[[], bool], report: Callable[[Incident], None]) -> Iterator[Reply]:
        while open_jobs := [job for job in group if not job.ended and not job.aborted]:
            turn = min(job.turn for job in open_jobs)
            for job in [job for job in open_jobs if job.turn == turn]:
                finish = cannot_go_on(job.conversation, self.max_new_tokens, self.model.card.context)
                if finish is not None:
                    job.ended = True
                    yield last_reply(job, finish)
            rows = [row for job in group if (row := _row(job, turn)) is not None]
            for reply, row in self._answer(rows, stop, report):
                if row.known is not None:
                    _compare(row, row.known, reply, report)
                    continue
                row.job.conversation = reply.conversation
                row.job.ended = reply.conversation.end is Finish.COMPLETE
                yield reply

    def _answer(self, rows: list[_Row], stop: Callable[[], bool], report: Callable[[Incident], None]) -> Iterator[tuple[Reply, _Row]]:
        """Generate and measure rows, `batch` at a time; out of memory halves `batch` and goes on with what is left."""
        left = rows
        while left:
            if all(row.known is not None for row in left):
                break
            now = left[: self.batch]
            try:
                done = [self._measured(row, ids) for row, ids in zip(now, self._generate(now, stop), strict=True)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(now), report)
                continue
            left = left[len(now) :]
            yield from zip(done, now, strict=True)

    def _halve(self, rows: int, report: Callable[[Incident], None]) -> None:
        if rows <= 1:
            raise no_memory("a single rollout in the batch")
        self.batch = max(1, rows // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        report(Incident("out-of-memory", f"out of memory with {rows} rollouts at once: going on with {self.batch}"))

    def _generate(self, rows: Sequence[_Row], stop: Callable[[], bool]) -> list[tuple[int, ...]]:
        """The reply of each row, ids as sampled: up to and including the first end token, or cut where a stop string begins."""
        ids, mask = left_padded(self.model, [row.prompt for row in rows])
        width = ids.shape[1]
        drawing = LogitsProcessorList([_KeyedDraw(rows, self.filters, stop, self.model.device)])
        ending = StoppingCriteriaList([_StopStrings(rows, width)])
        for tokens in self._stretches(width):
            ids = self._extended(ids, mask, tokens, drawing, ending)
            if self._ended(rows, ids[:, width:].tolist()):
                break
            mask = torch.ones_like(ids)  # a row whose reply has a second stretch is alone
        return [self._trimmed(row, reply) for row, reply in zip(rows, ids[:, width:].tolist(), strict=True)]

    def _stretches(self, prompt: int) -> Iterator[int]:
        """How many tokens of a reply behind `prompt` tokens are generated with one cache: all of them, but where the rotary embedding changes within the
        reply, those whose conversation is short, and then the others.
        """
        left, end = self.max_new_tokens, self.how.threshold
        if end is not None and prompt <= end < prompt + left - 1:
            yield end + 1 - prompt
            left -= end + 1 - prompt
        yield left

    def _extended(self, ids: Tensor, mask: Tensor, tokens: int, drawing: LogitsProcessorList, ending: StoppingCriteriaList) -> Tensor:
        """(rows, tokens) ids with up to `tokens` more."""
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=sorted(self.model.card.end_ids),
            pad_token_id=min(self.model.card.end_ids),
            use_cache=self.how.uncached is None,
        )
        made: Tensor = generate(
            self.model, ids, attention_mask=mask, generation_config=config, logits_processor=drawing, stopping_criteria=ending
        )
        return made

    def _ended(self, rows: Sequence[_Row], replies: Sequence[Sequence[int]]) -> bool:
        """Whether every row's reply has an end."""
        talks = [row.job.conversation for row in rows]
        ends = self.model.card.end_ids
        return all(not ends.isdisjoint(ids) or talk.stop_length(ids) is not None for talk, ids in zip(talks, replies, strict=True))

    def _trimmed(self, row: _Row, ids: list[int]) -> tuple[int, ...]:
        end = next((place for place, token in enumerate(ids) if token in self.model.card.end_ids), None)
        if end is not None:
            ids = ids[: end + 1]
        keep = row.job.conversation.stop_length(ids)
        return tuple(ids if keep is None else ids[:keep])

    def _measured(self, row: _Row, ids: tuple[int, ...]) -> Reply:
        finish = finish_of(ids, self.max_new_tokens, self.model.card.end_ids)
        if row.known is not None:
            return Reply(row.job.rollout, row.turn, row.prompt, ids, finish, row.job.conversation)
        following = row.job.conversation.after(ids)
        reply, turn = Reply(row.job.rollout, row.turn, row.prompt, ids, finish, following), following.past[-1]
        if not turn.length:
            return reply
        return reply.measured(
            measure_parts(self.model, [*row.prompt, *ids], len(row.prompt), turn.length, turn.segments, self.layers, self.pool)
        )


def _row(job: Job, turn: int) -> _Row | None:
    """The row of a job at `turn`: to be answered, or, where it was committed just before an interruption, to be computed again."""
    if not job.ended and job.turn == turn:
        return _Row(job, turn, job.conversation.prompt, None)
    if job.turn == turn + 1:
        known = job.conversation.past[-1]
        return _Row(job, turn, known.prompt, known)
    return None


def measure_parts(
    model: LoadedModel, ids: Sequence[int], start: int, length: int, segments: Sequence[Segment], layers: Sequence[int], pool: Pool = MEAN
) -> Means:
    """Residual means of the parts of the reply at tokens `start` to `start + length` of one conversation, from one plain forward pass."""
    return pool_parts(_states(model, ids), 0, (start, start + length), segments, layers, pool)


def measure(model: LoadedModel, ids: Sequence[int], start: int, length: int, layers: Sequence[int]) -> NDArray[np.float32]:
    """Residual means (len(layers), width) float32 over tokens `start` to `start + length` of one conversation, from one plain forward pass."""
    return mean_over(_states(model, ids), 0, [(start, start + length)], layers)


def _states(model: LoadedModel, ids: Sequence[int]) -> Sequence[Tensor]:
    """Hidden states of every layer, (1, tokens, width) each."""
    with repeatable():
        tokens = torch.tensor([list(ids)], device=model.device)
        out = model.network(input_ids=tokens, output_hidden_states=True, use_cache=False, **last_logits(model, len(ids)))
    return model.residuals.of(out.hidden_states)


def _compare(row: _Row, known: Answered, reply: Reply, report: Callable[[Incident], None]) -> None:
    if known.ids != reply.ids:
        where = f"{row.job.rollout} turn {row.turn}"
        report(Incident("replay-differs", f"{where}: computed again, this machine draws another reply than the one on disk, which is kept"))
