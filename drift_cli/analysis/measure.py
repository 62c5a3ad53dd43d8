"""What can be measured: of each reply in place of its projection, and of each rollout. A registry that Python code and installed packages add to.

- A *reply measure* gives a number for each reply. Statistics, pictures and the report then speak of it as they do of projections.
- A *rollout measure* gives a number for each rollout, from the numbers of its replies. Drift's own are in `measures.py`.

From Python: the decorators `reply_measure` and `rollout_measure`, or `register`. From a package: the entry point group `drift.measures`, each entry of which
names a measure or a sequence of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from drift_cli import plugins
from drift_cli.errors import DriftError, UsageError, did_you_mean
from drift_cli.names import checked_name
from drift_cli.spec import Finish, Rollout

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Reply:
    """One reply, as a measure sees it."""

    rollout: Rollout
    """Its cell (transcript, condition, temperature) and its sample."""
    turn: int
    """1 for the first."""
    user: str
    """The user turn that it answers."""
    text: str
    """Of the part that is measured: the answer, unless something else is asked for."""
    reasoning: str | None
    """The reasoning's text; None where the reply has none."""
    finish: Finish
    tokens: int | None
    """Ids as sampled, the end-of-turn token included; None where they are not known."""


@dataclass(frozen=True)
class Measure:
    """Something that is measured: `name` is what options take, `words` what tables and pictures say."""

    name: str
    words: str

    def __post_init__(self) -> None:
        checked_name("measure", self.name)


@dataclass(frozen=True)
class ReplyMeasure(Measure):
    """A number for each reply."""

    of: Callable[[Reply], float | None] = field(repr=False)
    """The number; None where the reply has none: the turn is missing then, never 0."""

    def take(self, reply: Reply) -> float:
        """The reply's number; NaN where it has none. `DriftError` where the measure fails, or gives something that is no finite number."""
        value = _called(self, lambda: self.of(reply), f"{reply.rollout} turn {reply.turn}")
        return math.nan if value is None else _finite(self, value, f"{reply.rollout} turn {reply.turn}")


@dataclass(frozen=True)
class RolloutMeasure(Measure):
    """A number for each rollout, from its values y (one to each turn that counts): linear by `weights`, or by any function `of` them."""

    least: int = 1
    """Turns that it needs."""
    weights: Callable[[FloatArray], FloatArray] | None = field(default=None, repr=False)
    """Weights (T,) by the turns' numbers (T,): the measure is Σ w y. Rollouts that lack turns count as far as they go (`measures.py`)."""
    of: Callable[[FloatArray, FloatArray], float] | None = field(default=None, repr=False)
    """Of a rollout's values (T,) and the turns' numbers (T,). Rollouts that lack a turn that counts are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.weights is None) == (self.of is None):
            raise UsageError(f"measure {self.name} needs either weights or a function of a rollout's values")

    def take(self, values: FloatArray, turns: FloatArray) -> FloatArray:
        """Numbers (n,) of rollouts with all turns: values (n, T), turns (T,). `DriftError` where the measure fails."""
        if self.weights is not None:
            return np.asarray(values @ self.weights(turns), dtype=np.float64)
        assert self.of is not None
        function = self.of
        found = [_called(self, lambda row=row: function(row, turns), "a rollout") for row in values]  # type: ignore[misc]
        return np.array([_finite(self, value, "a rollout") for value in found], dtype=np.float64)


M = TypeVar("M", bound=Measure)
_registered: dict[str, Measure] = {}
"""By name; drift's own first, in the order of tables."""
_own: set[str] = set()


def register(measure: M) -> M:
    """Add a measure for this process, in place of one of the same name that was added before. `UsageError` where the name is one of drift's own."""
    if measure.name in _own:
        raise UsageError(f"measure {measure.name} is drift's own", mend="Give yours another name.")
    _registered[measure.name] = measure
    return measure


def register_own(measures: Iterable[Measure]) -> None:
    """Add drift's own, which nobody replaces."""
    for measure in measures:
        _registered[measure.name] = measure
        _own.add(measure.name)


