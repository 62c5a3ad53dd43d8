"""Axes by name: the built-in model's, those in a folder, or a file."""

from __future__ import annotations

from pathlib import Path

from drift_cli.axis import SUFFIX, Axis, model_of, short
from drift_cli.errors import DriftError, UsageError, did_you_mean
from drift_cli.models.builtin import DEMO, axis_path
from drift_cli.names import checked_name


def demo_axis() -> Axis:
    """The built-in model's axis, made by `drift axis build --model demo`."""
    return Axis.load(axis_path(DEMO))


def names(folder: Path) -> list[str]:
    """Names of the axes in a folder, sorted; none where the folder cannot be read."""
    try:
        return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))
    except OSError:
        return []


def axes_for(model: str, folder: Path) -> list[str]:
    """Names of the axes in `folder` that were built on a model or imported for it, by the model's name. Their headers alone are read."""
    found = ((name, model_of(folder / f"{name}{SUFFIX}")) for name in names(folder))
    return [name for name, other in found if other is not None and short(other) == short(model)]


def find(name: str, folder: Path) -> Axis:
    """An axis by path, by name in `folder`, or the built-in `demo`. `DriftError` where there is none; `UsageError` for a torch file."""
    if name == DEMO:
        return demo_axis()
    path = Path(name)
    if path.suffix in {".pt", ".pth"}:
        raise UsageError(f"{name} is a torch file", mend=f"Import it first: drift axis import {name}")
    if path.suffix != SUFFIX and "/" not in name:
        path = folder / f"{checked_name('axis', name)}{SUFFIX}"
    if not path.exists() and (close := did_you_mean(path.stem, [DEMO, *names(path.parent)])):
        raise DriftError(f"axis file {path} does not exist", mend=f"{close}`drift axis show` lists the axes.")
    return Axis.load(path)
