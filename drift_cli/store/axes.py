"""The axes that a run was measured on, each with all its layers, so that a run is complete in itself. The only reader of a run's own copies."""

from __future__ import annotations

import os

from drift_cli.axis import Axis
from drift_cli.errors import DriftError, StoreError
from drift_cli.files import release
from drift_cli.store.files import open_inside
from drift_cli.store.manifest import AxisEntry
from drift_cli.store.paths import RunPaths


def read_axis(paths: RunPaths, entry: AxisEntry) -> Axis:
    """The run's own copy of the axis of an entry.

    Raises:
        StoreError: it is missing, damaged, no plain file of the run's own, without the entry's layer, or not the axis that the run was measured on.
    """
    path, mend = paths.axis(entry.name), f"Put the axis back: drift measure {paths.run_id} --axis FILE"
    try:
        release(open_inside(paths.root, path, os.O_RDONLY))
        axis = Axis.load(path)
    except FileNotFoundError:
        raise StoreError(f"axis {entry.name} is missing from run {paths.run_id} ({path})", mend=mend) from None
    except StoreError:
        raise
    except DriftError as error:
        raise StoreError(error.what, mend=mend) from error
    if axis.digest != entry.digest:
        raise StoreError(
            f"{path} is not the axis that the run was measured on (its digest is {axis.digest}, the run's {entry.digest})", mend=mend
        )
    if entry.layer not in axis.layers:
        raise StoreError(f"{path} has layers {', '.join(map(str, axis.layers))}, not layer {entry.layer}", mend=mend)
    return axis
