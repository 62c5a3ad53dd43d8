"""What an axis is: the mean of the assistant's personas minus the mean of the others, of unit norm, at each layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drift_cli.errors import DriftError, UsageError


def contrast(means: NDArray[np.float64], sides: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of the assistant's personas minus mean of the others.

    Args:
        means: (personas, …).
        sides: (personas,), True for the assistant's; both sides must have one.

    Returns:
        (…), not normalized.
    """
    return np.asarray(means[sides].mean(0) - means[~sides].mean(0))


def sides_of(personas: Sequence[str], assistants: Sequence[str], what: str) -> NDArray[np.bool_]:
    """(personas,), True for the assistant's. `UsageError` where one is unknown, or a side has nobody."""
    unknown = [p for p in assistants if p not in personas]
    if unknown:
        raise UsageError(f"{what} has no persona {unknown[0]!r}", mend=f"It has: {', '.join(personas)}.")
    sides = np.array([p in assistants for p in personas])
    if sides.all() or not sides.any():
        raise UsageError(f"{what}: no two sides to contrast", mend="Name the assistant personas with --assistant NAME (repeat it).")
    return sides


def unit(vectors: NDArray[np.float64], what: str) -> NDArray[np.float32]:
    """Rows (n, width) of unit norm. `DriftError` where one is zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if np.any(norms == 0):
        raise DriftError(f"{what}: the axis is zero at some layer")
    return np.asarray(vectors / norms, dtype=np.float32)
