"""A rollout's token traces: the projection of every token of its replies on one axis at one layer. Derived from what is stored, by a forward pass: they can
be deleted and measured again.

One file per rollout and axis, written whole: a line of JSON, then for each turn float16 projections, then lengths of its tokens' texts in characters (uint8,
uint16 or uint32), little-endian. The line says what the file belongs to (run, rollout, axis, layer, digest) and of each turn its tokens' number, the checksum
of the ids that were measured, the power of two that its float16s are multiplied with, and the bytes of a length; its last key is the checksum of everything
else. float16 keeps 11 significant bits: enough for a colour, not for statistics, which stand on the residual means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from zlib import crc32

import numpy as np
import orjson
from numpy.typing import NDArray

from drift_cli.errors import StoreError
from drift_cli.files import atomic_write
from drift_cli.spec import Part, Rollout, Segment, SegmentKind, Turn
from drift_cli.store.decode import Malformed, decode, parse
from drift_cli.store.files import create_inside, read_inside, sync_folders
from drift_cli.store.manifest import AxisEntry
from drift_cli.store.paths import RunPaths

FORMAT = "drift-traces-1"
_LIMIT = 1 << 30
_LARGEST = 60000.0
"""Just below float16's largest number; beyond it a turn's projections are halved until they fit."""
_SEAL = len(',"crc":"01234567"}')


@dataclass(frozen=True, eq=False)
class TokenTrace:
    """A reply's tokens, its end-of-turn token left out."""

    turn: int
    """1 for the first."""
    values: NDArray[np.float32]
    """(tokens,): projections, in the axis's units."""
    lengths: tuple[int, ...]
    """(tokens,): characters of the reply's text that each token adds; 0 for one that is only part of a character. A token of a segment adds to that
    segment's text, one of the markup around segments to none."""

    def of(self, turn: Turn, part: Part = Part.ANSWER) -> tuple[list[str], NDArray[np.float32]]:
        """The texts (n) and projections (n,) of a part's tokens, in order; `turn` is the one that was traced."""
        texts, read = _texts(turn), dict.fromkeys(SegmentKind, 0)
        pieces, places = [], []
        for segment in _segments(turn, len(self.values)):
            for place in range(segment.start, segment.stop):
                start = read[segment.kind]
                read[segment.kind] = stop = start + self.lengths[place]
                if part in (Part.ALL, segment.kind.value):
                    pieces.append(texts[segment.kind][start:stop])
                    places.append(place)
        return pieces, self.values[np.array(places, dtype=np.intp)]

    def fits(self, turn: Turn) -> bool:
        """Whether its tokens' texts add up to the reply's."""
        lengths = dict.fromkeys(SegmentKind, 0)
        for segment in _segments(turn, len(self.lengths)):
            lengths[segment.kind] += sum(self.lengths[segment.start : segment.stop])
        return (
            turn.index == self.turn
            and len(self.lengths) == len(self.values)
            and sum(self.lengths) == sum(lengths.values())
            and all(lengths[kind] == len(text) for kind, text in _texts(turn).items())
        )


def _texts(turn: Turn) -> dict[SegmentKind, str]:
    return {SegmentKind.ANSWER: turn.text, SegmentKind.REASONING: turn.reasoning or ""}


def _segments(turn: Turn, tokens: int) -> tuple[Segment, ...]:
    """A reply's segments: one answer, where it has none."""
    return turn.segments or (Segment(SegmentKind.ANSWER, 0, tokens),)


@dataclass(frozen=True)
class _Head:
    """What the file's line says of one turn."""

    turn: int
    tokens: int
    ids: str
    scale: float
    length: int
    """Bytes of each length."""

    @property
    def size(self) -> int:
        """Bytes of the turn's projections and lengths."""
        return self.tokens * (2 + self.length)


@dataclass(frozen=True)
class _Header:
    format: str
    run: str
    rollout: str
    axis: str
    layer: int
    digest: str
    turns: tuple[_Head, ...]


