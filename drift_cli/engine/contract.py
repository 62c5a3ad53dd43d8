"""What every rollout engine promises. No files, no terminal, no tokenization beyond what a `Dialogue` does.

In: jobs, one per rollout, whose dialogues have already been brought to their first unanswered turn. Out: replies, in whatever order they finish, each
with the residual means of its tokens. The k-th token of a reply is drawn with the uniform of (seed, transcript, sample, turn, k) and nothing else, so
batch size, order and company never change what is drawn from given logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from drift_cli.chat import Dialogue
from drift_cli.errors import DriftError
from drift_cli.probe import Means
from drift_cli.spec import Finish, Part, Rollout, Segment

ENGINES = ("auto", "slots", "reference")


class Stopped(Exception):
    """The caller asked to stop; the turn in progress is dropped."""


@dataclass
class Job:
    """One rollout to be done. `dialogue` stands at its first unanswered turn and is advanced by the engine."""

    rollout: Rollout
    dialogue: Dialogue
    key: int
    """The rollout's generator key, see `sampling.noise_key`."""
    group: int
    """Jobs of one group run in step in engines that need fixed company for equal bits. Consecutive jobs share a group."""
    last: tuple[int, ...] | None = None
    """Ids of the reply committed last, so that an engine can recompute that turn for the sake of its company."""
    ended: bool = False
    """True where nothing is left to do; such a job is only company."""
    lengths: tuple[int, ...] | None = None
    """Where given, each turn's reply has exactly so many ids, whatever they are: for benchmarks, where random weights do not know when to end."""

    @property
    def turn(self) -> int:
        """The turn to answer next, 1 for the first."""
        return self.dialogue.turn


@dataclass(frozen=True)
class Reply:
    """One finished turn of a rollout, or the news that the rollout ends before its next one: it does not fit (`Finish.CONTEXT`), or the chat template does
    not render it as it is (`Finish.TEMPLATE`).
    """

    rollout: Rollout
    turn: int
    prompt: tuple[int, ...]
    """Empty for `Finish.TEMPLATE`."""
    ids: tuple[int, ...]
    """As sampled, end-of-turn token included; empty where the rollout ends."""
    text: str
    finish: Finish
    residual: np.ndarray[Any, Any] | None
    """(layers, width) float32 over the answer's tokens, or None where it has none. Without segments the answer is every token but the end-of-turn token."""
    segments: tuple[Segment, ...] = ()
    """Where reasoning and answer are; () where the reply is all answer. `text` is the answer's."""
    reasoning: str | None = None
    """The reasoning's text."""
    means: Mapping[Part, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Of a reply with segments: (layers, width) float32 of `REASONING` and of `ALL`, where there are such tokens."""
    problem: str | None = None
    """For `Finish.TEMPLATE`, what is wrong with the prompt."""

    def measured(self, means: Means) -> Reply:
        """The same reply with its residual means."""
        return replace(self, residual=means.get(Part.ANSWER), means={part: mean for part, mean in means.items() if part is not Part.ANSWER})


@dataclass(frozen=True)
class Incident:
    """Something that went otherwise than planned and was dealt with: kind (`out-of-memory`, `replay-differs`) and what was done, in words."""

    kind: str
    detail: str


def cannot_go_on(job: Job, max_new_tokens: int, context: int) -> Finish | None:
    """How a rollout ends before its next turn, None where it goes on: `TEMPLATE` without a prompt, `CONTEXT` where the prompt and a full reply do not fit."""
    if job.dialogue.problem is not None:
        return Finish.TEMPLATE
    return Finish.CONTEXT if len(job.dialogue.prompt) + max_new_tokens > context else None


def last_reply(job: Job, finish: Finish) -> Reply:
    """The news that a rollout ends before its next turn."""
    prompt = () if finish is Finish.TEMPLATE else tuple(job.dialogue.prompt)
    return Reply(job.rollout, job.turn, prompt, (), "", finish, None, problem=job.dialogue.problem)


def finish_of(ids: Sequence[int], max_new_tokens: int, end_ids: frozenset[int]) -> Finish:
    """Why a reply of these ids, its end token included, ended."""
    return Finish.STOP if len(ids) < max_new_tokens or ids[-1] in end_ids else Finish.LENGTH


def not_finite(rollout: Rollout, turn: int) -> DriftError:
    """The error for logits from which nothing can be drawn."""
    return DriftError(
        f"{rollout} turn {turn}: the model's logits are not finite",
        mend="Use a dtype with more range (--dtype bfloat16 or float32), or check the model's weights.",
    )


def no_memory(for_what: str) -> DriftError:
    """The error where not even one rollout fits."""
    return DriftError(
        f"out of memory with {for_what}",
        mend="Use fewer --max-new-tokens, a smaller dtype (--dtype bfloat16), or a device with more memory.",
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """torch raises its own type on accelerators; its CPU allocator raises a plain RuntimeError with this text."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Engine(Protocol):
    """An engine runs jobs. See the module's docstring for what it promises."""

    name: str
    batch: int
    needs_company: bool
    """Whether equal bits need a rollout's group to be run with it, finished members included."""

    def run(self, jobs: Iterable[Job], stop: Callable[[], bool], report: Callable[[Incident], None]) -> Iterator[Reply]:
        """Yield replies until every job has ended. Raises `Stopped` soon after `stop()` turns true (it is asked once a token)."""
