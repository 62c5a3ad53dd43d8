"""One line of a rollout's file: a committed turn, or the rollout's end.

A line is compact JSON whose last two keys seal it: `prev`, the first 32 hex digits of the SHA-256 of the line before (without its newline), and `crc`, the
CRC-32 of every byte before `,"crc"`. For the first line, the line before is a text that names run, cell and sample, so that a file that was moved is found
out. Nothing in a line depends on the time or the machine.

A turn whose reply has segments has three keys more: the reasoning's text, where reasoning and answer are in its ids, and where the residual means of the
reasoning and of all tokens are (`text`, `residual` and `projections` are the answer's). Other turns' lines are as they were before there were segments.

Two formats. Lines of format 2 hold the user's text as it was put (`user`), so that a line says by itself what was answered, and so that a user whose turns no
script knows can be replayed. Lines of format 1 do not have it; they are read for ever and never rewritten. A run's manifest says which of the two its lines
are, and a file has lines of one format only.

Bytes in, dataclasses out, and back. What is not a line that `encode` could have written raises `Malformed`; which file and where, the caller knows.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import orjson

from drift_cli.segments import Part, Segment, spans
from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store import fields
from drift_cli.store.decode import Malformed, parse
from drift_cli.store.paths import temperature_name

LINES = 2
"""The format in which new runs are begun."""
LIMIT = 64 << 20
"""Bytes. No line is longer; a file without a line end for so long is not read into memory."""

_SEAL = len(',"crc":"01234567"}')
_TURN = ("turn", "finish", "text", "ids", "prompt_length", "prompt_hash", "residual", "projections", "epoch", "prev", "crc")
_SEGMENTED = (*_TURN[:3], "reasoning", "segments", *_TURN[3:7], "means", *_TURN[7:])
_KEYS = {(*form[:2], *user, *form[2:]): None for form in (_TURN, _SEGMENTED) for user in ((), ("user",))}
"""The keys that a turn's line may have: in format 2 with the user's text in front of the reply's."""
_END = ("end", "turn", "prompt_length", "epoch", "prev", "crc")
_TURN_NUMBER = re.compile(rb'\{"turn":([1-9][0-9]{0,8}),"finish":')
_RESIDUAL = ("offset", "shape", "crc")
_MEANS = (Part.REASONING, Part.ALL)
"""Parts of a reply with segments whose residual means stand behind the answer's, in this order."""
_REPLY = {finish.value: finish for finish in (Finish.STOP, Finish.LENGTH)}
_ENDS = {finish.value: finish for finish in (Finish.COMPLETE, Finish.CONTEXT, Finish.TEMPLATE)}


@dataclass(frozen=True)
class End:
    """How a rollout ended: every turn answered (`COMPLETE`), the next one does not fit (`CONTEXT`), or the chat template has no prompt for it (`TEMPLATE`)."""

    finish: Finish
    turn: int
    """The last turn answered; for `CONTEXT` and `TEMPLATE` the turn that has no reply."""
    prompt_length: int | None
    """For `CONTEXT`, the tokens of the prompt that did not fit."""


@dataclass(frozen=True)
class Stored:
    """Where a turn's residual means are in the rollout's .f32 file."""

    offset: int
    """Bytes."""
    shape: tuple[int, int]
    """(layers, width)."""
    crc: tuple[str, ...]
    """CRC-32 (8 hex digits) of each layer's bytes, so that one layer can be read, and checked, alone."""

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return self.shape[0] * self.row_size

    @property
    def row_size(self) -> int:
        """Bytes of one layer."""
        return self.shape[1] * 4


