"""What to do about a run without an axis: its statistics, pictures and report have nothing to show until it is measured on one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drift_cli.models.axes import axes_for
from drift_cli.models.builtin import DEMO
from drift_cli.names import plain_name
from drift_cli.settings.config import axes_folder

if TYPE_CHECKING:
    from drift_cli.store.manifest import Manifest

_MOST = 3
"""Axes that are named."""


def commands_for(manifest: Manifest) -> str:
    """`commands` of a run by its manifest, with the axes that are here."""
    named = manifest.settings.get("model")
    model = manifest.spec.model if named is None or not isinstance(named.value, str) else named.value
    return commands(manifest.spec.id, model, manifest.layers, axes_folder())


def next_step(manifest: Manifest) -> str:
    """What to do with a run that is done, in a line."""
    run_id = manifest.spec.id
    if manifest.axes or manifest.measured:
        return f"next: drift stats {run_id}   drift plot {run_id}"
    return f"next, as it has no axis yet: {commands_for(manifest)}   (then drift stats, plot, report)"


def commands(run_id: str, model: str, layers: Sequence[int], folder: Path) -> str:
    """The commands that give a run its projections, in a sentence.

    Args:
        run_id: the run.
        model: as `--model` takes it.
        layers: whose residual means are stored.
        folder: where axes lie.
    """
    at = f" --layer {layers[0]}" if len(layers) == 1 else ""
    found = [*([DEMO] if model == DEMO else []), *axes_for(model, folder)]
    if found:
        more = f" (or {', '.join(found[1:_MOST])})" if len(found) > 1 else ""
        return f"drift measure {run_id} --axis {found[0]}{at}{more}"
    name = plain_name(model.rstrip("/").rsplit("/", 1)[-1])
    return f"drift axis build --model {shlex.quote(model)} --name {name} && drift measure {run_id} --axis {name}{at}"
