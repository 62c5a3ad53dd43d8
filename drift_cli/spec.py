"""What an experiment is made of: frozen dataclasses and their digests. No files, no torch.

A *run* is what makes results comparable, and its id is derived from exactly that: model and revision, dtype, chat format, sampling filters, the number
of new tokens and the seed. A *cell* is transcript × condition × temperature; a *rollout* is one sampled conversation of a cell; a *turn* is one user
message and its reply, the unit that is written to disk.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from drift_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

CONTENT = "tree1:"
"""How the revision of local weights begins: a digest of their whole content (`models/identity.py`), whatever the folder is called."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def checked_name(kind: str, name: str) -> str:
    """Return `name` if it can stand in a file name on every system; raise `UsageError` otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{kind} name {name!r} cannot be used",
            mend="Use 1 to 80 letters, digits, '.', '_' or '-', beginning with a letter or digit.",
        )
    return name


def brief(revision: str) -> str:
    """A revision as it is shown where there is little room: 12 digits."""
    return revision.removeprefix(CONTENT)[:12]


def plain_name(text: str) -> str:
    """A name made from any text: lower case, and only what may stand in a file name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60] or "run"


def shortened_name(transcript: str, turns: int) -> str:
    """What the first `turns` user turns of a transcript are called, so that they and the whole can be in one run: `lonely-6`."""
    suffix = f"-{turns}"
    return transcript[: 80 - len(suffix)] + suffix


def at_layer(axis: str, layer: int) -> str:
    """What a run calls an axis that it has at another layer already: `demo@3`. No axis can have such a name of its own."""
    return f"{axis}@{layer}"


def split_layer(name: str) -> tuple[str, int | None]:
    """The axis and the layer of `demo@3`; `demo` names no layer. `UsageError` where what stands behind the @ is no layer."""
    axis, sign, layer = name.partition("@")
    if sign and not (layer.isascii() and layer.isdecimal()):
        raise UsageError(f"{name!r} names no layer of an axis", mend="Write the axis and the layer, such as demo@3.")
    return axis, int(layer) if sign else None


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form: sorted keys, no spaces, UTF-8."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


class Placement(StrEnum):
    """Where a condition's system prompt goes."""

    START = "start"
    """A system message, once, first."""
    FIRST_USER = "first-user"
    """In front of the first user message, a blank line between, for templates without a system role."""
    EVERY_TURN = "every-turn"
    """A system message after each user message."""
    USER_SUFFIX = "user-suffix"
    """Appended to each user message after a blank line, for templates that refuse a system message there."""


@dataclass(frozen=True)
class Condition:
    """A named system prompt (or none) and where it is placed."""

    name: str
    system: str | None = None
    placement: Placement = Placement.START
    variant_of: str | None = field(default=None, metadata={"optional": True})
    """The condition of whose prompt this one's is another wording; None for a condition of its own."""
    placebo_of: str | None = field(default=None, metadata={"optional": True})
    """The condition whose prompt this one's is as long as, in the same place, saying nothing."""

    def __post_init__(self) -> None:
        checked_name("condition", self.name)


@dataclass(frozen=True)
class Transcript:
    """The script of a conversation: the user turns and, where somebody else's model gave them, its replies (same length)."""

    name: str
    users: tuple[str, ...]
    replies: tuple[str, ...] | None = None
    user: str | None = field(default=None, metadata={"optional": True})
    """What the Python code is called that asks instead of a script; `users` is () then."""
    turns: int | None = field(default=None, metadata={"optional": True})
    """How often that code asks."""
    pulls: tuple[int, ...] = field(default=(), metadata={"optional": True})
    """Turns at which the script pulls the model away from its persona, as its author marked them; no part of what the model sees."""

    def __post_init__(self) -> None:
        checked_name("transcript", self.name)
        if (self.user is None) != (self.turns is None) or (self.user is not None and (self.users or (self.turns or 0) < 1)):
            raise ValueError("a user's code asks at least once, and in place of a script")
        if self.replies is not None and len(self.replies) != len(self.users):
            raise ValueError(f"{len(self.users)} user turns but {len(self.replies)} replies")

    @property
    def digest(self) -> str:
        """Of the user turns alone: replies are not part of the script."""
        return digest_of(list(self.users) if self.user is None else {"user": self.user, "turns": self.turns})

    @property
    def total(self) -> int:
        """The number of user turns."""
        return len(self.users) if self.turns is None else self.turns

    def asked(self, turn: int) -> str | None:
        """The text of a user turn, 1 for the first; None where the script does not have it."""
        return self.users[turn - 1] if turn <= len(self.users) else None