@dataclass(frozen=True)
class TurnLine:
    """A committed turn (without its residual means), where those are, and the index of the versions it was made with."""

    turn: Turn
    stored: Stored | None
    """The answer's: the whole reply's where it has no segments."""
    epoch: int
    means: Mapping[Part, Stored] = field(default_factory=dict)
    """Of a reply with segments: of its reasoning and of all its tokens, where there are such."""

    @property
    def blocks(self) -> tuple[tuple[Part, Stored], ...]:
        """Everything that is stored of it, in the order of the file."""
        answer = () if self.stored is None else ((Part.ANSWER, self.stored),)
        return (*answer, *((part, self.means[part]) for part in _MEANS if part in self.means))

    @property
    def size(self) -> int:
        """Bytes of all its residual means."""
        return sum(stored.size for _, stored in self.blocks)

    def of(self, part: Part) -> Stored | None:
        """Where a part's mean is; None where it has none. A reply without segments is all answer."""
        if part is Part.ANSWER or (part is Part.ALL and not self.turn.segments):
            return self.stored
        return self.means.get(part)


@dataclass(frozen=True)
class EndLine:
    """The end of a rollout."""

    end: End
    epoch: int


Line = TurnLine | EndLine


def first_link(run_id: str, rollout: Rollout) -> str:
    """`prev` of a file's first line: it binds the file to its place."""
    cell = rollout.cell
    place = f"drift-rollout-1\n{run_id}\n{cell.transcript}\n{cell.condition}\n{temperature_name(cell.temperature)}\n{rollout.sample}"
    return link(place.encode())


def link(line: bytes) -> str:
    """`prev` of the line after `line`, which comes without its newline."""
    return hashlib.sha256(line).hexdigest()[:32]


def encode(content: Line, prev: str) -> bytes:
    """The line, without its newline.

    Raises:
        Malformed: the content cannot be stored without loss (lone surrogates, say) or could not be read back.
    """
    try:
        body = orjson.dumps(_turn_body(content) if isinstance(content, TurnLine) else _end_body(content))
    except orjson.JSONEncodeError as error:
        raise Malformed(str(error)) from None
    covered = body[:-1] + b',"prev":"%s"' % prev.encode()
    line = covered + _seal(covered)
    if len(line) >= LIMIT:
        raise Malformed(f"its line would have {len(line)} bytes; the limit is {LIMIT}")
    if read(line) != (content, prev):
        raise Malformed("it would not be read back as it is")
    return line


def plain(turn: Turn) -> Turn:
    """The same turn in plain Python numbers, its projections in the order of their names, without its residual means."""
    return replace(
        turn,
        ids=None if turn.ids is None else tuple(map(operator.index, turn.ids)),
        projections={name: float(turn.projections[name]) for name in sorted(turn.projections)},
        segments=tuple(Segment(s.kind, operator.index(s.start), operator.index(s.stop)) for s in turn.segments),
        residual=None,
        means={},
    )


def read(line: bytes) -> tuple[Line, str]:
    """A line, without its newline, and its `prev`. Raises `Malformed`."""
    if line[-_SEAL:] != _seal(line[:-_SEAL]):
        raise Malformed("its checksum does not match its content")
    body = parse(line)
    if not isinstance(body, dict):
        raise Malformed("not a line of a rollout")
    keys = tuple(body)
    if keys in _KEYS:
        return _read_turn(body), _read_prev(body)
    if keys == _END:
        return _read_end(body), _read_prev(body)
    raise Malformed(f"its keys are neither a turn's nor an end's: {', '.join(map(repr, keys))}")


def read_state(line: bytes) -> tuple[int, End | None]:
    """Turns up to and with a line, without its newline, and the end if it is one. Of a turn, only checksum and number are read. Raises `Malformed`."""
    number = _TURN_NUMBER.match(line)
    if number is not None and line[-_SEAL:] == _seal(line[:-_SEAL]):
        return int(number[1]), None
    content, _ = read(line)
    if isinstance(content, TurnLine):
        return content.turn.index, None
    return content.end.turn - (content.end.finish is not Finish.COMPLETE), content.end


def _seal(covered: bytes) -> bytes:
    return b',"crc":"%08x"}' % crc32(covered)


