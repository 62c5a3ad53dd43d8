"""`drift doctor`: what this machine can run."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from drift_cli.commands.options import DisplayOption, JsonOption, StoreOption, make_display, open_store
from drift_cli.display import Mode, Table
from drift_cli.errors import EXIT_FAILED

if TYPE_CHECKING:
    from drift_cli.speeds import Speeds


@dataclass(frozen=True)
class Check:
    """One thing looked at: `ok`, `note` (works, but know this) or `fail`."""

    what: str
    state: str
    found: str


def doctor(store: StoreOption = None, display: DisplayOption = Mode.AUTO, as_json: JsonOption = False) -> None:
    """Say what this machine can run.

    Looks at software, device, memory and the store's folder, and names what would go wrong.
    """
    folder = open_store(store).root
    checks = [*_software(), *_device(), *_folder(folder)]
    rows = [[check.state, check.what, check.found] for check in checks]
    failed = any(check.state == "fail" for check in checks)
    verdict = "something must be mended before a run" if failed else "ready: drift demo"
    make_display(display, as_json).result(
        {"ok": not failed, "checks": checks}, Table("This machine", ["", "what", "found"], rows, [verdict])
    )
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _software() -> list[Check]:
    from importlib.metadata import PackageNotFoundError, version

    checks = [Check("Python", "ok", platform.python_version())]
    for name in ("drift-cli", "torch", "transformers", "tokenizers", "numpy", "scipy"):
        try:
            checks.append(Check(name, "ok", version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, "fail", "not installed: pip install drift-cli"))
    return checks


def _device() -> list[Check]:
    import torch

    from drift_cli.speeds import measure_speeds

    checks = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            speeds = _speeds(measure_speeds(torch.device("cuda", index), torch.bfloat16))
            found = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, {speeds}"
            checks.append(Check(f"cuda:{index}", "ok", found))
    else:
        checks.append(Check("GPU", "note", "torch sees none: models run on the CPU, which suits small ones"))
    speeds = _speeds(measure_speeds(torch.device("cpu"), torch.float32))
    checks.append(Check("CPU", "ok", f"{torch.get_num_threads()} threads, {speeds}"))
    return checks


def _speeds(found: Speeds) -> str:
    return f"copies {found.bandwidth / 1e9:.0f} GB/s, multiplies {found.flops / 1e12:.2f} TFLOP/s"


def _folder(folder: Path) -> list[Check]:
    import shutil

    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    checks = [Check("disk", "ok" if free > 5e9 else "note", f"{free / 1e9:.1f} GB free at {place}")]
    if not os.access(place, os.W_OK):
        return [*checks, Check("store", "fail", f"{place} cannot be written; choose another folder with --store or DRIFT_STORE")]
    return [*checks, *_files(place)]


def _files(place: Path) -> list[Check]:
    """Locks and fsync, tried on a scratch file in the store's own file system."""
    import fcntl
    import tempfile

    with tempfile.NamedTemporaryFile(dir=place, prefix=".drift-doctor-") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            with Path(file.name).open("rb") as other:
                try:
                    fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    lock = Check("locks", "note", "locks do not exclude here: two writers would be found out by the chain, not kept apart")
                except BlockingIOError:
                    lock = Check("locks", "ok", "a second writer is kept out")
        except OSError as error:
            lock = Check("locks", "note", f"this file system has none ({error.strerror}): two writers would be found out, not kept apart")
        started = time.perf_counter()
        for _ in range(10):
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        took = (time.perf_counter() - started) / 10
    return [lock, Check("fsync", "ok" if took < 0.1 else "note", f"{took * 1e3:.1f} ms for a committed turn's write")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)
