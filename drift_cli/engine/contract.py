"""What every rollout engine promises. Token ids in, turns out: no text, no chat format, no store, no files, no terminal.

In: jobs, one for each rollout. A job has a `Conversation`, a state that never changes: `prompt` is what the model is given next, and `after(ids)` is the state
that a reply leads to. Out: replies, in whatever order they finish, each with its residual means and with the conversation's state behind it. Texts are made
outside, from that state.

1. Rollouts are independent. Each advances by itself, and all cells of a run share the engine's rows.
2. One uniform per token. The k-th token of a reply is drawn with the uniform of (seed, transcript, sample, turn, k), by inverse CDF. The condition is not in
   the key, unless `--independent-noise` puts it in. Batch size, row, order and number of devices never change a uniform.
3. A resumed rollout repeats an uninterrupted one to the bit, on the same hardware and software. What an engine computes depends on the conversation and on
   its turn boundaries (`past`) alone, or, where `fixed_groups` says so, on those of the rollout's whole group.
4. The cache follows the conversation: the longest common prefix of token ids is kept and the rest is encoded, also where a template rewrote history.
   Sampled ids stay as they were sampled as long as the conversation keeps them.
5. Nothing is ever truncated. A rollout whose next prompt and a full reply do not fit the context ends with `Finish.CONTEXT`; one whose conversation has no
   next prompt ends with `Finish.TEMPLATE`.
6. All engines keep this contract, and one suite of tests (`tests/contract`) asks it of each. What an engine cannot do exactly it refuses by name; logits that
   are not finite are an error that names rollout and turn. A bug or a lack of memory is never such a refusal.
7. Out of memory is an event: it is reported, the batch is halved, and every turn that was begun is made again from the conversation's last state. A state is
   taken over only when everything that belongs to its turn has been encoded, so no reply is lost, made twice, or different.
8. What is asked of a row is the row's own (its draw, its temperature, the parts of its reply that are pooled), and changes no bit of another row.
9. How an engine saves time is invisible: however far the device runs ahead of the host, tokens and means are those of the plain order.
10. Kernels that do not repeat themselves are kept out. The same jobs on the same machine give the same bits; on a CPU that takes the same number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from drift_cli.engine.pooling import Means
from drift_cli.errors import DriftError
from drift_cli.spec import Answered, Finish, Part, Rollout, Segment

ENGINES = ("auto", "slots", "reference")


class Stopped(Exception):
    """The caller asked to stop; the turn in progress is dropped."""


class Conversation(Protocol):
    """One rollout's conversation as an engine sees it: a state that never changes."""

    @property
    def turn(self) -> int:
        """The turn to answer next, 1 for the first; once every turn is answered, one more than there are."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """What the model is given for it. Raises where there is none (`end`)."""

    @property
    def past(self) -> Sequence[Answered]:
        """Every answered turn."""

    @property
    def end(self) -> Finish | None:
        """None while there is a prompt. `COMPLETE`: every turn is answered. `TEMPLATE`: the chat format has no prompt for the next turn (`problem`)."""

    @property
    def problem(self) -> str | None:
        """Why there is no prompt, for `TEMPLATE`."""

    @property
    def has_stops(self) -> bool:
        """Whether a reply may end where a stop string begins: where not, `stop_length` need not be asked."""

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """How many of a reply's ids to keep where they contain a stop string; None where the reply goes on."""

    def after(self, ids: Sequence[int]) -> Conversation:
        """The state behind a reply to the current turn, ids as sampled. Changes nothing; the same ids lead to the same state, however often it is asked."""


@dataclass
class Job:
    """One rollout to be done. The engine puts the next state in place of `conversation` once everything that belongs to a turn is computed."""

    rollout: Rollout
    conversation: Conversation
    key: int
    """The rollout's generator key, see `sampling.noise_key`."""
    ended: bool = False
    """Nothing is left to do. With fixed groups, such a job may stand in a group so that the others' batch keeps its shape."""
    aborted: bool = False
    lengths: tuple[int, ...] | None = None
    """Where given, each turn's reply has exactly so many ids, whatever they are: for benchmarks, where random weights do not know when to end."""

    @property
    def turn(self) -> int:
        """The turn to answer next, 1 for the first."""
        return self.conversation.turn

    def abort(self) -> None:
        """Give the rollout up: the engine makes no more replies of it than the one it is at. To be called from the engine's own thread."""
        self.aborted = True


