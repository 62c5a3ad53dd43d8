"""The reference line: projections of replies that somebody else's model gave, measured by a forward pass of ours over the finished conversation.

Stored as JSON: {"transcript", "axis", "axis_digest", "layer", "model", "revision", "projections": [number or null, …], "note"}; a plain list of numbers
and nulls is read as well.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from drift_cli.errors import DriftError, UsageError
from drift_cli.spec import Condition, Transcript

if TYPE_CHECKING:
    from drift_cli.axes import Axis
    from drift_cli.chat import Chat
    from drift_cli.models import LoadedModel


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

    def to_json(self) -> bytes:
        """The file's content."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n"


def read(path: Path) -> ReferenceLine:
    """Read a reference file; `DriftError` names what is wrong with it."""
    try:
        found = orjson.loads(path.read_bytes())
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
    )


def measure_replies(script: Transcript, chat: Chat, model: LoadedModel, axis: Axis, layer: int) -> ReferenceLine:
    """Project every reply of a transcript, each in the conversation before it, without a system prompt.

    Replies beyond the model's context are left out (None) and named in the note: nothing is truncated.
    """
    from drift_cli.chat import Dialogue
    from drift_cli.engine.reference import measure
    from drift_cli.probe import project

    if script.replies is None:
        raise UsageError(f"transcript {script.name} has no replies to measure", mend="Give a finished conversation, with both sides.")
    dialogue = Dialogue(chat, script.users, Condition("reference"), model.card.end_ids)
    projections: list[float | None] = []
    beyond = []
    for turn, reply in enumerate(script.replies, 1):
        if dialogue.problem is not None:
            raise DriftError(f"the reply to turn {turn} of {script.name} cannot be measured: {dialogue.problem}")
        ids = [int(i) for i in model.card.tokenizer.encode(reply, add_special_tokens=False)]
        if len(dialogue.prompt) + len(ids) > model.card.context:
            beyond.append(turn)
        if beyond or not ids:
            projections.append(None)
        else:
            residual = measure(model, [*dialogue.prompt, *ids], len(dialogue.prompt), len(ids), [layer])
            projections.append(project(residual[0], axis.at(layer)))
        if not beyond:
            dialogue.advance(ids, given=True)
    note = f"turns from {beyond[0]} on do not fit the context of {model.card.context} tokens" if beyond else None
    return ReferenceLine(script.name, axis.name, axis.digest, layer, model.card.name, model.card.identity, tuple(projections), note)
