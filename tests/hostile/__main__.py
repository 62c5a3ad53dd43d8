"""`python -m hostile`: every case, counts by kind. Exit code 1 where something broke."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from hostile.campaign import Found, material, run_all
from hostile.cases import every
from hostile.server import served


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="hostile", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every N-th case")
    parser.add_argument("--only", default="", help="only cases whose label has this text")
    parser.add_argument("--words", action="store_true", help="show what each command said")
    asked = parser.parse_args()

    def say(found: Found) -> None:
        if found.problem or asked.words:
            print(f"{found.problem or 'fine'} | {found.case.label} | exit {found.code}\n    {found.words}", flush=True)

    with tempfile.TemporaryDirectory() as folder, served() as server:
        root = Path(folder)
        cases = [case for case in every(material(root)) if asked.only in case.label][:: asked.every]
        made = run_all(server, cases, root / "cases", say)
    kinds, broken = Counter(found.case.kind for found in made), Counter(found.case.kind for found in made if found.problem)
    for kind, number in sorted(kinds.items()):
        print(f"{kind:24} {number:5} {broken[kind]:5} broken")
    print(f"{len(made)} cases, {sum(broken.values())} broken; {sum(found.code != 0 for found in made)} refused", file=sys.stderr)
    return bool(sum(broken.values()))


sys.exit(main())
