"""`python -m campaign.mutants`: breaks each promise in a copy of the code on purpose, and sees that its named test fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from campaign.scenes import quick_folder

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """One line of the code, what it becomes, and the test that must notice."""

    promise: str
    file: str
    old: str
    new: str
    test: str


_POWER = "test_campaign.py::test_power_cuts_lose_nothing_that_was_acknowledged"
_CALLS = "test_campaign.py::test_errors_and_kills_in_system_calls_lose_nothing"
_DAMAGE = "test_campaign.py::test_damage_never_goes_unnoticed_and_is_set_right"
MUTANTS = (
    Mutant("a line is synced", "store/growing.py", "        self._sync(len(data))", "        pass", _POWER),
    Mutant(
        "a whole file is synced before its name",
        "files.py",
        "            os.fsync(fd)\n        finally",
        "            pass\n        finally",
        _POWER,
    ),
    Mutant("names are synced", "store/log.py", "            sync_folders(self._paths.root, path.parent)", "            pass", _POWER),
    Mutant("what a killed process left is synced", "store/log.py", "        self._lines.sync()", "        pass", "test_store_faults.py"),
    Mutant("means come before their line", "store/log.py", "            means.append(data)", "            pass", "test_store_faults.py"),
    Mutant("the chain is checked", "store/reader.py", "    if named != prev:", "    if False:", "test_store_log.py"),
    Mutant("a line's checksum is checked", "store/line.py", "    if line[-_SEAL:] != _seal(line[:-_SEAL]):", "    if False:", _DAMAGE),
    Mutant(
        "checksums of means are checked", "store/residuals.py", '    if f"{crc32(data):08x}" != stored.crc[row]:', "    if False:", _DAMAGE
    ),
    Mutant(
        "the manifest's digest is checked",
        "store/manifest.py",
        "    if hashlib.sha256(body).hexdigest().encode() != seal[1]:",
        "    if False:",
        _DAMAGE,
    ),
    Mutant("one process gets a claim", "workers/files.py", " | os.O_EXCL", "", "test_claims.py"),
    Mutant(
        "a fresh claim moved by mistake goes back",
        "workers/claims.py",
        "            if not gone:",
        "            if False:",
        "test_claims.py",
    ),
    Mutant("a lease ends", "workers/leases.py", "or self.age(worker) >= ", "or -1 >= ", "test_claims.py"),
    Mutant(
        "a pid given out again is another process",
        "workers/leases.py",
        "return born(self.pid) == self.born if",
        "return bool(born(self.pid)) if",
        "test_claims.py",
    ),
    Mutant(
        "an id is used once",
        "workers/leases.py",
        "while not make_file(self._paths.root, self._paths.worker(wanted)):",
        "while make_file(self._paths.root, self._paths.worker(wanted)) is None:",
        "test_claims.py",
    ),
    Mutant(
        "a group is claimed whole or not",
        "workers/queue.py",
        "                self.claims.release(rollout)",
        "                pass",
        "test_claims.py",
    ),
    Mutant(
        "a claim is looked at before a commit",
        "running/session.py",
        "        if not self.queue.claims.is_mine(reply.rollout):",
        "        if False:",
        "test_session.py",
    ),
    Mutant(
        "who writes a rollout too is found out",
        "running/session.py",
        "        except Forked as error:",
        "        except ZeroDivisionError as error:",
        "test_session.py",
    ),
    Mutant("no link is followed", "files.py", "PLAIN = os.O_NOFOLLOW | ", "PLAIN = ", "test_store_log.py"),
    Mutant("no linked folder is followed", "store/files.py", "FOLDER | os.O_NOFOLLOW", "FOLDER", "test_store_repair.py"),
    Mutant(
        "a repair copies before it cuts",
        "store/repair.py",
        "    atomic_write_parts(target, parts_from",
        "    list(parts_from",
        "test_store_repair.py",
    ),
    Mutant(
        "a rollout has one writer",
        "store/lock.py",
        "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        pass",
        "test_store_log.py",
    ),
    Mutant(
        "a second writer is exposed",
        "store/growing.py",
        "        elif held.st_size != self.size:",
        "        elif False:",
        "test_store_log.py",
    ),
    Mutant(
        "a failed write is taken back",
        "store/growing.py",
        "                os.ftruncate(self.fd, self.size)",
        "                pass",
        "test_store_faults.py",
    ),
    Mutant(
        "a failed fsync is not tried again",
        "store/growing.py",
        '            self._broken = "an earlier fsync',
        '            _ = "an earlier fsync',
        "test_store_faults.py",
    ),
    Mutant("an error is a StoreError", "files.py", "    with suppress(OSError):\n        os.close(fd)", "    os.close(fd)", _CALLS),
    Mutant(
        "two seconds are enough",
        "running/interrupts.py",
        "            self._deadline = time.monotonic() + GRACE",
        "            self._deadline = None",
        "test_preemption.py -k two_seconds",
    ),
    Mutant("a lost terminal is no error", "streams.py", "error.errno != errno.EIO", "True", "test_preemption.py -k terminal_that_is_gone"),
    Mutant("escapes are inert", "streams.py", '{"Cc", "Cf", "Cs"}', '{"Cs"}', "test_display.py"),
    Mutant("pickles run nothing", "measuring/torch_axes.py", "weights_only=True", "weights_only=False", "test_hostile.py -k torch_file"),
    Mutant(
        "templates have a limit",
        "chat/confined.py",
        "            signal.setitimer(signal.ITIMER_PROF, SECONDS)\n",
        "",
        "test_chat_hostile.py",
    ),
)


def survives(mutant: Mutant, folder: Path) -> bool:
    """Whether the test passes although the promise is broken."""
    place = folder / "place"
    for name in ("drift_cli", "tests", "data"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    shutil.copy(ROOT / "pyproject.toml", place)
    path = place / "drift_cli" / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) >= 1, f"{mutant.file} has no {mutant.old!r} any more"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    name, *chosen = mutant.test.split()
    line = [sys.executable, "-m", "pytest", "-x", "-q", f"tests/{name}", *chosen]
    env = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run(line, cwd=place, env=env, capture_output=True, text=True, check=False, timeout=600)
    shutil.rmtree(place)
    return done.returncode != 1  # 1: tests ran, and some failed


def main() -> int:
    """Try them all."""
    alive = 0
    for mutant in MUTANTS:
        with quick_folder() as folder:
            lives = survives(mutant, Path(folder))
        alive += lives
        print(f"{'NOT NOTICED' if lives else 'noticed'}: {mutant.promise} ({mutant.file}) by {mutant.test}", flush=True)
    print(f"{len(MUTANTS) - alive} of {len(MUTANTS)} broken promises were noticed")
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main())
