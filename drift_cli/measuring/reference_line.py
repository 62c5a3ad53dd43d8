"""The reference line: projections of replies that somebody else's model gave, measured by a forward pass of ours over the finished conversation.

Stored as JSON: {"transcript", "axis", "axis_digest", "layer", "model", "revision", "projections": [number or null, …], "note"}; a plain list of numbers
and nulls is read as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from drift_cli.engine.passages import Passage, Reply, passages
from drift_cli.errors import DriftError, UsageError
from drift_cli.files import read_regular
from drift_cli.pool import MEAN, Pool
from drift_cli.segments import Segment, SegmentKind
from drift_cli.spec import Condition, Transcript

if TYPE_CHECKING:
    from drift_cli.axis import Axis
    from drift_cli.chat import Chat
    from drift_cli.models import LoadedModel, ModelCard
    from drift_cli.store.run import Run


@dataclass(frozen=True)
class ReferenceLine:
    """One projection per turn, None where it could not be measured."""

    transcript: str
    axis: str
    axis_digest: str | None
    layer: int | None
    model: str | None
    revision: str | None
    projections: tuple[float | None, ...]
    note: str | None = None
    pool: str = "mean"
    """Which tokens stand for a reply, see `pool.Pool`."""

    def to_json(self) -> bytes:
        """The file's content."""
        fields = asdict(self)
        if self.pool == "mean":
            del fields["pool"]
        return orjson.dumps(fields, option=orjson.OPT_INDENT_2) + b"\n"


def read(path: Path) -> ReferenceLine:
    """Read a reference file; `DriftError` names what is wrong with it."""
    try:
        found = orjson.loads(read_regular(path, 64 << 20))
    except FileNotFoundError:
        raise DriftError(f"{path} does not exist", mend="`drift measure --transcript FILE --axis A` makes a reference line.") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise DriftError(f"{path} cannot be read as JSON: {error}") from error
    fields = found if isinstance(found, dict) else {"projections": found}
    values = fields.get("projections")
    if not isinstance(values, list) or not all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values):
        raise DriftError(f"{path} holds no list of projections (numbers or null, one per turn)")
    if any(v is not None and not math.isfinite(v) for v in values):
        raise DriftError(f"{path} holds a projection that is not finite")

    def text(key: str) -> Any:
        return fields.get(key)

    return ReferenceLine(
        transcript=text("transcript") or path.stem,
        axis=text("axis") or "",
        axis_digest=text("axis_digest"),
        layer=text("layer"),
        model=text("model"),
        revision=text("revision"),
        projections=tuple(None if v is None else float(v) for v in values),
        note=text("note"),
        pool=text("pool") or "mean",
    )


def check_pool(line: ReferenceLine, run: Run) -> None:
    """Refuse to hold a line against a run whose replies are stood for by other tokens."""
    if line.pool != run.manifest.pool:
        theirs, ours = Pool.of(line.pool).words, Pool.of(run.manifest.pool).words
        raise UsageError(
            f"the reference line of {line.transcript} stands for a reply by {theirs}, run {run.paths.run_id} by {ours}: they cannot be compared",
            mend=f"Measure it with the run: drift measure {run.paths.run_id} --transcript FILE",
        )


@dataclass(frozen=True)
class Reading:
    """What of a finished conversation can be measured, known before any weight is read."""

    script: Transcript
    passages: tuple[Passage, ...]
    """What is to be encoded."""
    beyond: tuple[int, ...]
    """Turns that do not fit the context."""
    empty: tuple[int, ...]
    """Turns whose reply has no token of an answer."""
    context: int
    """The model's, in tokens."""
    pool: Pool = MEAN
    apart: bool = False
    """Each reply has a forward pass of its own, as the model's rotary embeddings depend on the conversation's length."""

    @property
    def tokens(self) -> int:
        """Tokens to encode."""
        return sum(len(passage.ids) - passage.kept for passage in self.passages)

    @property
    def note(self) -> str | None:
        """Which turns have no value, and why, in words."""
        said = []
        if self.beyond:
            said.append(f"{_turns(self.beyond)} {'does' if len(self.beyond) == 1 else 'do'} not fit the context of {self.context} tokens")
        if self.empty:
            said.append(f"{_turns(self.empty)} {'has' if len(self.empty) == 1 else 'have'} no token of an answer")
        return "; ".join(said) or None


