"""`drift doctor`: what this machine can run."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from drift_cli.commands.flags import Flags, with_settings
from drift_cli.commands.options import Common
from drift_cli.display import Table
from drift_cli.errors import EXIT_FAILED

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Check:
    """One thing looked at: `ok`, `note` (works, but know this) or `fail`."""

    what: str
    state: str
    found: str


@with_settings(
    "model",
    "dtype",
    "device",
    model="Load this model (hub id, folder or file) and measure whether the slots engine computes what it computes.",
)
def doctor(
    flags: Flags,
    *,
    common: Common,
) -> None:
    """Say what this machine can run.

    Looks at software, device, memory and the store's folder, and names what would go wrong. With --model it looks at the model instead: which engine will
    run it, and how far that engine and a plain forward pass are from float32.

    Example: drift doctor --model allenai/Olmo-3-7B-Instruct
    """
    shown, model = common.show(), flags["model"]
    if model is None:
        title, checks = "This machine", [*_software(), *_device(), *_folder(common.folder().root)]
        verdict = "something must be mended before a run", "ready: drift demo"
    else:
        title, checks = f"Model {model}", _model(model, flags["dtype"] or "auto", flags["device"] or "auto")
        verdict = "it cannot be run", f"ready: drift generate --model {model}"
    rows = [[check.state, check.what, check.found] for check in checks]
    failed = any(check.state == "fail" for check in checks)
    shown.result({"ok": not failed, "checks": checks}, Table(title, ["", "what", "found"], rows, [verdict[0 if failed else 1]]))
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _model(name: str, dtype: str, device: str) -> list[Check]:
    """What a model is, which engine runs it, and the figures of the trial that says so."""
    from drift_cli import models, transcripts
    from drift_cli.engine.choice import choose, rows
    from drift_cli.engine.rollouts import SlotEngine
    from drift_cli.running.loading import ordinary_text
    from drift_cli.spec import Sampling

    card, where = models.describe(name), models.choose_device(device)
    kind = models.choose_dtype(dtype, where)
    loaded = models.load(card, dtype=kind, device=where)
    said = f"{type(loaded.network).__name__}, {loaded.parameters / 1e6:.0f} million parameters, {card.layers} blocks of width {card.width}"
    checks = [Check("network", "ok", f"{said}, context {card.context} tokens, {kind} on {where}")]
    layers, text = tuple(range(card.layers + 1)), ordinary_text(card, map(transcripts.load, transcripts.builtin_names()))
    chosen = choose(
        "auto",
        loaded,
        layers=layers,
        filters=Sampling(),
        max_new_tokens=256,
        batch=rows(None, where),
        text=text,
    )
    if chosen.refused is None:
        checks.append(Check("engine", "ok", "slots (fast)"))
    else:
        checks.append(Check("engine", "note", f"reference (slower): slots cannot run it, since {chosen.refused}"))
    if chosen.trial is not None:
        checks.append(Check("trial", "ok" if chosen.refused is None else "note", chosen.trial.said))
    if isinstance(chosen.engine, SlotEngine):
        chosen.engine.close()
    return checks


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

    checks = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        checks += _speed(f"cuda:{index}", name, torch.bfloat16)
    if not torch.cuda.is_available():
        checks.append(Check("GPU", "note", "torch sees none: models run on the CPU, which suits small ones"))
    return [*checks, *_speed("cpu", f"{torch.get_num_threads()} threads", torch.float32)]


def _speed(device: str, name: str, dtype: torch.dtype) -> list[Check]:
    """What a device does, and how long it would take for conversations as long as those of the preset olmo3-003b."""
    import torch

    from drift_cli.display import duration
    from drift_cli.engine.choice import rows
    from drift_cli.engine.layout import layout_from
    from drift_cli.running.estimate import Work, example
    from drift_cli.running.speeds import measure_speeds
    from drift_cli.store.manifest import ModelFacts

    together = rows(None, device)
    checks: list[Check] = []
    for title, config, parameters in _shapes():
        found = measure_speeds(torch.device(device), dtype, together, config.vocab_size)
        if not checks:
            said = f"{name}, copies {found.bandwidth / 1e9:.0f} GB/s, multiplies {found.flops / 1e12:.2f} TFLOP/s"
            checks.append(Check("CPU" if device == "cpu" else device, "ok", said))
        facts = ModelFacts(title, config.num_hidden_layers, config.hidden_size, config.max_position_embeddings, parameters, (), None)
        graphs = device.startswith("cuda")
        took, size = example(Work(facts, 0, together, dtype.itemsize, layout_from(config), found, graphs))
        text = f"{together} conversations of 18 turns with {title}: about {duration(took)}, {size / 1e9:.1f} GB of memory"
        checks.append(Check("estimate", "ok", text))
    return checks


def _shapes() -> list[tuple[str, Any, int]]:
    """Networks to give an example of: title, configuration, parameters."""
    from transformers import Olmo3Config

    from drift_cli import models

    card = models.describe(models.DEMO)
    return [
        ("the built-in model", card.config, models.count_parameters(card)),
        ("a model of 7 billion parameters", Olmo3Config(), 7_300_000_000),
    ]


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
