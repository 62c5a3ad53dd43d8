"""Becomes a command that is asked to stop when the process that started it is gone. `python -m drift_cli.launch.tied PARENT COMMAND…`

A node that dies takes everything with it. Where only the launcher's process there dies, its worker would go on with nobody to end it. Linux can send a signal
then (prctl(2), PR_SET_PDEATHSIG), and it stays set through exec. Elsewhere the worker goes on until nothing is left, which harms nobody.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tied(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command line that runs `command` tied to this process."""
    return (sys.executable, "-m", "drift_cli.launch.tied", str(os.getpid()), *command)


def main(parent: int, command: list[str]) -> None:
    """Replace this process by `command`; does not return."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before it could be asked
        sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
