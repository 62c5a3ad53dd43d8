"""What was declared before there was data: the primary measure and comparison, the smallest effect of interest, the looks and the α they spend.

A plan is part of a run's manifest, with a digest of its own, and never changes. No torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from drift_cli.spec import digest_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan as the manifest keeps it."""

    primary: str
    """The measure that carries the verdict: a value of `analysis.results.Measure`."""
    against: str
    """The condition that others are compared with."""
    looks: tuple[int, ...]
    """Complete rollouts of every condition at each look, ascending; the last is the most that are made."""
    alpha: float
    """Two-sided, over all looks together."""
    spending: str
    """A value of `analysis.sequential.Spending`."""
    test: str
    """A value of `analysis.results.Test`."""
    smallest_effect: float | None = None
    """The smallest effect of interest, in the axis's units."""
    axis: str | None = None
    layer: int | None = None
    """Where the projection is taken, where the plan says so."""
    note: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything above."""
        return digest_of(asdict(self))


@dataclass(frozen=True, kw_only=True)
class SealedPlan:
    """A plan with the digest that it had when it was written."""

    plan: Plan
    digest: str

    @classmethod
    def of(cls, plan: Plan) -> SealedPlan:
        """A plan, sealed now."""
        return cls(plan=plan, digest=plan.digest)

    @property
    def intact(self) -> bool:
        """Whether the plan is as it was written."""
        return self.plan.digest == self.digest
