"""`make breadth`: every type against the table. Prints what differs, and how many there are of each kind; exit code 1 where anything differs."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from breadth.verdicts import Verdict

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
_PATIENCE = 900
"""Seconds without any verdict after which a process must have died."""


def main() -> int:
    """Run the types named, or all."""
    parser = argparse.ArgumentParser(prog="breadth", description=__doc__)
    parser.add_argument("names", nargs="*", help="types or variants (default: all)")
    parser.add_argument("--write", action="store_true", help="write what was found into table.toml")
    asked = parser.parse_args()
    from breadth.verdicts import known_types, table

    expected, names = table(), asked.names or known_types()
    started, found = time.monotonic(), []
    for each in _verdicts(names):
        found.append(each)
        right = each.agrees(expected.get(each.name))
        if not right:
            print(
                f"{each.name}\n  table:    {expected.get(each.name, 'not in the table')}\n  measured: {each.text}  {each.detail}",
                flush=True,
            )
    if asked.write:
        _write({**expected, **{each.name: _kept(each, expected.get(each.name)) for each in found}})
    _summary(found, [] if asked.names else [name for name in expected if name not in known_types()], time.monotonic() - started)
    return int(any(not each.agrees(expected.get(each.name)) for each in found))


def _verdicts(names: list[str]) -> Iterator[Verdict]:
    """In whatever order they come."""
    from breadth.verdicts import alone

    with get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=20) as pool:
        done = pool.imap_unordered(alone, names)
        for _ in names:
            yield done.next(timeout=_PATIENCE)


def _kept(each: Verdict, expected: str | None) -> str:
    return expected if expected is not None and each.agrees(expected) else each.text


def _write(verdicts: dict[str, str]) -> None:
    import json

    from breadth.verdicts import TABLE

    head = TABLE.read_text().partition("\n\n")[0]
    lines = [
        f"{json.dumps(name) if not name.replace('-', '').replace('_', '').isalnum() else name} = {json.dumps(verdicts[name], ensure_ascii=False)}"
        for name in sorted(verdicts)
    ]
    TABLE.write_text(f"{head}\n\n" + "\n".join(lines) + "\n")


def _summary(found: list[Verdict], unknown: list[str], seconds: float) -> None:
    import transformers

    kinds = Counter(each.kind for each in found)
    built = len(found) - kinds["excluded"]
    print(
        f"transformers {transformers.__version__}: {len(found)} model types and variants in {seconds:.0f} s\n"
        f"  built                                        {built}\n"
        f"  exact in slots                               {kinds['exact']}\n"
        f"  on the reference engine, with a reason       {kinds['reference']}\n"
        f"  refused, with a reason                       {kinds['refused']}\n"
        f"  excluded, with a reason                      {kinds['excluded']}\n"
        f"  wrong numbers                                {kinds['WRONG']}\n"
        f"  in the table, unknown to this release        {len(unknown)}{': ' + ', '.join(unknown) if unknown else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
