"""A part of the crash campaign; `make campaign` injects all of it. See `campaign`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign import calls, damage, disks, inject, powercut, program, races
from campaign.mutants import MUTANTS
from campaign.scenes import quick_folder
from campaign.tally import Tally

needs_strace = pytest.mark.skipif(inject.missing() is not None, reason=str(inject.missing()))
needs_mount = pytest.mark.skipif(disks.cannot_mount() is not None, reason=str(disks.cannot_mount()))


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield Path(made)


def kept(tallies: list[Tally], least: int) -> bool:
    """Every promise held, and as many faults as that were injected."""
    assert [problem for tally in tallies for problem in tally.problems] == []
    assert sum(tally.lost + tally.undetected for tally in tallies) == 0
    assert sum(tally.survived for tally in tallies) == sum(tally.injected for tally in tallies) >= least
    return True


@needs_strace
def test_errors_and_kills_in_system_calls_lose_nothing(folder: Path) -> None:
    assert kept(calls.faults(folder, every=13, first=5), least=300)


@needs_strace
def test_power_cuts_lose_nothing_that_was_acknowledged(folder: Path) -> None:
    assert kept(powercut.faults(folder, every=9, first=3, mixes=3), least=400)


def test_damage_never_goes_unnoticed_and_is_set_right(folder: Path) -> None:
    assert kept(damage.faults(folder, every=29, first=7), least=800)


def test_writes_cut_short_lose_nothing(folder: Path) -> None:
    assert kept([disks.short_writes(folder, every=37, first=11)], least=50)


@needs_strace
def test_without_locks_one_process_works_as_with_them(folder: Path) -> None:
    assert kept(disks.no_locks(folder), least=6)


def test_clocks_that_jump_change_no_byte(folder: Path) -> None:
    assert kept([disks.jumping_clocks(folder, 5)], least=15)


@needs_mount
def test_a_full_file_system_loses_nothing(folder: Path) -> None:
    assert kept([disks.full_disks(folder)], least=20)


@needs_mount
def test_a_file_system_that_turns_read_only_is_read_and_said(folder: Path) -> None:
    assert kept([disks.read_only_disk(folder)], least=2)


def test_two_processes_at_once_never_mix(folder: Path) -> None:
    tally = races.with_locks(folder, 80)
    assert kept([tally], least=80)
    assert tally.named > 0  # they did meet


def test_where_locks_do_nothing_two_processes_never_mix(folder: Path) -> None:
    tally = races.without_locks(folder, 80)
    assert kept([tally], least=80)
    assert tally.named > 0  # they did meet


def test_notes_of_processes_that_are_gone_keep_nobody_out(folder: Path) -> None:
    assert kept([races.stale_locks(folder)], least=5)


@needs_strace
def test_the_whole_program_under_faults_ends_in_the_same_bytes(folder: Path) -> None:
    kinds = (("fsync", "error=EIO"), ("write", "error=ENOSPC"), ("fsync", "signal=SIGKILL"))
    assert kept([program.faults(folder, places=(0.5,), kinds=kinds)], least=3)


def test_every_mutant_changes_one_place_of_the_code() -> None:
    """`make mutants` is run by hand: a mutant whose text is gone would go unnoticed till then."""
    code = Path(__file__).parent.parent / "drift_cli"
    assert {mutant: (code / mutant.file).read_text(encoding="utf-8").count(mutant.old) for mutant in MUTANTS} == dict.fromkeys(MUTANTS, 1)
