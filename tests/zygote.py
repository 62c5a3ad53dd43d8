"""A process with everything imported that forks a child for each command line it is sent, so that starting one costs little.

Protocol: a line in, `[folder, arguments]` as JSON; a line out with the child's pid; a line out with its exit status when it is gone. A child's own output
goes to files `out` and `err` in its folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import transformers.models.olmo3.modeling_olmo3  # noqa: F401

from drift_cli.__main__ import main


def child(folder: str, arguments: list[str]) -> None:
    os.chdir(folder)
    for number in (signal.SIGINT, signal.SIGHUP):  # whoever runs the tests in the background ignores them, and drift would respect that
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    sys.argv = ["drift", *arguments]
    try:
        main()
    except SystemExit as exit_:
        os._exit(int(exit_.code or 0))
    os._exit(0)


for line in sys.stdin:
    folder, arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        child(folder, arguments)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
