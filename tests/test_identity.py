"""What local weights are called by: every byte that loading reads counts, nothing else does, and what is remembered is never trusted when it may be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from saved_models import Kit, logits, shard

from drift_cli import models
from drift_cli.errors import DriftError
from drift_cli.models import digests, identity, tree_digest
from drift_cli.models.files import find_checkpoint


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("identity"))


def called(folder: Path) -> str:
    return models.describe(str(folder)).revision


def _flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_the_digest_is_what_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "CHUNK", 1000)
    files = {}
    for name, size in (("b.safetensors", 2500), ("a.json", 0), ("c", 1000)):
        files[name] = tmp_path / f"some-{name}"
        files[name].write_bytes(os.urandom(size))
    lines = b""
    for name in sorted(files):
        data = files[name].read_bytes()
        parts = b"".join(hashlib.sha256(data[start : start + 1000]).digest() for start in range(0, len(data), 1000))
        lines += f"{name} {len(data)} {hashlib.sha256(parts).hexdigest()}\n".encode()
    assert tree_digest(files) == "tree1:" + hashlib.sha256(lines).hexdigest()


def test_every_byte_of_a_large_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "CHUNK", 1000)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100_500))
    seen = {tree_digest({"x": path})}
    for place in (0, 1, 999, 1000, 50_321, 77_777, 99_999, 100_000, 100_499):
        _flipped(path, place)
        seen.add(tree_digest({"x": path}))
        _flipped(path, place)
    assert len(seen) == 10
    path.write_bytes(bytes(100_501))
    assert tree_digest({"x": path}) not in seen


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"]
)
def test_every_file_that_loading_reads_counts(name: str, kit: Kit) -> None:
    folder = kit.copy()
    path = folder / name
    path.write_bytes(path.read_bytes() + b"\n" if name != "model.safetensors" else path.read_bytes()[:-1] + b"\x01")
    assert called(folder) != called(kit.base)


def test_what_loading_does_not_read_does_not_count(kit: Kit) -> None:
    folder = kit.copy()
    for name in (
        "README.md",
        "trainer_state.json",
        "args.json",
        "pytorch_model.bin",
        "optimizer.pt",
        "notes.txt",
        "other.safetensors",
        ".gitattributes",
    ):
        (folder / name).write_text("anything")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "model.safetensors").write_text("anything")
    assert called(folder) == called(kit.base)


def test_only_the_files_that_an_index_names_count(kit: Kit) -> None:
    folder = kit.copy()
    names = shard(folder)
    before = called(folder)
    (folder / "model-00004-of-00004.safetensors").write_text("forgotten")
    assert called(folder) == before
    _flipped(folder / names[1], -3)
    assert called(folder) != before


def test_loading_sees_exactly_the_files_that_count(kit: Kit) -> None:
    """The folder that transformers is given holds those and no other."""
    folder = kit.copy()
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "secret.json").write_text("{}")
    checkpoint = find_checkpoint(folder)
    with checkpoint.view() as view:
        assert sorted(str(path.relative_to(view)) for path in Path(view).rglob("*")) == sorted(checkpoint.files)
    assert not Path(view).exists()
    assert "secret.json" not in checkpoint.files


def test_where_a_folder_is_and_what_it_is_called_does_not_count(kit: Kit, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "another name"
    shutil.copytree(kit.base, moved)
    (tmp_path / "link").symlink_to(moved)
    assert called(moved) == called(kit.base) == called(tmp_path / "link")


def test_zeros_between_the_samples_that_were_looked_at_are_found(tmp_path: Path) -> None:
    """What happened to a run whose weights were zeroed between the sampled blocks: the old digest stays, the new one does not."""
    path = tmp_path / "model.safetensors"
    size = 80 << 20
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20) * (size >> 20))
    old, new = models.sampled_digest(tmp_path), tree_digest({"x": path})
    with path.open("r+b") as file:
        for block in range(63):  # from the end of each sampled block to the beginning of the next
            start, stop = block * (size - (1 << 20)) // 63 + (1 << 20), (block + 1) * (size - (1 << 20)) // 63
            file.seek(start)
            file.write(bytes(stop - start))
    assert models.sampled_digest(tmp_path) == old
    assert tree_digest({"x": path}) != new


# What is remembered


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small files are remembered too, and at once; returns one."""
    monkeypatch.setattr(digests, "SMALL", 0)
    monkeypatch.setattr(digests, "_SETTLED", -(10**12))
    path = tmp_path / "weights"
    path.write_bytes(b"abc" * 1000)
    return path


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the beginnings of chunks as they are read."""
    read: list[int] = []
    own = identity._chunk

    def counted(descriptor: int, start: int, size: int, meter: identity._Meter) -> bytes:
        read.append(start)
        return own(descriptor, start, size, meter)

    monkeypatch.setattr(identity, "_chunk", counted)
    return read


def _entries() -> list[Path]:
    folder = digests.cache_folder()
    assert folder is not None
    return list((folder / "digests").iterdir())


def test_a_file_is_read_once(remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = _reads(monkeypatch)
    first = tree_digest({"x": remembering})
    assert read == [0]
    assert tree_digest({"x": remembering}) == first
    assert read == [0]
    assert tree_digest({"x": remembering}, remembered=False) == first
    assert read == [0, 0]


def _rewritten(path: Path) -> None:
    """In place, with the same size and the old time of the last write."""
    facts = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _replaced(path: Path) -> None:
    facts = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    copy.replace(path)


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"X")


@pytest.mark.parametrize("change", [_rewritten, _replaced, _longer])
def test_a_file_that_changed_is_read_again(change: Callable[[Path], None], remembering: Path) -> None:
    before = tree_digest({"x": remembering})
    time.sleep(0.02)  # the clock of a file system is coarser than ours
    change(remembering)
    assert tree_digest({"x": remembering}) != before
    assert tree_digest({"x": remembering}) == tree_digest({"x": remembering}, remembered=False)


def _garbled(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-20] + b"\x00\xff garbage")


def _emptied(entry: Path) -> None:
    entry.write_bytes(b"")


def _forged(entry: Path) -> None:
    found = json.loads(entry.read_text())
    entry.write_text(json.dumps({**found, "digest": "0" * 64}))


def _listed(entry: Path) -> None:
    entry.write_text("[1, 2]")


def _deep(entry: Path) -> None:
    entry.write_text("[" * 100_000)


@pytest.mark.parametrize("spoil", [_garbled, _emptied, _forged, _listed, _deep])
def test_an_entry_that_is_not_as_it_was_written_is_not_trusted(spoil: Callable[[Path], None], remembering: Path) -> None:
    right = tree_digest({"x": remembering})
    (entry,) = _entries()
    spoil(entry)
    assert tree_digest({"x": remembering}) == right
    (entry,) = _entries()
    assert json.loads(entry.read_text())["size"] == 3000  # and it was written anew


def test_an_entry_of_another_file_is_not_trusted(remembering: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"xyz" * 1000)
    right = tree_digest({"x": remembering})
    (mine,) = _entries()
    text = mine.read_bytes()
    wrong = tree_digest({"x": other})
    (others,) = [entry for entry in _entries() if entry != mine]
    others.write_bytes(text)
    assert tree_digest({"x": other}) == wrong != right


def test_what_was_written_just_now_is_not_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second write within the clock's grain would leave no trace."""
    monkeypatch.setattr(digests, "SMALL", 0)
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    tree_digest({"x": path})
    folder = digests.cache_folder()
    assert folder is not None
    assert not folder.exists()
    monkeypatch.setattr(time, "time_ns", lambda: path.stat().st_ctime_ns + 3_000_000_000)
    tree_digest({"x": path})
    assert len(_entries()) == 1


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_where_nothing_can_be_remembered_files_are_read_every_time(place: str, remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "a file":
        Path("in the way").write_text("x")
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path("in the way").absolute()))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless(_: type[Path]) -> Path:
            raise RuntimeError("no home")

        monkeypatch.setattr(Path, "home", classmethod(homeless))
    read = _reads(monkeypatch)
    assert tree_digest({"x": remembering}) == tree_digest({"x": remembering})
    assert read == [0, 0]


