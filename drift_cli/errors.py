"""The one error a person is meant to see.

A `DriftError` says what failed, on which file, cell or turn, and how to mend it. It is shown without a traceback; everything else that reaches the
outermost edge is a defect and is shown with one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 75
"""`EX_TEMPFAIL` of sysexits.h: try again later. Schedulers requeue on it."""


class DriftError(Exception):
    """Something the user can mend: `what` failed, and `mend`, the command or edit that mends it."""

    exit_code = EXIT_FAILED

    def __init__(self, what: str, *, mend: str | None = None) -> None:
        super().__init__(what if mend is None else f"{what}\n{mend}")
        self.what = what
        self.mend = mend


class UsageError(DriftError):
    """The command line, environment or drift.toml asks for something that does not exist or does not fit together."""

    exit_code = EXIT_USAGE


class StoreError(DriftError):
    """A file of the store is damaged, in use, or belongs to something else."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'simple'? ` where one of the known names is close to `name`, else nothing: the beginning of a `mend`."""
    close = difflib.get_close_matches(name, list(known), 1, cutoff=0.7)
    return f"Did you mean {close[0]!r}? " if close else ""


def mend_damage(run_id: str) -> str:
    """What to do about damage to a run's rollouts."""
    return (
        f"`drift runs verify {run_id}` lists all damage, with --repair it is set aside; `drift resume {run_id}` then makes the turns again."
    )
