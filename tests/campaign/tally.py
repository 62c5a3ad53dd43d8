"""What a part of the campaign counted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """Faults of one kind.

    A fault is *survived* where everything acknowledged was there afterwards and the run ended in the same bytes as an uninterrupted one; *named* are
    those of them that left damage, which was named and set aside first. Whatever else happened is a problem, in words.
    """

    name: str
    injected: int = 0
    survived: int = 0
    named: int = 0
    lost: int = 0
    undetected: int = 0
    problems: list[str] = field(default_factory=list)

    def count(self, fault: str, outcome: Outcome) -> None:
        """Add one fault."""
        self.injected += 1
        self.named += outcome.named
        self.lost += outcome.lost > 0
        self.undetected += outcome.undetected
        self.survived += not outcome.problems
        self.problems += [f"{self.name}, {fault}: {problem}" for problem in outcome.problems]


@dataclass
class Outcome:
    """What one fault led to."""

    named: bool = False
    lost: int = 0
    """Turns that had been acknowledged and are not there."""
    undetected: bool = False
    """The run ended in other bytes, and nothing said so."""
    problems: list[str] = field(default_factory=list)


def table(tallies: list[Tally]) -> str:
    """The tallies as a Markdown table with a last row of sums."""
    rows = [(t.name, t.injected, t.survived, t.named, t.lost, t.undetected) for t in tallies]
    sums = ("**all**", *(sum(row[column] for row in rows) for column in range(1, 6)))  # type: ignore[misc]
    heads = ("fault", "injected", "survived", "of these named, set aside", "lost", "undetected")
    lines = [heads, ("---", *["--:"] * 5), *rows, sums]
    return "\n".join("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in line) + " |" for line in lines)