def _turn_body(content: TurnLine) -> dict[str, Any]:
    turn = content.turn
    body = {
        "turn": turn.index,
        "finish": turn.finish.value,
        "user": turn.user,
        "text": turn.text,
        "reasoning": turn.reasoning,
        "segments": [{"kind": s.kind.value, "start": s.start, "stop": s.stop} for s in turn.segments],
        "ids": turn.ids,
        "prompt_length": turn.prompt_length,
        "prompt_hash": turn.prompt_hash,
        "residual": _stored_body(content.stored),
        "means": {part.value: _stored_body(content.means.get(part)) for part in _MEANS},
        "projections": turn.projections,
        "epoch": content.epoch,
    }
    left_out = {*(() if turn.segments else ("reasoning", "segments", "means")), *(("user",) if turn.user is None else ())}
    return {key: value for key, value in body.items() if key not in left_out}


def _stored_body(stored: Stored | None) -> dict[str, Any] | None:
    return None if stored is None else {"offset": stored.offset, "shape": stored.shape, "crc": stored.crc}


def _end_body(content: EndLine) -> dict[str, Any]:
    end = content.end
    return {"end": end.finish.value, "turn": end.turn, "prompt_length": end.prompt_length, "epoch": content.epoch}


def _read_turn(body: Mapping[str, Any]) -> TurnLine:
    turn = Turn(
        index=fields.count(body, "turn", least=1),
        text=fields.text(body, "text"),
        finish=fields.one_of(body, "finish", _REPLY),
        ids=None if body["ids"] is None else fields.token_ids(body["ids"]),
        prompt_length=None if body["prompt_length"] is None else fields.count(body, "prompt_length"),
        prompt_hash=None if body["prompt_hash"] is None else fields.text(body, "prompt_hash"),
        projections=fields.projections(body["projections"]),
        user=fields.text(body, "user") if "user" in body else None,
    )
    line = TurnLine(turn, None if body["residual"] is None else _stored(body["residual"]), fields.count(body, "epoch"))
    return _with_segments(line, body) if "segments" in body else line


def _with_segments(line: TurnLine, body: Mapping[str, Any]) -> TurnLine:
    """A line with what a reply with segments has more."""
    reasoning = None if body["reasoning"] is None else fields.text(body, "reasoning")
    turn = replace(line.turn, segments=fields.segments(body["segments"], line.turn.ids), reasoning=reasoning)
    if type(body["means"]) is not dict or tuple(body["means"]) != _MEANS:
        raise Malformed(f"its keys are not {', '.join(_MEANS)}", "means")
    means = {part: _stored(body["means"][part], f"means.{part}") for part in _MEANS if body["means"][part] is not None}
    made = replace(line, turn=turn, means=means)
    for part, _ in made.blocks:
        if part is not Part.ALL and not spans(turn.segments, part):
            raise Malformed(f"it has residual means of its {part}, of which it has no token")
    if turn.projections and not turn.answered:
        raise Malformed("it has projections, which are of an answer, and no answer")
    return made


def _read_end(body: Mapping[str, Any]) -> EndLine:
    length = None if body["prompt_length"] is None else fields.count(body, "prompt_length")
    return EndLine(End(fields.one_of(body, "end", _ENDS), fields.count(body, "turn"), length), fields.count(body, "epoch"))


def _read_prev(body: Mapping[str, Any]) -> str:
    return fields.text(body, "prev")


def _stored(value: Any, at: str = "residual") -> Stored:
    if type(value) is not dict or tuple(value) != _RESIDUAL:
        raise Malformed(f"its keys are not {', '.join(_RESIDUAL)}", at)
    shape, crc = value["shape"], value["crc"]
    if type(shape) is not list or len(shape) != 2 or not all(type(size) is int and 0 < size < 2**31 for size in shape):
        raise Malformed("not two positive whole numbers", f"{at}.shape")
    if type(crc) is not list or len(crc) != shape[0] or not all(type(item) is str for item in crc):
        raise Malformed(f"not {shape[0]} checksums", f"{at}.crc")
    return Stored(fields.count(value, "offset"), (shape[0], shape[1]), tuple(crc))