@dataclass(frozen=True)
class Sampling:
    """The filters between the model's logits and the draw. Temperature belongs to the cell, not to the run."""

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    independent_noise: bool = False
    """False: sample s of every condition shares its uniforms (common random numbers)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p is {self.top_p}", mend="Use a number above 0 and up to 1 (1 keeps every token).")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}", mend="Use 0 (off) or a positive number of tokens.")
        if not 0.0 <= self.min_p < 1.0:
            raise UsageError(f"min_p is {self.min_p}", mend="Use a number from 0 (off) to below 1.")


@dataclass(frozen=True)
class ChatFormat:
    """How messages become tokens: the model's own template (by digest) or plain System/User/Assistant text."""

    kind: str
    """`template` or `raw`."""
    digest: str
    """SHA-256 of the template's text, or of the raw format's stop strings."""
    date: str | None = None
    """The day (ISO) a template that asks for the date is told, whenever it runs. None where no template asks."""
    options: str = "{}"
    """Variables handed to the template (`enable_thinking`, say) as canonical JSON."""


@dataclass(frozen=True)
class RunSpec:
    """Exactly what makes results comparable. The same settings always have the same `id`."""

    name: str
    model: str
    revision: str
    dtype: str
    chat: ChatFormat
    sampling: Sampling
    max_new_tokens: int
    seed: int
    adapter: str | None = field(default=None, metadata={"optional": True})
    """Digest of the LoRA adapter that is merged into the model's weights."""

    def __post_init__(self) -> None:
        checked_name("run", self.name)
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}", mend="Use at least 1.")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}", mend="Use a whole number from 0 to 2^63 - 1.")

    @property
    def digest(self) -> str:
        """SHA-256 of every field but the name. Where the revision is of content, what the model's folder is called is no part of it."""
        fields = asdict(self)
        del fields["name"]
        if self.by_content:
            del fields["model"]
        if self.adapter is None:
            del fields["adapter"]
        return digest_of(fields)

    @property
    def by_content(self) -> bool:
        """Whether the revision is a digest of the model's whole content."""
        return self.revision.startswith(CONTENT)

    @property
    def identity(self) -> str:
        """Of the weights that run: the revision, and the adapter's digest where there is one."""
        return self.revision if self.adapter is None else f"{self.revision}+{self.adapter}"

    @property
    def id(self) -> str:
        """`<name>-<first 8 hex digits of the digest>`."""
        return f"{self.name}-{self.digest[:8]}"


@dataclass(frozen=True, order=True)
class Cell:
    """Transcript × condition × temperature, by name."""

    transcript: str
    condition: str
    temperature: float

    def __post_init__(self) -> None:
        checked_name("transcript", self.transcript)
        checked_name("condition", self.condition)
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= 100.0):
            raise UsageError(f"temperature is {self.temperature}", mend="Use a number from 0 (greedy) to 100.")

    def __str__(self) -> str:
        return f"{self.transcript}/{self.condition}/T{self.temperature:g}"


@dataclass(frozen=True, order=True)
class Rollout:
    """One sampled conversation: the unit of storage, of scheduling and of inference."""

    cell: Cell
    sample: int

    def __str__(self) -> str:
        return f"{self.cell}/{self.sample:04d}"