class JobSource(Protocol):
    """Where an engine gets its work."""

    def take(self) -> Sequence[Job]:
        """The jobs that come next, which engines with fixed groups run in step; none where there is nothing now. An engine asks whenever it has a free row,
        also after there was nothing, and returns when it has no work left and there is nothing.
        """


class Given:
    """Jobs that are known beforehand, as a source: one by one, or in groups of `size`."""

    def __init__(self, jobs: Iterable[Job], size: int = 1) -> None:
        self._jobs, self._size = deque(jobs), size

    def take(self) -> Sequence[Job]:
        """See `JobSource.take`."""
        return [self._jobs.popleft() for _ in range(min(self._size, len(self._jobs)))]


@dataclass(frozen=True)
class Reply:
    """One finished turn of a rollout, or the news that the rollout ends before its next one: it does not fit (`Finish.CONTEXT`), or the conversation has no
    prompt for it (`Finish.TEMPLATE`).
    """

    rollout: Rollout
    turn: int
    prompt: tuple[int, ...]
    """Empty for `Finish.TEMPLATE`."""
    ids: tuple[int, ...]
    """As sampled, end-of-turn token included; empty where the rollout ends."""
    finish: Finish
    conversation: Conversation
    """The state behind the reply; where the rollout ends, the state it ends in."""
    residual: np.ndarray[Any, Any] | None = None
    """(layers, width) float32 over the answer's tokens, or None where it has none. Without segments the answer is every token but the end-of-turn token."""
    means: Mapping[Part, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Of a reply with segments: (layers, width) float32 of `REASONING` and of `ALL`, where there are such tokens."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Where reasoning and answer are in `ids`; () where the reply is all answer."""
        return self.conversation.past[-1].segments if self.ids else ()

    @property
    def problem(self) -> str | None:
        """For `Finish.TEMPLATE`, what is wrong with the prompt."""
        return self.conversation.problem if self.finish is Finish.TEMPLATE else None

    def measured(self, means: Means) -> Reply:
        """The same reply with its residual means."""
        return replace(self, residual=means.get(Part.ANSWER), means={part: mean for part, mean in means.items() if part is not Part.ANSWER})


@dataclass(frozen=True)
class Incident:
    """Something that went otherwise than planned and was dealt with: kind (`out-of-memory`, `replay-differs`) and what was done, in words."""

    kind: str
    detail: str


def cannot_go_on(conversation: Conversation, max_new_tokens: int, context: int) -> Finish | None:
    """How a conversation ends before its next reply, None where it goes on: `CONTEXT` where the prompt and a full reply do not fit."""
    if conversation.end is not None:
        return conversation.end
    return Finish.CONTEXT if len(conversation.prompt) + max_new_tokens > context else None


def last_reply(job: Job, finish: Finish) -> Reply:
    """The news that a rollout ends before its next turn."""
    prompt = () if finish is Finish.TEMPLATE else job.conversation.prompt
    return Reply(job.rollout, job.turn, prompt, (), finish, job.conversation)


def finish_of(ids: Sequence[int], max_new_tokens: int, end_ids: frozenset[int]) -> Finish:
    """Why a reply of these ids, its end token included, ended."""
    return Finish.STOP if len(ids) < max_new_tokens or ids[-1] in end_ids else Finish.LENGTH


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two sequences of token ids."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:length]) != np.asarray(b[:length]))
    return int(differ[0]) if differ.size else length


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
    fixed_groups: bool
    """Whether equal bits need the jobs that were taken together to be run together, finished members included."""

    def run(self, jobs: JobSource, stop: Callable[[], bool], report: Callable[[Incident], None]) -> Generator[Reply]:
        """Yield replies until every job has ended. Raises `Stopped` soon after `stop()` turns true (it is asked once a token)."""