def _turns(numbers: Sequence[int]) -> str:
    """`turn 3`, `turns 3 to 5`, `turns 3, 5`."""
    if len(numbers) == 1:
        return f"turn {numbers[0]}"
    whole = tuple(numbers) == tuple(range(numbers[0], numbers[-1] + 1))
    return f"turns {numbers[0]} to {numbers[-1]}" if whole else f"turns {', '.join(map(str, numbers))}"


def plan(script: Transcript, chat: Chat, card: ModelCard, pool: Pool = MEAN) -> Reading:
    """Find out what of a transcript's replies can be measured, each in the conversation before it, without a system prompt.

    Raises:
        UsageError: the transcript has no replies, or none that can be measured.
    """
    from drift_cli.engine.rotary import length_threshold

    if script.replies is None:
        raise UsageError(f"transcript {script.name} has no replies to measure", mend="Give a finished conversation, with both sides.")
    replies, beyond, empty = _placed(script, chat, card, pool)
    longest = max((len(reply.prompt) + len(reply.ids) for reply in replies), default=0)
    limit = length_threshold(card)
    apart = limit is not None and longest > limit
    found = Reading(script, tuple(passages(replies, apart=apart)), tuple(beyond), tuple(empty), card.context, pool, apart)
    if not replies:
        raise UsageError(
            f"no reply of transcript {script.name} can be measured: {found.note}",
            mend="Use a model with a longer context, or another transcript.",
        )
    return found


def _placed(script: Transcript, chat: Chat, card: ModelCard, pool: Pool) -> tuple[list[Reply], list[int], list[int]]:
    """The replies that can be measured, the turns that do not fit the context, and those without a token."""
    from drift_cli.chat import scripted

    talk = scripted(chat, script.users, Condition("reference"), card.end_ids)
    replies, beyond, empty = [], [], []
    for turn, text in enumerate(script.replies or (), 1):
        ids = [int(i) for i in card.tokenizer.encode(text, add_special_tokens=False)]
        content = tuple(talk.content(ids))
        # A reply that was written by somebody else has reasoning where it has the markup of it, and never because this model's prompt begins some.
        marked = chat.parts(content, ()).reasoning is not None
        parts = pool.within(_answer(talk.parts(ids).segments if marked else (), len(content)))
        if len(talk.prompt) + len(ids) > card.context:
            beyond.append(turn)
        elif not parts:
            empty.append(turn)
        else:
            replies.append(Reply(turn, talk.prompt, content, parts))
        talk = talk.after(ids, given=not marked)
    return replies, beyond, empty


def _answer(segments: Sequence[Segment], length: int) -> tuple[tuple[int, int], ...]:
    """The parts of a reply of `length` tokens that are measured: its answer, which is all of it where it has no segments."""
    if not segments:
        return ((0, length),) if length else ()
    return tuple((part.start, part.stop) for part in segments if part.kind is SegmentKind.ANSWER and part.stop > part.start)


def measure_replies(
    script: Transcript,
    chat: Chat,
    model: LoadedModel,
    axis: Axis,
    layer: int,
    *,
    reading: Reading | None = None,
    step: Callable[[int], object] = lambda done: None,
) -> ReferenceLine:
    """Project every reply of a transcript, each in the conversation before it, without a system prompt. Every token is encoded once, where model and template
    allow it.

    Replies beyond the model's context are left out (None) and named in the note: nothing is truncated.

    Args:
        script: a finished conversation.
        chat: the model's chat format.
        model: the model that reads it.
        axis: what is projected on.
        layer: at which of its layers.
        reading: what `plan` found, where it was asked before.
        step: told how many tokens have been encoded so far.

    Raises:
        UsageError: as `plan`.
    """
    from drift_cli.engine.prefill import Prefill

    found = reading or plan(script, chat, model.card)
    prefill = Prefill(model, [layer], step, whole=found.apart)
    values = {turn: float(axis.project(means[0], layer)) for turn, means in prefill.means(found.passages)}
    projections = tuple(values.get(turn) for turn in range(1, len(script.users) + 1))
    return ReferenceLine(
        script.name, axis.name, axis.digest, layer, model.card.name, model.card.identity, projections, found.note, str(found.pool)
    )