class Finish(StrEnum):
    """Why a reply, or a rollout, ended."""

    STOP = "stop"
    """The model ended its reply."""
    LENGTH = "length"
    """The reply reached the number of new tokens allowed."""
    CONTEXT = "context"
    """The prompt and a full reply no longer fit the model's context (or memory): no reply was made and the rollout ends here."""
    TEMPLATE = "template"
    """The chat template fails on the conversation so far, or does not render it as it is: no reply was made and the rollout ends here."""
    COMPLETE = "complete"
    """Of a rollout: every user turn of the transcript was answered."""


class SegmentKind(StrEnum):
    """What a part of a reply is."""

    REASONING = "reasoning"
    """What the model thinks before it answers (a `<think>` block, a harmony analysis channel)."""
    ANSWER = "answer"
    """What it says to the user."""


@dataclass(frozen=True)
class Segment:
    """A part of a reply: tokens `start` to before `stop` of the reply's ids. The markup around a part belongs to none."""

    kind: SegmentKind
    start: int
    stop: int


class Part(StrEnum):
    """What of a reply a residual mean is over: `--segment`."""

    ANSWER = "answer"
    """The tokens of the answer; all of them where the reply has no segments."""
    REASONING = "reasoning"
    """The tokens of the reasoning."""
    ALL = "all"
    """Every token but the end-of-turn token: reasoning, answer, and the markup around them."""

    @property
    def words(self) -> str:
        """For a sentence: `the answer`."""
        return {Part.ANSWER: "the answer", Part.REASONING: "the reasoning", Part.ALL: "reasoning and answer together"}[self]


def spans(segments: Sequence[Segment], part: Part) -> tuple[tuple[int, int], ...]:
    """First and past-the-last token of each segment of a part (`ALL`: of both), empty ones left out, in order."""
    return tuple((s.start, s.stop) for s in segments if part in (Part.ALL, s.kind.value) and s.stop > s.start)


@dataclass(frozen=True)
class Answered:
    """A turn that has its reply."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    """Of the reply, as sampled, its end-of-turn token included."""
    length: int
    """How many of them count: all but the end-of-turn token."""
    segments: tuple[Segment, ...] = ()
    """Where reasoning and answer are in them; () where the reply is all answer."""

    @property
    def content(self) -> tuple[int, ...]:
        """The ids that count."""
        return self.ids[: self.length]


@dataclass(frozen=True)
class Turn:
    """One committed user message and its reply. What a run imported from elsewhere does not know is None."""

    index: int
    """1 for the first."""
    text: str
    finish: Finish
    ids: tuple[int, ...] | None = None
    """The reply's token ids as sampled, its end-of-turn token included."""
    prompt_length: int | None = None
    prompt_hash: str | None = None
    """SHA-256 (first 32 hex digits) of the prompt's token ids as little-endian int32."""
    residual: np.ndarray[Any, Any] | None = field(default=None, compare=False, repr=False)
    """(layers, width) float32: mean over the answer's tokens of `hidden_states[l]` for each stored layer. The answer is the whole reply, end-of-turn token
    excluded, unless there are segments. None where it has no token."""
    projections: Mapping[str, float] = field(default_factory=dict)
    """Axis name → dot product of the residual mean with the unit axis."""
    segments: tuple[Segment, ...] = ()
    """Where in `ids` reasoning and answer are; () where the reply is all answer. `text` is the answer's."""
    reasoning: str | None = None
    """The reasoning's text; None where there is none."""
    means: Mapping[Part, np.ndarray[Any, Any]] = field(default_factory=dict, compare=False, repr=False)
    """Of a reply with segments: residual means, as `residual`, of `REASONING` and `ALL`, where there are such tokens."""
    user: str | None = None
    """The user's text as it was put, without the condition's prompt. None in lines of format 1, where only the transcript has it."""

    def mean(self, part: Part) -> np.ndarray[Any, Any] | None:
        """(layers, width) float32 of one part; None where it has no token, or where residual means were not read."""
        if part is Part.ANSWER or (part is Part.ALL and not self.segments):
            return self.residual
        return self.means.get(part)

    @property
    def answered(self) -> bool:
        """Whether the reply has an answer. One that is all reasoning, as the length limit was reached before the answer, has none."""
        return not self.segments or bool(spans(self.segments, Part.ANSWER))
