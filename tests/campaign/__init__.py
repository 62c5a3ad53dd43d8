"""Faults that really happen, at every place where they can, and what is left of a run after each.

`scenes` is the small run that everything happens to, and the one check that follows every fault. `calls` injects errors and kills into system calls,
`powercut` drops what was not synced, `damage` cuts and flips bytes, `disks` fills and locks file systems, `races` lets processes fight. Each gives
tallies; `python -m campaign` runs all of them and writes the table of docs/reliability.md, the tests run a part.
"""
