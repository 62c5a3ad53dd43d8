"""One line of a rollout's file: a committed turn, or the rollout's end.

A line is compact JSON whose last two keys seal it: `prev`, the first 32 hex digits of the SHA-256 of the line before (without its newline), and `crc`, the
CRC-32 of every byte before `,"crc"`. For the first line, the line before is a text that names run, cell and sample, so that a file that was moved is found
out. Nothing in a line depends on the time or the machine.

Bytes in, dataclasses out, and back. What is not a line that `encode` could have written raises `Malformed`; which file and where, the caller knows.
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import orjson

from drift_cli.spec import Finish, Rollout, Turn
from drift_cli.store.decode import Malformed, parse
from drift_cli.store.paths import temperature_name

LIMIT = 64 << 20
"""Bytes. No line is longer; a file without a line end for so long is not read into memory."""

_SEAL = len(',"crc":"01234567"}')
_TURN = ("turn", "finish", "text", "ids", "prompt_length", "prompt_hash", "residual", "projections", "epoch", "prev", "crc")
_END = ("end", "turn", "prompt_length", "epoch", "prev", "crc")
_TURN_NUMBER = re.compile(rb'\{"turn":([1-9][0-9]{0,8}),"finish":')
_RESIDUAL = ("offset", "shape", "crc")
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
    """A committed turn (`residual` None), where its residual means are, and the index of the versions it was made with."""

    turn: Turn
    stored: Stored | None
    epoch: int


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
    """The same turn in plain Python numbers, its projections in the order of their names, without its residual."""
    return replace(
        turn,
        ids=None if turn.ids is None else tuple(map(operator.index, turn.ids)),
        projections={name: float(turn.projections[name]) for name in sorted(turn.projections)},
        residual=None,
    )


def read(line: bytes) -> tuple[Line, str]:
    """A line, without its newline, and its `prev`. Raises `Malformed`."""
    if line[-_SEAL:] != _seal(line[:-_SEAL]):
        raise Malformed("its checksum does not match its content")
    body = parse(line)
    if not isinstance(body, dict):
        raise Malformed("not a line of a rollout")
    keys = tuple(body)
    if keys == _TURN:
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
    turn, stored = content.turn, content.stored
    return {
        "turn": turn.index,
        "finish": turn.finish.value,
        "text": turn.text,
        "ids": turn.ids,
        "prompt_length": turn.prompt_length,
        "prompt_hash": turn.prompt_hash,
        "residual": None if stored is None else {"offset": stored.offset, "shape": stored.shape, "crc": stored.crc},
        "projections": turn.projections,
        "epoch": content.epoch,
    }


def _end_body(content: EndLine) -> dict[str, Any]:
    end = content.end
    return {"end": end.finish.value, "turn": end.turn, "prompt_length": end.prompt_length, "epoch": content.epoch}


def _read_turn(body: Mapping[str, Any]) -> TurnLine:
    turn = Turn(
        index=_count(body, "turn", least=1),
        text=_text(body, "text"),
        finish=_one_of(body, "finish", _REPLY),
        ids=None if body["ids"] is None else _ids(body["ids"]),
        prompt_length=None if body["prompt_length"] is None else _count(body, "prompt_length"),
        prompt_hash=None if body["prompt_hash"] is None else _text(body, "prompt_hash"),
        projections=_projections(body["projections"]),
    )
    return TurnLine(turn, None if body["residual"] is None else _stored(body["residual"]), _count(body, "epoch"))


def _read_end(body: Mapping[str, Any]) -> EndLine:
    length = None if body["prompt_length"] is None else _count(body, "prompt_length")
    return EndLine(End(_one_of(body, "end", _ENDS), _count(body, "turn"), length), _count(body, "epoch"))


def _read_prev(body: Mapping[str, Any]) -> str:
    return _text(body, "prev")


def _count(body: Mapping[str, Any], key: str, least: int = 0) -> int:
    value = body[key]
    if type(value) is not int or value < least:
        raise Malformed(f"not a whole number from {least} on", key)
    return value


def _text(body: Mapping[str, Any], key: str) -> str:
    if type(body[key]) is not str:
        raise Malformed("not text", key)
    return str(body[key])


def _one_of(body: Mapping[str, Any], key: str, choices: Mapping[str, Finish]) -> Finish:
    if type(body[key]) is not str or body[key] not in choices:
        raise Malformed(f"none of {', '.join(choices)}", key)
    return choices[body[key]]


def _ids(value: Any) -> tuple[int, ...]:
    # Whole-list operations: there are hundreds of ids in a turn, and hundreds of thousands of turns in a large run.
    if type(value) is not list or not set(map(type, value)) <= {int} or (value and not (min(value) >= 0 and max(value) < 2**31)):
        raise Malformed("not a list of token ids", "ids")
    return tuple(value)


def _projections(value: Any) -> dict[str, float]:
    if type(value) is not dict or not all(type(item) is float and math.isfinite(item) for item in value.values()):
        raise Malformed("not finite numbers by name", "projections")
    return value


def _stored(value: Any) -> Stored:
    if type(value) is not dict or tuple(value) != _RESIDUAL:
        raise Malformed(f"its keys are not {', '.join(_RESIDUAL)}", "residual")
    shape, crc = value["shape"], value["crc"]
    if type(shape) is not list or len(shape) != 2 or not all(type(size) is int and 0 < size < 2**31 for size in shape):
        raise Malformed("not two positive whole numbers", "residual.shape")
    if type(crc) is not list or len(crc) != shape[0] or not all(type(item) is str for item in crc):
        raise Malformed(f"not {shape[0]} checksums", "residual.crc")
    return Stored(_count(value, "offset"), (shape[0], shape[1]), tuple(crc))
