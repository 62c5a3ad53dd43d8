"""A plan from a TOML file: what is declared before there is data. No torch.

    primary = "mean"                 # mean, change, slope or thirds: the one measure that carries the verdict
    against = "baseline"             # the condition that others are compared with
    smallest_effect = 0.3            # the smallest effect of interest, in the axis's units
    looks = [16, 24, 32, 48, 64]     # complete rollouts of every condition at each look; the last is the most
    alpha = 0.05                     # over all looks together
    spending = "obrien-fleming"      # or "pocock"
    test = "paired"                  # or "welch"; without it, pairs where samples share their noise
    axis = "demo"                    # with layer: where the projection is taken
    layer = 5
    note = "Why, in words."

Only `looks` must be there.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from drift_cli.errors import UsageError, did_you_mean
from drift_cli.files import read_regular
from drift_cli.store.plan import Plan

MEASURES = ("mean", "change", "slope", "thirds")
SPENDINGS = ("obrien-fleming", "pocock")
TESTS = ("auto", "welch", "paired")
_DEFAULTS: Mapping[str, Any] = {"primary": "mean", "against": "baseline", "alpha": 0.05, "spending": "obrien-fleming", "test": "auto"}


def read_plan(path: Path) -> Plan:
    """The plan in a file. `UsageError` names the file and what is wrong with it."""
    try:
        found = tomllib.loads(read_regular(path, 1 << 20).decode())
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", mend="docs/plan.md shows a plan.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
    known = [field.name for field in fields(Plan)]
    for key in (key for key in found if key not in known):
        raise UsageError(f"{path}: a plan has no {key!r}", mend=f"{did_you_mean(key, known)}It may have: {', '.join(known)}.")
    return _checked({**_DEFAULTS, **found}, path)


def _checked(given: Mapping[str, Any], path: Path) -> Plan:
    looks = given.get("looks")
    if (
        not isinstance(looks, list)
        or not looks
        or not all(type(look) is int and look >= 2 for look in looks)
        or sorted(set(looks)) != looks
    ):
        raise UsageError(
            f"{path}: looks is {looks!r}", mend="Give numbers of rollouts a condition, ascending, each at least 2: looks = [16, 32, 64]"
        )
    for key, allowed in (("primary", MEASURES), ("spending", SPENDINGS), ("test", TESTS)):
        if given[key] not in allowed:
            raise UsageError(f"{path}: {key} is {given[key]!r}", mend=f"Use one of: {', '.join(allowed)}.")
    for key in ("against", "axis", "note"):
        if given.get(key) is not None and not isinstance(given[key], str):
            raise UsageError(f"{path}: {key} is {given[key]!r}", mend="Give a text.")
    layer = given.get("layer")
    if layer is not None and (type(layer) is not int or layer < 0):
        raise UsageError(f"{path}: layer is {layer!r}", mend="Give a layer's number.")
    effect = given.get("smallest_effect")
    return Plan(
        primary=given["primary"],
        against=given["against"],
        looks=tuple(looks),
        alpha=_number(given["alpha"], "alpha", path, most=0.5),
        spending=given["spending"],
        test=given["test"],
        smallest_effect=None if effect is None else _number(effect, "smallest_effect", path),
        axis=given.get("axis"),
        layer=layer,
        note=given.get("note"),
    )


def _number(value: Any, key: str, path: Path, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value <= most and math.isfinite(value)):
        raise UsageError(f"{path}: {key} is {value!r}", mend=f"Give a number above 0{'' if most == math.inf else f' and up to {most:g}'}.")
    return float(value)
