"""Files that are none: a pipe, a device, a folder or a file of 64 GB is refused at once where a file is read, and never replaced where one is written."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import drift
from hostile.cases import PLACES
from report_run import make_run

from drift_cli.axis import Axis
from drift_cli.errors import DriftError
from drift_cli.files import atomic_write
from drift_cli.measuring import personas, reference_line
from drift_cli.measuring.torch_axes import import_torch
from drift_cli.settings.config import resolve
from drift_cli.settings.plan import read_plan
from drift_cli.transcripts.document import read_document

READERS: dict[str, Callable[[Path], Any]] = {
    "transcript": read_document,
    "drift.toml": lambda path: resolve({}, config=path, environment={}),
    "plan": read_plan,
    "personas": personas.read,
    "reference line": reference_line.read,
    "axis": Axis.load,
    "torch file": lambda path: import_torch(path, name="mine"),
}
TARGETS: dict[str, Callable[[Path], object]] = {
    **{name: PLACES[name] for name in ("a FIFO", "a folder")},
    "a link to a file": lambda path: path.symlink_to("victim"),
    "a link to a device": lambda path: path.symlink_to("/dev/full"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(reader: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "given.toml"
    PLACES[place](path)
    with pytest.raises(DriftError) as caught:
        READERS[reader](path)
    assert path.name in str(caught.value)


def test_a_pipe_in_the_place_of_drift_toml_is_not_passed_over() -> None:
    PLACES["a FIFO"](Path("drift.toml"))
    assert "drift.toml: is a pipe" in drift("generate", "--dry-run", code=2).err


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_takes_the_place_of_nothing_but_a_regular_file(target: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    path = tmp_path / "target"
    TARGETS[target](path)
    before = stat.S_IFMT(path.lstat().st_mode)
    with pytest.raises(DriftError, match="only a regular file is replaced"):
        atomic_write(path, b"new")
    assert stat.S_IFMT(path.lstat().st_mode) == before
    assert (tmp_path / "victim").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["target", "victim"]


@pytest.mark.parametrize(
    "line",
    [
        ("stats", "--format", "csv", "-o", "target.csv"),
        ("export", "--format", "csv", "-o", "target.csv"),
        ("export", "--format", "parquet", "-o", "target.parquet"),
        ("plot", "-o", "target.png"),
        ("report", "-o", "target.html"),
    ],
    ids=" ".join,
)
def test_what_commands_write_replaces_no_link(line: tuple[str, ...], tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "victim").write_text("mine")
    target = Path(line[-1])
    target.symlink_to(tmp_path / "victim")
    assert "only a regular file is replaced" in drift(*line, "--store", str(run.paths.root.parent), code=1).err
    assert target.is_symlink()
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_zip_bomb_is_no_torch_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb/data.pkl", bytes(1 << 20))
        file.writestr("bomb/version", "3")
    with pytest.raises(DriftError, match="is compressed"):
        import_torch(tmp_path / "bomb.pt", name="mine")


def test_axis_files_are_byte_equal_from_build_to_build(tmp_path: Path) -> None:
    axis = Axis("mine", (0, 1), np.eye(2, 4, dtype=np.float32), model="org/mödel", source="made", note='a "note"\n', personas=("a", "b"))
    bodies = set()
    for _ in range(12):  # the header has eleven texts: in an order of chance they would differ
        axis.save(tmp_path / "mine.safetensors")
        bodies.add((tmp_path / "mine.safetensors").read_bytes())
    assert len(bodies) == 1
    again = Axis.load(tmp_path / "mine.safetensors")
    assert (again.digest, again.note, again.model) == (axis.digest, axis.note, axis.model)
    assert json.loads(bodies.pop()[8:].split(b"}}")[0] + b"}}")["__metadata__"]["name"] == "mine"
