"""What the statistics say, as frozen dataclasses: `dataclasses.asdict` gives plain JSON.

Nothing here is ever NaN: what cannot be computed is None, and a `note` says why. Differences are `a` minus `b`, in the axis's units.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """How the p values of a pair's turns are adjusted for one another."""

    MAXT = "maxt"
    HOLM = "holm"
    BH = "bh"
    NONE = "none"


class Flagged(StrEnum):
    """What becomes of suspect replies (empty, repeating themselves, reciting the system prompt)."""

    INCLUDE = "include"
    EXCLUDE = "exclude"
    BOTH = "both"


class Measure(StrEnum):
    """What is taken of each rollout; `measures.py` defines them."""

    MEAN = "mean"
    SLOPE = "slope"
    AREA = "area"
    THIRDS = "thirds"


@dataclass(frozen=True)
class Options:
    """What is asked of an analysis."""

    test: Test = Test.WELCH
    against: str | None = None
    """Compare every condition with this one; None: all pairs."""
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
    statistic: float | None = None
    df: float | None = None
    hedges_g: float | None = None
    """The difference in pooled sample SDs, corrected for small samples, with its interval."""
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


@dataclass(frozen=True, kw_only=True)
class Comparison(Difference):
    """Two conditions on one measure. Transcript is None where several are taken together; both are None for conditions that share no cell."""

    a: str
    b: str
    transcript: str | None
    temperature: float | None
    measure: Measure = Measure.MEAN
    transcripts: int = 1
    """How many transcripts the numbers stand on."""
    p_adjusted: float | None = None
    """By Holm (1979), over the comparisons of this measure that were asked for."""


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
    """Over the turns of this pair."""
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
    """Half the band's width, in standard errors."""
    method: str
    note: str | None = None

    @property
    def significant(self) -> tuple[int, ...]:
        """Turns whose adjusted p is below 1 - level."""
        return tuple(t.turn for t in self.turns if t.p_adjusted is not None and t.p_adjusted < 1 - self.level)


@dataclass(frozen=True, kw_only=True)
class CellDrift:
    """One cell on one measure of drift. A slope alone confounds time with the script: only differences between conditions speak of drift."""

    transcript: str
    condition: str
    temperature: float
    measure: Measure
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

    def __str__(self) -> str:
        """One line for under a table."""
        layer = "" if self.layer is None else f" layer {self.layer}"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"run {self.run}, axis {self.axis}{layer}, data {self.data}; seed {self.seed}, {self.resamples} resamples; {versions}"


@dataclass(frozen=True)
class PartProvenance(Provenance):
    """Of a run whose replies have segments."""

    segment: str
    """The part that was measured: a value of `Part`."""

    def __str__(self) -> str:
        return super().__str__().replace(", data ", f", segment {self.segment}, data ", 1)