def test_processes_that_start_together_share_what_is_remembered(remembering: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from drift_cli.models import digests, identity\n"
        "digests.SMALL, digests._SETTLED = 0, -10**12\n"
        "print({identity.tree_digest({'x': Path(sys.argv[1])}) for _ in range(50)})"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(remembering)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert said == {f"{ {tree_digest({'x': remembering}, remembered=False)} }\n"}
    assert len(_entries()) == 1  # and no temporary file


def test_a_file_that_grows_while_it_is_read_is_refused(remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = identity._chunk

    def slow(descriptor: int, start: int, size: int, meter: identity._Meter) -> bytes:
        digest = own(descriptor, start, size, meter)
        _longer(remembering)
        return digest

    monkeypatch.setattr(identity, "_chunk", slow)
    with pytest.raises(DriftError, match="changed while it was read\nWait until it is written"):
        tree_digest({"x": remembering})


def test_what_takes_long_is_said_while_it_runs(remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tree_digest({"x": remembering}, said.append, remembered=False)
    assert said == []
    monkeypatch.setattr(identity, "PATIENCE", -1.0)
    tree_digest({"x": remembering}, said.append, remembered=False)
    assert said[0].startswith("hashing the model's files to identify them: 0.0 of 0.0 GB, ")
    assert said[-1].startswith("hashed 0.0 GB in 0 s (")
    assert "GB/s" in said[0]


def test_a_model_in_a_folder_that_nobody_may_write_to_is_loaded(kit: Kit) -> None:
    folder = kit.copy()
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert logits(folder).isfinite().all()
    assert called(folder) == called(kit.base)
    folder.chmod(0o755)
