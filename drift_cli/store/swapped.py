"""A rollout's replies read under another condition's prompt: residual means of the same words in another conversation. No torch.

Derived from what is stored, by a forward pass: a file can be deleted and measured again. One file per rollout and prompt, written whole: a line of JSON, then
little-endian float32 (turns, layers, width). The line says what the file belongs to (run, rollout, the prompt's condition and its digest, stored layers) and of
each turn its number and the checksum of the ids that were read; its last key is the SHA-256 of everything else. Turns that could not be read (the longer prompt
does not fit the context) have no mean and are listed as beyond.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import orjson
from numpy.typing import NDArray

from drift_cli.errors import StoreError
from drift_cli.files import atomic_write
from drift_cli.spec import Condition, Rollout, Turn, digest_of
from drift_cli.store.decode import Malformed, decode, parse
from drift_cli.store.files import create_inside, read_inside, sync_folders

if TYPE_CHECKING:
    from drift_cli.store.manifest import Manifest
    from drift_cli.store.paths import RunPaths

FORMAT = "drift-swapped-1"
_LIMIT = 1 << 30
_SEAL = len(',"digest":""}') + 64


@dataclass(frozen=True)
class _Turn:
    turn: int
    ids: str
    """Checksum of the reply's ids."""


@dataclass(frozen=True)
class _Header:
    format: str
    run: str
    rollout: str
    prompt: str
    """The condition whose prompt the replies were read under."""
    condition: str
    """Its digest: system prompt and placement."""
    layers: tuple[int, ...]
    width: int
    turns: tuple[_Turn, ...]
    """Those that have a mean, in order."""
    beyond: tuple[_Turn, ...]
    """Those that have none: they do not fit the context under this prompt, or have no token of an answer."""


@dataclass(frozen=True, eq=False)
class Swapped:
    """The means (layers, width) float32 of a rollout's replies under another prompt, by turn."""

    means: Mapping[int, NDArray[np.float32]]
    beyond: tuple[int, ...] = ()


def prompt_digest(condition: Condition) -> str:
    """Of what a condition adds to a conversation."""
    return digest_of([condition.system, condition.placement.value])


def write_swapped(paths: RunPaths, manifest: Manifest, rollout: Rollout, prompt: str, turns: Sequence[Turn], found: Swapped) -> None:
    """Replace what is stored of a rollout under a prompt. `turns` are the replies that were read. Raises `StoreError`, `ValueError` where they do not fit."""
    by_index = {turn.index: turn for turn in turns}
    if set(found.means) | set(found.beyond) != set(by_index):
        raise ValueError(f"{rollout}: the means are not those of its replies")
    stacked = [np.asarray(found.means[turn], dtype="<f4") for turn in sorted(found.means)]
    shape = (len(manifest.layers), manifest.model.width if manifest.model is not None else 0)
    if any(mean.shape != shape or not np.isfinite(mean).all() for mean in stacked):
        raise ValueError(f"{rollout}: residual means under another prompt are not finite numbers of shape {shape}")
    header = _Header(
        FORMAT,
        paths.run_id,
        str(rollout),
        prompt,
        prompt_digest(manifest.conditions[prompt]),
        tuple(manifest.layers),
        shape[1],
        tuple(_Turn(turn, _ids(by_index[turn])) for turn in sorted(found.means)),
        tuple(_Turn(turn, _ids(by_index[turn])) for turn in sorted(found.beyond)),
    )
    path, body, line = paths.swapped(rollout, prompt), b"".join(mean.tobytes() for mean in stacked), orjson.dumps(asdict(header))[:-1]
    create_inside(paths.root, path.parent)
    sync_folders(paths.root, path.parent)
    atomic_write(path, line + _seal(line, body) + b"\n" + body)


def read_swapped(paths: RunPaths, manifest: Manifest, rollout: Rollout, prompt: str, turns: Sequence[Turn]) -> Swapped | None:
    """What was measured of a rollout's replies under a condition's prompt; None where nothing was, or where the rollout has more turns by now.

    Raises `StoreError` where the file is damaged, or was measured on other replies, prompts or layers than the run has.
    """
    path = paths.swapped(rollout, prompt)
    try:
        data = read_inside(paths.root, path, _LIMIT)
    except FileNotFoundError:
        return None
    try:
        header, body = _read(data)
        _check(header, paths, manifest, rollout, prompt)
        return _found(header, body, turns)
    except Malformed as error:
        raise StoreError(f"{path}: {error}", mend=f"Delete it and measure again: drift measure {paths.run_id} --same-replies") from None


def _read(data: bytes) -> tuple[_Header, bytes]:
    line, newline, body = data.partition(b"\n")
    if not newline or line[-_SEAL:] != _seal(line[:-_SEAL], body):
        raise Malformed("its digest does not match its content")
    value = parse(line)
    if not isinstance(value, dict) or value.pop("digest", None) is None:
        raise Malformed("it has no header")
    return decode(_Header, value), body


def _check(header: _Header, paths: RunPaths, manifest: Manifest, rollout: Rollout, prompt: str) -> None:
    width = manifest.model.width if manifest.model is not None else 0
    wanted = (FORMAT, paths.run_id, str(rollout), prompt, prompt_digest(manifest.conditions[prompt]), tuple(manifest.layers), width)
    given = (header.format, header.run, header.rollout, header.prompt, header.condition, header.layers, header.width)
    for is_, should in zip(given, wanted, strict=True):
        if is_ != should:
            raise Malformed(f"it was measured for {is_}, not for {should}")


def _found(header: _Header, body: bytes, turns: Sequence[Turn]) -> Swapped | None:
    by_index = {turn.index: turn for turn in turns}
    known = (*header.turns, *header.beyond)
    for one in known:
        if one.turn not in by_index or _ids(by_index[one.turn]) != one.ids:
            raise Malformed(f"turn {one.turn} is not the one that was measured")
    shape = (len(header.turns), len(header.layers), header.width)
    if len(body) != 4 * shape[0] * shape[1] * shape[2]:
        raise Malformed("its length is not what its header says")
    if len(known) < len(turns):
        return None
    values = np.frombuffer(body, "<f4").reshape(shape).astype(np.float32)
    return Swapped({one.turn: mean for one, mean in zip(header.turns, values, strict=True)}, tuple(one.turn for one in header.beyond))


def _seal(line: bytes, body: bytes) -> bytes:
    digest = hashlib.sha256(line)
    digest.update(body)
    return b',"digest":"%s"}' % digest.hexdigest().encode()


def _ids(turn: Turn) -> str:
    return f"{crc32(np.asarray(turn.ids or (), dtype='<i4').tobytes()):08x}"
