"""A run as one pandas DataFrame, a row to a turn: the columns that `drift export` writes, with the same names.

Missing numbers are NaN (floats) or <NA> (whole numbers); missing texts are None. `attrs` holds what makes the numbers comparable: run, model, axes, seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drift_cli.interchange.rows import axes_of, rows
from drift_cli.interchange.tables import WHOLE, columns, fields, known
from drift_cli.segments import Part

if TYPE_CHECKING:
    import pandas as pd

    from drift_cli.store.run import Run


def turns_frame(run: Run, *, axes: Sequence[str] | None = None, residuals: bool = False, part: Part = Part.ANSWER) -> pd.DataFrame:
    """Every committed turn, cells in the manifest's order, then by sample and turn.

    Args:
        run: the run.
        axes: names of the axes to give a column `projection_<axis>`; all for None.
        residuals: add a column `residual_<layer>` for each stored layer: the reply's mean residual, (width,) float32, or None.
        part: what of each reply projections and residual means are of, where replies have segments.

    Raises:
        StoreError: an axis that the run does not have, or a damaged file.
        UsageError: reasoning of a run without segments.
    """
    import pandas as pd

    entries = axes_of(run, axes)
    found = list(rows(run, entries, residuals=residuals, part=part))
    made = pd.DataFrame([fields(run, row, part) for row in found], columns=list(columns(run)))
    made = made.astype({name: WHOLE[name] for name in WHOLE if name in made} | {"temperature": "float64"})
    for place, entry in enumerate(entries):
        made[f"projection_{entry.name}"] = pd.array([row.projections[place] for row in found], dtype="object").astype("float64")
    for place, layer in enumerate(run.manifest.layers if residuals else ()):
        made[f"residual_{layer}"] = [None if row.residual is None else row.residual[place] for row in found]
    made.attrs = known(run, entries, part)
    return made
