"""`python -m campaign`: the whole campaign. Prints its summary, and with `--write` puts it into docs/reliability.md. Exit code 1 where a promise broke."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from campaign import calls, damage, disks, inject, powercut, program, races
from campaign.scenes import quick_folder
from campaign.tally import Tally, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- campaign: written by `make campaign` -->", "<!-- end of campaign -->"
RACES = 1000

Part = Callable[[Path], list[Tally]]


def parts(every: int) -> dict[str, Part]:
    """Everything there is to do, by name; every `every`-th fault of it."""
    return {
        "system calls": lambda folder: calls.faults(folder, every),
        "power cuts": lambda folder: powercut.faults(folder, every),
        "damaged bytes": lambda folder: damage.faults(folder, every),
        "disks and clocks": lambda folder: _disks(folder, every),
        "races": lambda folder: _races(folder, every),
        "the whole program": lambda folder: [program.faults(folder)],
    }


def _disks(folder: Path, every: int) -> list[Tally]:
    made = [*disks.no_locks(folder), disks.short_writes(folder, every), disks.jumping_clocks(folder, max(1, 100 // every))]
    return made if disks.cannot_mount() else [*made, disks.full_disks(folder), disks.read_only_disk(folder)]


def _races(folder: Path, every: int) -> list[Tally]:
    number = max(1, RACES // every)
    return [races.with_locks(folder, number), races.without_locks(folder, number), races.stale_locks(folder)]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="inject only every N-th fault")
    parser.add_argument("--only", help="one part: " + ", ".join(parts(1)))
    parser.add_argument("--write", action="store_true", help="write the summary into docs/reliability.md")
    asked = parser.parse_args()
    for reason in filter(None, (inject.missing(), disks.cannot_mount())):
        print(f"incomplete: {reason}", file=sys.stderr)
    if inject.missing():
        return 1
    tallies: list[Tally] = []
    for name, part in parts(asked.every).items():
        if asked.only in (None, name):
            started = time.monotonic()
            with quick_folder() as folder:
                tallies += part(Path(folder))
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    problems = [problem for tally in tallies for problem in tally.problems]
    injected, survived = sum(t.injected for t in tallies), sum(t.survived for t in tallies)
    lost, undetected = sum(t.lost for t in tallies), sum(t.undetected for t in tallies)
    print(table(tallies))
    print(f"\n{injected:,} faults injected, {survived:,} survived, lost = {lost}, undetected = {undetected}")
    print("\n".join(problems[:50]), file=sys.stderr)
    if asked.write:
        part = "" if asked.every == 1 else f"One fault in {asked.every} of the whole campaign. "
        _write(table(tallies), f"{part}{injected:,} faults injected, {survived:,} survived, lost = {lost}, undetected = {undetected}.")
    return bool(problems)


def _write(rows: str, summary: str) -> None:
    """Replace what stands between the two marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{rows}\n\n{summary}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
