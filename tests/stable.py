"""A process with everything imported that forks a child for each command line it is sent, any number at a time.

Protocol: a line in, `[folder, output, arguments]` as JSON; a line out, `start PID`; a line out, `exit PID STATUS`, whenever a child is gone. With the argument
`no-locks`, `flock` does nothing in all of them, as on file systems that only pretend.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading

import transformers.models.olmo3.modeling_olmo3  # noqa: F401

from drift_cli.__main__ import main
from drift_cli.demo_model import network

if "no-locks" in sys.argv:
    fcntl.flock = lambda fd, how: None  # type: ignore[assignment]
network()  # read once, so that children find it in the page cache


def child(folder: str, output: str, arguments: list[str]) -> None:
    os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["drift", *arguments]
    status = 0
    try:
        main()
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    os._exit(status)


def say(text: str) -> None:
    """One line in one write: two threads speak."""
    os.write(1, text.encode() + b"\n")


def reap() -> None:
    children.acquire()
    while True:
        pid, status = os.wait()
        say(f"exit {pid} {os.waitstatus_to_exitcode(status)}")
        children.acquire()


children = threading.Semaphore(0)
threading.Thread(target=reap, daemon=True).start()
for line in sys.stdin:
    folder, output, arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        child(folder, output, arguments)
    say(f"start {pid}")
    children.release()
