"""What a notebook and the commands use: open a run, look at it, compare its conditions, make one. Nothing here prints.

import drift_cli as drift

run = drift.open("demo")
run.turns()                                        # a DataFrame, a row to a turn
study = run.compare("simple", "baseline")
print(study.verdict)
study.plot()                                       # a matplotlib figure
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drift_cli.api.frames import Residuals
from drift_cli.api.making import Done, Opened, generate
from drift_cli.api.run import Run
from drift_cli.api.study import Study, Verdict
from drift_cli.axis import Axis
from drift_cli.store.paths import Store
from drift_cli.store.run import Run as Stored

__all__ = ["Done", "Opened", "Residuals", "Run", "Study", "Verdict", "compare", "generate", "load_axis", "open"]

_MANIFEST = "run.json"


def open(run: str | os.PathLike[str] | None = None, store: str | os.PathLike[str] | None = None) -> Run:
    """A run on disk.

    Args:
        run: its id, the beginning of its id (`demo`), or its folder; None: the newest run.
        store: the folder that holds the runs. None: DRIFT_STORE, else `checkpoints/` at DRIFT_HOME, else in the working directory.

    Raises:
        UsageError: there is no such run, or several ids begin so.
        StoreError: it is damaged, or there is no run.

    Example:
        >>> run = drift_cli.open("demo")
        >>> run.turns().head()
    """
    from drift_cli.settings.config import store_folder

    if run is not None and (isinstance(run, os.PathLike) or os.sep in run):
        folder = Path(run).absolute()
        return Run(Stored.open(Store(folder.parent), folder.name))
    found = Store(store_folder(None if store is None else Path(store)))
    return Run(Stored.newest(found) if run is None else Stored.open(found, run))


def compare(
    run: Run | str | os.PathLike[str], condition: str | Sequence[str] | None = None, baseline: str | None = None, **options: Any
) -> Study:
    """`Run.compare` of a run, or of the run that `open` finds.

    Example:
        >>> print(drift_cli.compare("demo", "simple", "baseline").verdict)
    """
    return (run if isinstance(run, Run) else open(run)).compare(condition, baseline, **options)


def load_axis(axis: str | os.PathLike[str]) -> Axis:
    """An axis by name (in `data/axes` at DRIFT_HOME, or the built-in `demo`) or by file.

    Raises:
        DriftError: there is none, or its file is damaged.
        UsageError: it is a torch file, which `drift axis import` reads.

    Example:
        >>> drift_cli.load_axis("demo").at(3)  # (width,) float32, unit norm
    """
    from drift_cli.models.axes import find
    from drift_cli.settings.config import axes_folder

    return find(os.fspath(axis), axes_folder())
