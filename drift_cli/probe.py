"""Projects residual means on an axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def project(residual: NDArray[Any], axis: NDArray[Any]) -> float:
    """Dot product of a residual mean (width,) with a unit axis (width,), accumulated in float64."""
    return float(np.dot(residual.astype(np.float64), axis.astype(np.float64)))
