"""A process with everything imported that starts `drift` as the leader's job on a terminal, as a shell does, and reports what becomes of it.

Protocol: a line in, `[folder, terminal's path, arguments]` as JSON; lines out: `pid N`, then `stopped` whenever the job is, then `exit STATUS`.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import transformers.models.olmo3.modeling_olmo3  # noqa: F401

from drift_cli.__main__ import main


def job(folder: str, arguments: list[str]) -> None:
    """`drift` itself."""
    os.chdir(folder)
    for number in (signal.SIGHUP, signal.SIGTTOU, signal.SIGINT, signal.SIGTSTP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.argv = ["drift", *arguments]
    status = 0
    try:
        main()
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leader(folder: str, terminal: str, arguments: list[str], report: int) -> None:
    """A shell's part: a session with a terminal, one job in the foreground, hangups passed on to it."""
    os.setsid()
    descriptor = os.open(terminal, os.O_RDWR)
    for number in range(3):
        os.dup2(descriptor, number)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        job(folder, arguments)
    signal.signal(signal.SIGHUP, lambda number, frame: os.killpg(pid, signal.SIGHUP))
    os.write(report, b"pid %d\n" % pid)
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        os.write(report, b"stopped\n")
    os.write(report, b"exit %d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


report = os.dup(1)
for line in sys.stdin:
    folder, terminal, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        leader(folder, terminal, arguments, report)
    os.waitpid(child, 0)
