"""Code that came with a model runs in a child process: a chat template is a program, and can loop for ever or ask for all memory there is.

The child is forked once and kept, so that a rendering costs a message each way. It has nothing of its parent open, ignores the signals that end a run, and ends
when its parent does. Its limits are the child's own processor time and address space: they hold while the whole machine is suspended or busy, too. Only JSON
comes back.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from drift_cli.errors import DriftError

SECONDS = 20.0
"""Processor time for one conversation: the slowest templates known take milliseconds for one that fills the context."""
MEMORY = 1 << 30
"""Bytes that a rendering may take beside what the process had when it was forked."""
LONGEST = 1 << 26
"""Bytes of a rendering: a context of ten million tokens."""
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTSTP")


class Confined:
    """`work`, which takes and returns JSON values, in a process of its own with limits. May be called from any thread."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __call__(self, given: Any) -> Any:
        """What `work` makes of `given`.

        Raises:
            Failed: `work` raised.
            DriftError: it took too much time or memory, or made too much; or the child was killed twice by somebody else.
        """
        with self._lock:
            answer = self._ask(given)
            if answer is None:
                answer = self._ask(given)  # somebody killed the child, a process that hunts for memory, say
        if answer is None:
            raise DriftError(
                "the process in which the chat template runs was killed", mend="The machine may be out of memory: start again."
            )
        if "failed" in answer:
            raise Failed(answer["failed"])
        if "beyond" in answer:
            raise DriftError(
                f"the model's chat template {answer['beyond']} for one conversation",
                mend="Save the tokenizer with another template, or use --chat raw.",
            )
        return answer["made"]

    def _ask(self, given: Any) -> dict[str, Any] | None:
        """The child's answer, None where it was killed."""
        if self._child is None or self._child.parent != os.getpid():
            self._child = _fork(self._work)
            weakref.finalize(self, self._child.end)
        try:
            return self._child.ask(json.dumps(given).encode())
        except (BrokenPipeError, EOFError):
            status = self._child.end()
            self._child = None
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
            return {"beyond": f"takes longer than {SECONDS:g} seconds"}
        return None


class Failed(Exception):
    """The work raised; the message says what. Raised by the work itself, its message is taken as it is."""


@dataclass
class _Child:
    """The parent's side of a child process."""

    pid: int
    parent: int
    """The process that forked it: a process forked later does not use it."""
    requests: int
    answers: int
    status: int | None = None

    def ask(self, body: bytes) -> dict[str, Any]:
        _send(self.requests, body)
        answer = _receive(self.answers, limit=2 * LONGEST)
        if answer is None:
            raise EOFError
        return dict(json.loads(answer))

    def end(self) -> int:
        """End the child; how it ended, as `os.waitpid` says it."""
        if self.status is None and self.parent == os.getpid():
            os.close(self.requests)
            os.close(self.answers)
            self.status = 0
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                found, status = os.waitpid(self.pid, os.WNOHANG)
                if not found:
                    # It ends by itself when its pipe does: wait for what it died of. A child in the middle of a rendering is not waited for.
                    os.kill(self.pid, signal.SIGKILL)
                    _, status = os.waitpid(self.pid, 0)
                self.status = status
        return self.status or 0


def _fork(work: Callable[[Any], Any]) -> _Child:
    requests, to_child = os.pipe()
    from_child, answers = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _SIGNALS])
    try:
        pid = os.fork()
        if pid == 0:
            _serve(work, requests, answers)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(requests)
    os.close(answers)
    return _Child(pid, os.getpid(), to_child, from_child)


def _serve(work: Callable[[Any], Any], requests: int, answers: int) -> NoReturn:
    """The child: answer requests until the parent is gone."""
    try:
        gc.disable()  # objects of the parent are not finalized here
        for name in _SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        requests, answers = _only(requests, answers)
        _limit_memory()
        while (body := _receive(requests, limit=None)) is not None:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            answer = _answer(work, body)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(answers, answer)
    finally:
        os._exit(0)


def _answer(work: Callable[[Any], Any], body: bytes) -> bytes:
    try:
        made = json.dumps({"made": work(json.loads(body))}).encode()
        return made if len(made) <= LONGEST else json.dumps({"beyond": f"writes more than {LONGEST >> 20} MiB"}).encode()
    except MemoryError:
        return json.dumps({"beyond": f"takes more than {MEMORY >> 30} GiB of memory"}).encode()
    except Failed as error:
        return json.dumps({"failed": str(error)[:2000]}).encode()
    except Exception as error:  # noqa: BLE001 (raised again by the parent, as a failure of the template)
        return json.dumps({"failed": f"{type(error).__name__}: {error}"[:2000]}).encode()


def _only(requests: int, answers: int) -> tuple[int, int]:
    """Have nothing open but the two pipes: no file and no lock of the parent's stays alive in the child."""
    null = os.open(os.devnull, os.O_RDWR)
    high = [os.dup2(descriptor, place) for descriptor, place in ((null, 0), (null, 1), (null, 2))][-1] + 1
    kept = sorted((requests, answers))
    os.closerange(high, kept[0])
    os.closerange(kept[0] + 1, kept[1])
    os.closerange(kept[1] + 1, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16))
    return requests, answers


def _limit_memory() -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:  # not Linux: the time limit stands
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _send(descriptor: int, body: bytes) -> None:
    left = memoryview(len(body).to_bytes(8, "little") + body)
    while left:
        left = left[os.write(descriptor, left) :]


def _receive(descriptor: int, *, limit: int | None) -> bytes | None:
    """One message; None at the end of the pipe."""
    head = _read(descriptor, 8)
    if head is None:
        return None
    length = int.from_bytes(head, "little")
    if limit is not None and length > limit:
        raise EOFError
    return _read(descriptor, length)


def _read(descriptor: int, length: int) -> bytes | None:
    parts: list[bytes] = []
    while length:
        part = os.read(descriptor, min(length, 1 << 20))
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