def write_traces(paths: RunPaths, rollout: Rollout, axis: AxisEntry, turns: Sequence[Turn], traces: Sequence[TokenTrace]) -> None:
    """Replace a rollout's traces on an axis by these, which were measured on `turns`. Raises `StoreError`, `ValueError` where they do not fit a turn."""
    heads, body = [], []
    for turn, trace in zip(turns, traces, strict=True):
        if not trace.fits(turn):
            raise ValueError(f"{rollout}: the traces of turn {trace.turn} do not fit the reply")
        scale = _scale(trace.values)
        longest = max(trace.lengths, default=0)
        length = 1 if longest < 1 << 8 else 2 if longest < 1 << 16 else 4
        heads.append(_Head(turn.index, len(trace.lengths), _ids(turn), scale, length))
        body += [(trace.values / scale).astype("<f2").tobytes(), np.asarray(trace.lengths, dtype=f"<u{length}").tobytes()]
    header = _Header(FORMAT, paths.run_id, str(rollout), axis.name, axis.layer, axis.digest, tuple(heads))
    path, data = paths.traces(rollout, axis.name), b"".join(body)
    line = orjson.dumps(asdict(header))[:-1]
    create_inside(paths.root, path.parent)
    sync_folders(paths.root, path.parent)
    atomic_write(path, line + _seal(line, data) + b"\n" + data)


def read_traces(paths: RunPaths, rollout: Rollout, axis: AxisEntry, turns: Sequence[Turn]) -> Mapping[int, TokenTrace]:
    """A rollout's traces by turn; none where none were measured.

    Raises `StoreError` where the file is damaged, or was measured on other replies or another axis than the run has now.
    """
    path = paths.traces(rollout, axis.name)
    try:
        data = read_inside(paths.root, path, _LIMIT)
    except FileNotFoundError:
        return {}
    mend = f"Delete it and measure again: drift measure {paths.run_id} --axis {axis.name} --traces"
    try:
        header, body = _read(data)
        _check(header, paths, rollout, axis)
        return {trace.turn: trace for trace in _turns(header, body, turns)}
    except Malformed as error:
        raise StoreError(f"{path}: {error}", mend=mend) from None


def _read(data: bytes) -> tuple[_Header, bytes]:
    line, newline, body = data.partition(b"\n")
    if not newline or line[-_SEAL:] != _seal(line[:-_SEAL], body):
        raise Malformed("its checksum does not match its content")
    value = parse(line)
    if not isinstance(value, dict) or value.pop("crc", None) is None:
        raise Malformed("it has no header")
    return decode(_Header, value), body


def _check(header: _Header, paths: RunPaths, rollout: Rollout, axis: AxisEntry) -> None:
    found = (header.format, header.run, header.rollout, header.axis, header.layer, header.digest)
    wanted = (FORMAT, paths.run_id, str(rollout), axis.name, axis.layer, axis.digest)
    for is_, should in zip(found, wanted, strict=True):
        if is_ != should:
            raise Malformed(f"it was measured for {is_}, not for {should}")


def _turns(header: _Header, body: bytes, turns: Sequence[Turn]) -> Iterator[TokenTrace]:
    if any(head.tokens < 0 or head.length not in (1, 2, 4) for head in header.turns) or len(body) != sum(
        head.size for head in header.turns
    ):
        raise Malformed("its length is not what its header says")
    by_index = {turn.index: turn for turn in turns}
    offset = 0
    for head in header.turns:
        values = np.frombuffer(body, "<f2", head.tokens, offset).astype(np.float32) * np.float32(head.scale)
        lengths = np.frombuffer(body, f"<u{head.length}", head.tokens, offset + 2 * head.tokens)
        offset += head.size
        turn, trace = by_index.get(head.turn), TokenTrace(head.turn, values, tuple(int(length) for length in lengths))
        if turn is None or _ids(turn) != head.ids or not trace.fits(turn):
            raise Malformed(f"turn {head.turn} is not the one that was measured")
        yield trace


def _seal(line: bytes, body: bytes) -> bytes:
    return b',"crc":"%08x"}' % crc32(body, crc32(line))


def _ids(turn: Turn) -> str:
    return f"{crc32(np.asarray(turn.ids or (), dtype='<i4').tobytes()):08x}"


def _scale(values: NDArray[np.float32]) -> float:
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise ValueError("projections are not finite")
    return 2.0 ** max(0, int(np.ceil(np.log2(largest / _LARGEST)))) if largest > _LARGEST else 1.0
