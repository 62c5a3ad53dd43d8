"""Which condition is whose placebo: a prompt of the same length in the same place that says nothing to the point."""

from __future__ import annotations

from collections.abc import Mapping

from drift_cli.spec import Condition

PLACEBO = "placebo"
"""A condition with this in its name is one, whatever its length."""
NEAR = 0.1
"""How far, as a share, a placebo's number of words may be from that of a prompt that it was not made for."""


def is_placebo(name: str, condition: Condition | None = None) -> bool:
    """Whether a condition is a placebo: by its name, or as it was made for another."""
    return PLACEBO in name.lower() or (condition is not None and condition.placebo_of is not None)


def placebos(conditions: Mapping[str, Condition]) -> dict[str, str]:
    """Condition → the placebo that is matched to it in length and placement; conditions without one are left out."""
    found = {}
    made = {name: one for name, one in conditions.items() if is_placebo(name, one) and one.system is not None}
    for name, one in conditions.items():
        if one.system is None or name in made:
            continue
        own = next((other for other, placebo in made.items() if placebo.placebo_of == name), None)
        near = own or next((other for other, placebo in made.items() if _matched(one, placebo)), None)
        if near is not None:
            found[name] = near
    return found


def unmatched(conditions: Mapping[str, Condition], baseline: str) -> tuple[str, ...]:
    """Conditions with a prompt that have no placebo of their own, where there is a placebo at all."""
    have = placebos(conditions)
    if not any(is_placebo(name, one) for name, one in conditions.items()):
        return ()
    return tuple(
        name
        for name, one in conditions.items()
        if one.system is not None and not is_placebo(name, one) and name != baseline and name not in have
    )


def _matched(one: Condition, placebo: Condition) -> bool:
    words, others = (len((of.system or "").split()) for of in (one, placebo))
    return placebo.placebo_of is None and one.placement is placebo.placement and abs(others - words) <= NEAR * words
