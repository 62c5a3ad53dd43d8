"""What the statistics say, as frozen dataclasses: `dataclasses.asdict` gives plain JSON.

Nothing here is ever NaN: what cannot be computed is None, and a `note` says why. Differences are `a` minus `b`, in the axis's units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Test(StrEnum):
    """How two conditions are compared; `tests.py` and `mixed.py` say what each assumes."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    WELCH = "welch"
    BOOTSTRAP = "bootstrap"
    PERMUTATION = "permutation"
    PAIRED = "paired"
    MIXED = "mixed"


class Correction(StrEnum):
    """How the p values of the secondary family (pairs × turns, and the other measures) are adjusted for one another."""

    MAXT = "maxt"
    HOLM = "holm"
    BH = "bh"
    NONE = "none"


class Flagged(StrEnum):
    """What becomes of suspect replies (empty, repeating themselves, reciting the system prompt)."""

    INCLUDE = "include"
    EXCLUDE = "exclude"
    BOTH = "both"


class Role(StrEnum):
    """What a comparison is for: the declared one carries the verdict, all others are one family with one correction."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class Measure(StrEnum):
    """Drift's own measures of a rollout, by name; `measures.py` defines them. Others may be added (`measure.py`)."""

    MEAN = "mean"
    CHANGE = "change"
    SLOPE = "slope"
    AREA = "area"
    THIRDS = "thirds"


@dataclass(frozen=True)
class Options:
    """What is asked of an analysis."""

    test: Test = Test.WELCH
    against: str | None = None
    """Compare every condition with this one; None: all pairs, of which those with the run's first condition are primary."""
    primary: str = Measure.MEAN
    """The measure that carries the verdict."""
    level: float = 0.95
    """Of every interval and band; tests are at 1 - level."""
    correction: Correction = Correction.MAXT
    equivalence: float | None = None
    """Margin of the two one-sided tests, in the axis's units."""
    turns: tuple[int, int] | None = None
    """First and last turn that count, 1 for the transcript's first; None: all."""
    ddof: int = 1
    """Of the SD and SEM that are shown; intervals and tests stand on the sample SD whatever it is."""
    seed: int = 0
    resamples: int = 9999

    def __post_init__(self) -> None:
        if self.primary in {measure.value for measure in Measure}:
            object.__setattr__(self, "primary", Measure(self.primary))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two groups' means, with what a test says about it."""

    n_a: int
    n_b: int
    """Observations, that is rollouts."""
    difference: float | None
    """Mean of a minus mean of b."""
    low: float | None = None
    high: float | None = None
    level: float
    """Of the interval, such as .95."""
    p: float | None = None
    """Two-sided."""
    p_error: float | None = None
    """Monte Carlo standard error of a resampled p."""
    statistic: float | None = None
    df: float | None = None
    hedges_g: float | None = None
    """The difference over the root of the average of both sample variances, corrected for small samples, with its interval."""
    g_low: float | None = None
    g_high: float | None = None
    p_equivalence: float | None = None
    """Of the two one-sided tests: small where the difference lies within ± the margin."""
    r: float | None = None
    """Paired only: correlation of the pairs."""
    gain: float | None = None
    """Paired only: variance of the difference without pairing, over the variance with it. 2: pairing was worth twice as many rollouts."""
    p_flip: float | None = None
    """Paired only: the sign-flip permutation test of the same differences."""
    method: str
    note: str | None = None


def passes(p: float | None, level: float) -> bool:
    """Whether p is at most 1 - level, up to rounding."""
    return p is not None and p <= 1 - level + 1e-12


