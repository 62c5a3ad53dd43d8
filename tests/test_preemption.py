"""Machines that are taken back, terminals that are lost, readers that go away: exit codes, messages and files as promised."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_fixtures import fork
from test_kills import LINE, _committed, _files

from drift_cli.display import Display, Mode
from drift_cli.errors import EXIT_INTERRUPTED
from drift_cli.running import interrupts
from drift_cli.running.interrupts import Stop
from drift_cli.store.paths import Store
from drift_cli.store.run import Run

ARGUMENTS = LINE[: LINE.index("--display")]


class Terminal:
    """`drift` in the foreground of a terminal of its own. What it writes is read all the time, as a terminal does."""

    def __init__(self, zygote: subprocess.Popen[str], folder: Path, arguments: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "short.json").write_text(json.dumps({"users": ["hello there", "who are you", "and the light"]}))
        self._zygote = zygote
        self.master, slave = pty.openpty()
        assert zygote.stdin is not None
        zygote.stdin.write(json.dumps([str(folder), os.ttyname(slave), arguments]) + "\n")
        zygote.stdin.flush()
        self.pid = int(self.line().removeprefix("pid "))
        os.close(slave)
        self.screen = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                if select.select([self.master], [], [], 0.05)[0]:
                    self.screen += os.read(self.master, 65536)
            except (OSError, ValueError):
                return

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def hang_up(self) -> None:
        master, self.master = self.master, -1
        self._reader.join()
        os.close(master)

    def line(self) -> str:
        assert self._zygote.stdout is not None
        return self._zygote.stdout.readline().strip()

    def status(self) -> int:
        status = int(self.line().removeprefix("exit "))
        if self.master >= 0:
            self.hang_up()
        return status


@pytest.fixture(scope="module")
def zygote() -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TERM": "xterm"}
    script = Path(__file__).with_name("sessions.py")
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(zygote: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert Terminal(zygote, folder, ARGUMENTS).status() == 0
    return _files(folder)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def goes_on(zygote: subprocess.Popen[str], folder: Path, whole: dict[str, bytes]) -> None:
    """`drift resume` finishes, in the bytes of a run that nobody interrupted."""
    if _files(folder) != whole:
        assert Terminal(zygote, folder, ["resume"]).status() == 0
    assert _files(folder) == whole


# --- on a terminal


def test_ctrl_c_ends_in_order_and_gives_the_terminal_back(zygote: subprocess.Popen[str], tmp_path: Path, whole: dict[str, bytes]) -> None:
    terminal = Terminal(zygote, tmp_path / "run", ARGUMENTS)
    until(lambda: _committed(tmp_path / "run") >= 2)
    terminal.type(b"\x03")
    assert terminal.status() == EXIT_INTERRUPTED
    assert b"drift resume" in terminal.screen
    assert terminal.screen.rfind(b"\x1b[?25h") > terminal.screen.rfind(b"\x1b[?25l")  # the cursor is shown again
    goes_on(zygote, tmp_path / "run", whole)


def test_ctrl_c_twice_leaves_at_once_and_gives_the_terminal_back(
    zygote: subprocess.Popen[str], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    terminal = Terminal(zygote, tmp_path / "run", ARGUMENTS)
    until(lambda: _committed(tmp_path / "run") >= 2)
    os.kill(terminal.pid, signal.SIGSTOP)  # so that both are there before the first is dealt with
    assert terminal.line() == "stopped"
    os.kill(terminal.pid, signal.SIGINT)
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.type(b"\x03")
    assert terminal.status() == EXIT_INTERRUPTED
    assert b"Traceback" not in terminal.screen
    assert terminal.screen.rfind(b"\x1b[?25h") > terminal.screen.rfind(b"\x1b[?25l")
    goes_on(zygote, tmp_path / "run", whole)


def test_ctrl_z_and_back_is_as_if_nothing_had_happened(zygote: subprocess.Popen[str], tmp_path: Path, whole: dict[str, bytes]) -> None:
    terminal = Terminal(zygote, tmp_path / "run", ARGUMENTS)
    until(lambda: _committed(tmp_path / "run") >= 2)
    terminal.type(b"\x1a")
    assert terminal.line() == "stopped"
    before = _files(tmp_path / "run")
    line = [sys.executable, "-m", "drift_cli", "resume", "--display", "plain"]
    second = subprocess.run(line, cwd=tmp_path / "run", capture_output=True, text=True, check=False)
    assert second.returncode == EXIT_INTERRUPTED
    assert f"process {terminal.pid}" in second.stderr  # it keeps its rollouts while it sleeps
    after = _files(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    os.kill(terminal.pid, signal.SIGCONT)
    assert terminal.status() == 0
    assert _files(tmp_path / "run") == whole


def test_a_lost_terminal_ends_the_run_in_order(zygote: subprocess.Popen[str], tmp_path: Path, whole: dict[str, bytes]) -> None:
    terminal = Terminal(zygote, tmp_path / "run", ARGUMENTS)
    until(lambda: _committed(tmp_path / "run") >= 2)
    terminal.hang_up()
    assert terminal.status() == EXIT_INTERRUPTED
    run = Run.newest(Store(tmp_path / "run" / "checkpoints"))
    assert [(event["kind"], event.get("signal")) for event in run.events()][-1] == ("interrupted", "SIGHUP")
    goes_on(zygote, tmp_path / "run", whole)


# --- schedulers


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("asking", [True, False])
def test_two_seconds_are_enough_even_while_nobody_asks(name: str, asking: bool, tmp_path: Path) -> None:
    """A process that hangs in one long step (after it has asked once, or while the weights are read) leaves before it would be killed."""
    number = getattr(signal, name)

    def work(say: Callable[[bytes], Any], listen: Callable[[], Any]) -> None:
        os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["drift", "generate", "--name", "a b"]
        signal.signal(number, signal.SIG_DFL)
        with Stop() as stop:
            if asking:
                stop()
            say(b"!")
            time.sleep(5)  # one long step

    child = fork(work)
    child.said()
    started = time.monotonic()
    os.kill(child.pid, number)
    assert child.wait() == EXIT_INTERRUPTED
    assert time.monotonic() - started < (2.0 if asking else 1.0)
    said = (tmp_path / "said").read_text()
    assert f"stopped at once by {name}" in said
    assert "drift generate --name 'a b'" in said


def test_who_asks_in_time_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "GRACE", 0.05)

    def work(say: Callable[[bytes], Any], listen: Callable[[], Any]) -> None:
        with Stop() as stop:
            stop()
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop():
                pass
            time.sleep(0.2)  # it takes its time to end in order: nothing may cut that off
            assert stop.signal_name == "SIGTERM"

    assert fork(work).wait() == 0


def test_what_was_ignored_stays_ignored() -> None:
    """nohup: a lost terminal is then no reason to stop."""

    def work(say: Callable[[bytes], Any], listen: Callable[[], Any]) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()

    assert fork(work).wait() == 0


def test_signals_are_as_before_when_the_work_is_done() -> None:
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    before = [signal.getsignal(getattr(signal, name)) for name in names]
    descriptors, threads = len([*Path("/proc/self/fd").iterdir()]), threading.active_count()
    with Stop():
        pass
    assert [signal.getsignal(getattr(signal, name)) for name in names] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert (len([*Path("/proc/self/fd").iterdir()]), threading.active_count()) == (descriptors, threads)


@pytest.mark.parametrize("asking", [True, False])
def test_a_call_that_never_comes_back_to_python_is_left_in_time_too(asking: bool) -> None:
    """A library reads weights in C for minutes: no Python handler would run before it is done."""

    def work(say: Callable[[bytes], Any], listen: Callable[[], Any]) -> None:
        with Stop() as stop:
            if asking:
                stop()
            say(b"!")
            hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000_000)  # some seconds, which no signal cuts short

    child = fork(work)
    child.said()
    started = time.monotonic()
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == EXIT_INTERRUPTED
    assert time.monotonic() - started < 2.0


# --- readers that go away


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash, `drift` being this one; a pipe ends with the first status that is not 0."""
    script = f'set -o pipefail; drift() {{ "{sys.executable}" -m drift_cli "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_output_that_nobody_reads_ends_no_command(zygote: subprocess.Popen[str], tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = tmp_path / "run"
    assert Terminal(zygote, folder, ARGUMENTS).status() == 0
    for line in ("drift runs show | head -1", "drift runs verify --json | head -c 1", "drift runs ls >&-", "drift runs ls 2>&-"):
        done = shell(line, folder)
        assert (done.returncode, done.stderr) == (0, ""), (line, done.stderr)


def test_a_run_whose_reader_goes_away_is_finished_all_the_same(tmp_path: Path, whole: dict[str, bytes]) -> None:
    (tmp_path / "short.json").write_text(json.dumps({"users": ["hello there", "who are you", "and the light"]}))
    done = shell(f"drift {' '.join(ARGUMENTS)} --display plain 2>&1 | head -1", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert _files(tmp_path) == whole


def test_a_full_disk_behind_the_output_is_an_error_not_a_silence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    done = shell("drift runs ls > /dev/full", tmp_path)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_that_is_gone_does_not_end_the_work() -> None:
    master, slave = pty.openpty()
    with open(slave, "w", encoding="utf-8") as stream:  # noqa: PTH123 (a descriptor)
        display = Display(Mode.RICH, out=stream, err=stream)
        with display.progress(3, 0) as progress:
            progress.step("one")
            os.close(master)
            progress.step("two")
            display.note("nobody sees this")
            progress.step("three")
        display.result({}, "nor this")