def reply_measure(name: str, words: str) -> Callable[[Callable[[Reply], float | None]], ReplyMeasure]:
    """A decorator that makes a function of a reply a registered measure.

    >>> @drift_cli.reply_measure("questions", "questions per reply")
    ... def questions(reply):
    ...     return reply.text.count("?")
    """
    return lambda function: register(ReplyMeasure(name, words, function))


def rollout_measure(name: str, words: str, least: int = 1) -> Callable[[Callable[[FloatArray, FloatArray], float]], RolloutMeasure]:
    """A decorator that makes a function of a rollout's values (T,) and the turns' numbers (T,) a registered measure.

    >>> @drift_cli.rollout_measure("lowest", "lowest turn")
    ... def lowest(values, turns):
    ...     return values.min()
    """
    return lambda function: register(RolloutMeasure(name, words, least, of=function))


def reply_measures() -> tuple[ReplyMeasure, ...]:
    """All that there are, those of installed packages included."""
    return tuple(measure for measure in _all().values() if isinstance(measure, ReplyMeasure))


def rollout_measures() -> tuple[RolloutMeasure, ...]:
    """All that there are, drift's own first."""
    return tuple(measure for measure in _all().values() if isinstance(measure, RolloutMeasure))


def added_rollout_measures() -> tuple[RolloutMeasure, ...]:
    """Those that are not drift's own."""
    return tuple(measure for measure in rollout_measures() if measure.name not in _own)


def find_reply_measure(name: str) -> ReplyMeasure:
    """By name. `UsageError` lists the names, and says which package could not be loaded."""
    return _find(name, reply_measures(), "measure of replies")


def find_rollout_measure(name: str) -> RolloutMeasure:
    """By name. `UsageError` as `find_reply_measure`."""
    return _find(name, rollout_measures(), "measure of rollouts")


def problems() -> tuple[str, ...]:
    """What installed packages add and cannot be used, a sentence each."""
    _, said = _from_packages()
    return (*plugins.added(plugins.MEASURES).problems.values(), *said)


def _find(name: str, known: Sequence[M], what: str) -> M:
    found = next((measure for measure in known if measure.name == name), None)
    if found is not None:
        return found
    failed = plugins.added(plugins.MEASURES).problems
    if name in failed:
        raise UsageError(f"measure {failed[name]}", mend="Mend or uninstall that package.")
    names = [measure.name for measure in known]
    there = f"There are: {', '.join(names)}." if names else "None is installed or registered (docs/extending.md)."
    raise UsageError(f"there is no {what} {name!r}", mend=f"{did_you_mean(name, names)}{there}")


def _all() -> dict[str, Measure]:
    """Drift's own, then installed ones, then those of this process, which stand for installed ones of the same name."""
    import drift_cli.analysis.measures  # noqa: F401 (registers drift's own)

    installed, _ = _from_packages()
    own = {name: measure for name, measure in _registered.items() if name in _own}
    return {**own, **installed, **_registered}


def _from_packages() -> tuple[dict[str, Measure], tuple[str, ...]]:
    """Measures of installed packages by name, and what is wrong with others."""
    found: dict[str, Measure] = {}
    said = []
    for entry, thing in plugins.added(plugins.MEASURES).found.items():
        for measure in thing if isinstance(thing, list | tuple) else [thing]:
            if not isinstance(measure, ReplyMeasure | RolloutMeasure):
                said.append(f"{entry} ({plugins.MEASURES}) is left out: {type(measure).__name__} is no ReplyMeasure or RolloutMeasure")
            elif measure.name in _own or measure.name in found:
                said.append(f"measure {measure.name} of {entry} ({plugins.MEASURES}) is left out: there is another of that name")
            else:
                found[measure.name] = measure
    return found, tuple(said)


def _called(measure: Measure, call: Callable[[], float | None], where: str) -> float | None:
    try:
        return call()
    except Exception as error:
        raise DriftError(f"measure {measure.name} failed on {where}: {type(error).__name__}: {error}") from error


def _finite(measure: Measure, value: object, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise DriftError(
            f"measure {measure.name} gave {value!r} for {where}", mend="It must give a finite number, or None where there is none."
        )
    return number
