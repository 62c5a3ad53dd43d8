"""Power cuts: at every system call of a small run, what a disk might hold if the power failed there.

strace records what a run did. A model of a disk replays it: written bytes, names and lengths are in memory until an fsync of the file, or of the folder
for names, brings them to the disk. What was not synced may be there after the cut, or not, or in part, each file and each name by itself; a file may have
its new length and nothing but zeros in it. From every such disk the run is looked at and gone on with.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from campaign.inject import attach, finish
from campaign.scenes import PLAN, SCENES, Working, check, session, uninterrupted, working
from campaign.tally import Tally
from drift_cli.spec import Rollout

_CALLS = "openat,mkdir,mkdirat,write,fsync,rename,ftruncate,unlink,close,access"
_BLOCK = 64
"""Bytes that reach the disk together. Real ones are larger; small ones tear lines of a few hundred bytes as large ones tear long lines."""


@dataclass
class _File:
    durable: bytes = b""
    volatile: bytes = b""


@dataclass
class Disk:
    """Names (paths below the root; a folder's content is None) and contents, as the disk has them and as programs see them."""

    durable: dict[Path, _File | None] = field(default_factory=dict)
    volatile: dict[Path, _File | None] = field(default_factory=dict)

    @classmethod
    def holding(cls, root: Path) -> Disk:
        """A disk with what is below `root`, all of it synced."""
        disk = cls()
        for path in sorted(root.rglob("*")):
            data = path.read_bytes() if path.is_file() else None
            disk.volatile[path.relative_to(root)] = None if data is None else _File(data, data)
        disk.durable = dict(disk.volatile)
        return disk

    def sync(self, path: Path) -> None:
        """fsync of a file or folder."""
        file = self.volatile.get(path)
        if file is not None:
            file.durable = file.volatile
            return
        self.durable = {name: held for name, held in self.durable.items() if name.parent != path}
        self.durable |= {name: held for name, held in self.volatile.items() if name.parent == path}

    def changed(self) -> bool:
        """Whether anything is not synced."""
        return self.durable != self.volatile or any(file and file.durable != file.volatile for file in self.volatile.values())


Content = Callable[[_File], bytes]


def after_cut(disk: Disk, content: Content, named: Callable[[], bool]) -> dict[Path, bytes | None]:
    """What is found after a cut: `named` says for each unsynced change of a name whether it happened, `content` what a file holds."""
    found: dict[Path, bytes | None] = {}
    for path in sorted({*disk.durable, *disk.volatile}):
        old, new = disk.durable.get(path, ...), disk.volatile.get(path, ...)
        held = old if old is new else new if named() else old
        if held is not ... and (path.parent in found or path.parent == Path()):
            found[path] = None if held is None else content(held)
    return found


def _memory(file: _File) -> bytes:
    return file.volatile


def _synced(file: _File) -> bytes:
    return file.durable


def _zeros(file: _File) -> bytes:
    """The new length, and zeros where the data did not come."""
    return file.durable + bytes(max(0, len(file.volatile) - len(file.durable)))


def _torn(chance: random.Random) -> Content:
    def content(file: _File) -> bytes:
        if not file.volatile.startswith(file.durable):
            return chance.choice((file.volatile, file.durable))
        start, full = len(file.durable), len(file.volatile)
        new = bytearray(file.volatile[: chance.choice((full, full, chance.randint(start, full)))])
        for place in range(start - start % _BLOCK, len(new), _BLOCK):
            if chance.random() < 0.3:
                first, last = max(start, place), min(place + _BLOCK, len(new))
                new[first:last] = bytes(last - first)
        return bytes(new)

    return content


def _variants(seed: int, mixes: int) -> Iterator[tuple[str, Content, Callable[[], bool]]]:
    yield "power cut, nothing unsynced there", _synced, lambda: False
    yield "power cut, names there, unsynced data not", _synced, lambda: True
    yield "power cut, unsynced data zeros", _zeros, lambda: True
    yield "power cut, data there, unsynced names not", _memory, lambda: False
    for number in range(mixes):
        chance = random.Random(seed * 1000 + number)
        yield "power cut, any mix and torn writes", _torn(chance), lambda chance=chance: chance.random() < 0.5


def faults(folder: Path, every: int = 1, first: int = 0, mixes: int = 6) -> list[Tally]:
    """Cut the power at every `every`-th call, from number `first` on, in each way and in `mixes` random ones."""
    expected = uninterrupted(folder / "uninterrupted")
    tallies: dict[str, Tally] = {}
    for scene in ("fresh", "recovering", "damaged"):
        root = folder / scene
        SCENES[scene](root)
        disk, log = Disk.holding(root), folder / "log"
        _record(working(lambda acknowledge, root=root, scene=scene: _marked(root, repair=scene == "damaged")), log)
        place = folder / "place"
        for number, (line, acknowledged) in enumerate(_replay(disk, log, root)):
            if (number - first) % every or not disk.changed():
                continue
            for name, content, named in _variants(number, mixes):
                _write(after_cut(disk, content, named), place)
                outcome = check(place, acknowledged, expected, damage=True)
                tallies.setdefault(name, Tally(name)).count(f"{scene}, after call {number} ({line[:100]})", outcome)
                shutil.rmtree(place)
    return list(tallies.values())


def _marked(root: Path, *, repair: bool) -> None:
    """A session that leaves a mark in the record for every acknowledgement."""
    session(root, lambda rollout, index: Path(f"/acknowledged/{PLAN.index(rollout)}/{index}").exists(), repair=repair)


def _record(work: Working, log: Path) -> None:
    tracer = attach(work, ["-e", f"trace={_CALLS},newfstatat,stat", "-xx", "-s", "1000000"], log)
    assert work.go() == 0, work.said
    finish(tracer)


def _write(found: dict[Path, bytes | None], place: Path) -> None:
    place.mkdir()
    for path, data in found.items():
        if data is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(data)


# --- the record

_LINE = re.compile(r"(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def _replay(disk: Disk, log: Path, root: Path) -> Iterator[tuple[str, dict[Rollout, int]]]:
    """Do to the disk what the record says, call by call. Yields each call and what had been acknowledged when it was done."""
    open_files: dict[int, Path] = {}
    acknowledged = dict.fromkeys(PLAN, 0)
    for line in log.read_text().splitlines():
        found = _LINE.match(line)
        if found is None or int(found["result"]) < 0:
            mark = None if found is None else re.match(r"/acknowledged/(\d)/(\d)", (_texts(found["arguments"]) or [b""])[0].decode())
            if mark is not None:
                acknowledged[PLAN[int(mark[1])]] = int(mark[2])
            continue
        _apply(disk, open_files, found, root)
        yield line, dict(acknowledged)


def _texts(arguments: str) -> list[bytes]:
    return [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]


def _apply(disk: Disk, open_files: dict[int, Path], found: re.Match[str], root: Path) -> None:
    call, arguments, result = found["call"], found["arguments"], int(found["result"])
    texts = _texts(arguments)
    first = re.match(r"\d+", arguments)
    held = open_files.get(int(first[0])) if first else None
    if call in ("openat", "mkdirat", "mkdir", "rename", "unlink"):
        paths = [_below((held or Path()) / text.decode() if held is not None else Path(text.decode()), root) for text in texts]
        if call == "openat":
            open_files.pop(result, None)
        if not paths or paths[0] is None:
            return
        path = paths[0]
        if call == "openat":
            open_files[result] = root / path
            if path not in disk.volatile and path != Path():
                disk.volatile[path] = _File()
            file = disk.volatile.get(path)
            if "O_TRUNC" in arguments and file is not None:
                file.volatile = b""
        elif call == "unlink":
            disk.volatile.pop(path)
        elif call == "rename":
            assert paths[1] is not None
            disk.volatile[paths[1]] = disk.volatile.pop(path)
        else:
            disk.volatile[path] = None
    elif held is not None:
        _apply_to_open(disk, call, _below(held, root) or Path(), arguments, texts, result)
        if call == "close" and first:
            del open_files[int(first[0])]


def _apply_to_open(disk: Disk, call: str, path: Path, arguments: str, texts: list[bytes], result: int) -> None:
    file = disk.volatile.get(path)
    if call == "fsync":
        disk.sync(path)
    elif file is not None and call == "write":
        file.volatile += texts[0][:result]  # every file of the store is only ever added to
    elif file is not None and call == "ftruncate":
        file.volatile = file.volatile[: int(arguments.rpartition(",")[2])]


def _below(path: Path, root: Path) -> Path | None:
    """A path relative to the root; None where it is elsewhere."""
    return path.relative_to(root) if path.is_relative_to(root) else None
