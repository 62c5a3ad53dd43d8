"""A rollout's token traces: the projection of every token of its replies on one axis at one layer. Derived from what is stored, by a forward pass: they can
be deleted and measured again.

One safetensors file per rollout and axis, written whole: `values` (tokens,) float16, `lengths` (tokens,) of the tokens' texts in characters, of all turns one
after the other. Its metadata has one entry, a JSON text, that says what the file belongs to (run, rollout, axis, layer, digest) and of each turn its tokens'
number, the checksum of the ids that were measured, and the power of two that its values are multiplied with; and the checksum of everything. float16 keeps
11 significant bits: enough for a colour, not for statistics, which stand on the residual means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
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

FORMAT = "drift-traces-2"
_LIMIT = 1 << 30
_LARGEST = 60000.0
"""Just below float16's largest number; beyond it a turn's projections are halved until they fit."""
_ENTRY = "traces"
"""The metadata's."""


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
    """What the header says of one turn."""

    turn: int
    tokens: int
    ids: str
    scale: float


@dataclass(frozen=True)
class _Header:
    format: str
    run: str
    rollout: str
    axis: str
    layer: int
    digest: str
    turns: tuple[_Head, ...]
    crc: str = ""
    """CRC-32 of the header without this field, of the values' and of the lengths' bytes."""

    def sealed(self, values: NDArray[Any], lengths: NDArray[Any]) -> _Header:
        """The header with its checksum."""
        bare = orjson.dumps(asdict(replace(self, crc="")))
        return replace(self, crc=f"{crc32(lengths.tobytes(), crc32(values.tobytes(), crc32(bare))):08x}")


def write_traces(paths: RunPaths, rollout: Rollout, axis: AxisEntry, turns: Sequence[Turn], traces: Sequence[TokenTrace]) -> None:
    """Replace a rollout's traces on an axis by these, which were measured on `turns`. Raises `StoreError`, `ValueError` where they do not fit a turn."""
    from safetensors.numpy import save

    heads, values = [], [np.zeros(0, dtype="<f2")]
    for turn, trace in zip(turns, traces, strict=True):
        if not trace.fits(turn):
            raise ValueError(f"{rollout}: the traces of turn {trace.turn} do not fit the reply")
        heads.append(_Head(turn.index, len(trace.lengths), _ids(turn), _scale(trace.values)))
        values.append((trace.values / heads[-1].scale).astype("<f2"))
    listed = [length for trace in traces for length in trace.lengths]
    longest = max(listed, default=0)
    tensors = {
        "values": np.concatenate(values),
        "lengths": np.asarray(listed, dtype="<u1" if longest < 1 << 8 else "<u2" if longest < 1 << 16 else "<u4"),
    }
    header = _Header(FORMAT, paths.run_id, str(rollout), axis.name, axis.layer, axis.digest, tuple(heads)).sealed(**tensors)
    path = paths.traces(rollout, axis.name)
    create_inside(paths.root, path.parent)
    sync_folders(paths.root, path.parent)
    atomic_write(path, save(tensors, {_ENTRY: orjson.dumps(asdict(header)).decode()}))


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
        header, values, lengths = _read(data)
        _check(header, paths, rollout, axis)
        return {trace.turn: trace for trace in _turns(header, values, lengths, turns)}
    except Malformed as error:
        raise StoreError(f"{path}: {error}", mend=mend) from None


def _read(data: bytes) -> tuple[_Header, NDArray[Any], NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        said = parse(data[8 : 8 + int.from_bytes(data[:8], "little")])  # the format's header: its length in 8 bytes, then JSON
        header = decode(_Header, parse(said["__metadata__"][_ENTRY].encode()))
        values, lengths = tensors["values"], tensors["lengths"]
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise Malformed(f"its checksum does not match its content, or it is no file of traces ({error})") from None
    if header != header.sealed(values, lengths):
        raise Malformed("its checksum does not match its content")
    return header, values, lengths


def _check(header: _Header, paths: RunPaths, rollout: Rollout, axis: AxisEntry) -> None:
    found = (header.format, header.run, header.rollout, header.axis, header.layer, header.digest)
    wanted = (FORMAT, paths.run_id, str(rollout), axis.name, axis.layer, axis.digest)
    for is_, should in zip(found, wanted, strict=True):
        if is_ != should:
            raise Malformed(f"it was measured for {is_}, not for {should}")


def _turns(header: _Header, values: NDArray[Any], lengths: NDArray[Any], turns: Sequence[Turn]) -> Iterator[TokenTrace]:
    shape = (sum(head.tokens for head in header.turns),)
    if values.dtype != np.float16 or lengths.dtype.kind != "u" or not values.shape == lengths.shape == shape:
        raise Malformed("its tensors are not what its header says")
    by_index, start = {turn.index: turn for turn in turns}, 0
    for head in header.turns:
        part = slice(start, start := start + head.tokens)
        trace = TokenTrace(head.turn, values[part].astype(np.float32) * np.float32(head.scale), tuple(map(int, lengths[part])))
        turn = by_index.get(head.turn)
        if turn is None or _ids(turn) != head.ids or not trace.fits(turn):
            raise Malformed(f"turn {head.turn} is not the one that was measured")
        yield trace


def _ids(turn: Turn) -> str:
    return f"{crc32(np.asarray(turn.ids or (), dtype='<i4').tobytes()):08x}"


def _scale(values: NDArray[np.float32]) -> float:
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise ValueError("projections are not finite")
    return 2.0 ** max(0, int(np.ceil(np.log2(largest / _LARGEST)))) if largest > _LARGEST else 1.0
