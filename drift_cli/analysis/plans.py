"""A plan's analysis in place of the usual one, and where an analysis is not the planned one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis.results import Measure, Options, Test
from drift_cli.analysis.table import RunTable

if TYPE_CHECKING:
    from drift_cli.store.plan import Plan


def options_of(plan: Plan, options: Options, given: Collection[str] = ()) -> Options:
    """The plan's options in place of those that were not given by name."""
    fields = {
        "primary": Measure(plan.primary),
        "against": plan.against,
        "level": 1 - plan.alpha,
        "test": Test(plan.test),
        "equivalence": plan.smallest_effect,
    }
    return replace(options, **{name: value for name, value in fields.items() if name not in given})  # type: ignore[arg-type]


def departures(plan: Plan, options: Options, table: RunTable) -> list[str]:
    """Where an analysis is not the one that was planned, in words."""
    wanted = options_of(plan, options)
    said = [
        f"{name} {getattr(options, name)}, planned {getattr(wanted, name)}"
        for name in ("primary", "against", "test", "equivalence")
        if getattr(options, name) != getattr(wanted, name)
    ]
    if not np.isclose(options.level, wanted.level):
        said.append(f"level {options.level:g}, planned {wanted.level:g}")
    if options.turns is not None:
        said.append(f"turns {options.turns[0]}-{options.turns[1]}, planned all")
    if plan.axis is not None and table.axis.partition("@")[0] != plan.axis:
        said.append(f"axis {table.axis}, planned {plan.axis}")
    if plan.layer is not None and table.layer != plan.layer:
        said.append(f"layer {table.layer}, planned {plan.layer}")
    return said