@dataclass(frozen=True)
class Worst:
    """What missing turns may hide: bounds of the difference, and how far they would have to lie off."""

    low: float
    high: float
    """Ends of the intervals of the difference with every missing reply at the lowest or highest projection seen, whichever is worse (Manski 1990)."""
    tipping: float | None
    """How far, in axis units, missing replies would have to lie from those that are there for the interval to reach 0; None where it holds 0 already."""
    share_a: float
    share_b: float
    """Of the replies that are missing."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Difference):
    """Two conditions on one measure. Transcript is None where several are taken together; both are None for conditions that share no cell."""

    a: str
    b: str
    transcript: str | None
    temperature: float | None
    measure: str = Measure.MEAN
    transcripts: int = 1
    """How many transcripts the numbers stand on."""
    role: Role = Role.SECONDARY
    p_adjusted: float | None = None
    """Primary: by Holm (1979) over the primary comparisons. Secondary: over the whole secondary family."""
    p_adjusted_error: float | None = None
    """Monte Carlo standard error of a resampled adjusted p."""
    gate: float | None = None
    """Secondary: the smallest adjusted p of the primary comparisons. Nothing secondary is starred where it is above 1 - level."""
    worst: Worst | None = None
    """Where rollouts lack turns: what these may hide."""

    @property
    def starred(self) -> bool:
        """Whether the difference is shown: adjusted p at most 1 - level, and for a secondary one a primary difference shown as well."""
        return passes(self.p_adjusted, self.level) and (self.role is Role.PRIMARY or self.gate is None or passes(self.gate, self.level))


@dataclass(frozen=True, kw_only=True)
class TurnComparison:
    """Two conditions at one turn."""

    turn: int
    """1 for the first."""
    n_a: int
    n_b: int
    difference: float | None
    low: float | None = None
    high: float | None = None
    """Pointwise interval."""
    band_low: float | None = None
    band_high: float | None = None
    """Simultaneous band: holds the differences of all turns together, with the level's probability."""
    statistic: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    """Over the secondary family: all pairs and turns, and the other measures."""
    p_error: float | None = None
    """Monte Carlo standard error of the adjusted p, where it is resampled."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class PairTurns:
    """Two conditions turn by turn."""

    a: str
    b: str
    transcript: str
    temperature: float
    level: float
    correction: Correction
    turns: tuple[TurnComparison, ...]
    critical: float | None
    """Half the band's width, in standard errors. The band holds all pairs and turns of the study together."""
    method: str
    note: str | None = None
    gate: float | None = None
    """As in `Comparison`."""

    @property
    def significant(self) -> tuple[int, ...]:
        """Turns whose adjusted p is at most 1 - level, where a primary difference is shown as well."""
        if self.gate is not None and not passes(self.gate, self.level):
            return ()
        return tuple(t.turn for t in self.turns if passes(t.p_adjusted, self.level))


@dataclass(frozen=True, kw_only=True)
class CellDrift:
    """One cell on one measure of drift. A slope alone confounds time with the script: only differences between conditions speak of drift."""

    transcript: str
    condition: str
    temperature: float
    measure: str
    n: int
    mean: float | None
    low: float | None
    high: float | None
    note: str | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from, enough to compute them again."""

    run: str
    axis: str
    layer: int | None
    data: str
    """SHA-256 (first 16 hex digits) of the projections that went in, missing turns included."""
    seed: int
    resamples: int
    versions: dict[str, str]
    quantity: str | None = field(default=None, kw_only=True)
    """What was measured of replies in place of projections, in words; `axis` is the measure's name then."""

    def __str__(self) -> str:
        """One line for under a table."""
        layer = "" if self.layer is None else f" layer {self.layer}"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        what = "axis" if self.quantity is None else "measure"
        return f"run {self.run}, {what} {self.axis}{layer}, data {self.data}; seed {self.seed}, {self.resamples} resamples; {versions}"


@dataclass(frozen=True)
class PartProvenance(Provenance):
    """Of a run whose replies have segments."""

    segment: str
    """The part that was measured: a value of `Part`."""

    def __str__(self) -> str:
        return super().__str__().replace(", data ", f", segment {self.segment}, data ", 1)
