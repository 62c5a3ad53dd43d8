"""Chat templates from strangers: they reach nothing, and they cannot keep anybody waiting."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from hostile.cases import BOMBS
from store_fixtures import fork

from drift_cli.chat import confined
from drift_cli.chat.template import TemplateChat
from drift_cli.errors import DriftError, UsageError
from drift_cli.spec import Condition, Transcript

GOOD = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
SCRIPT = Transcript("t", ("hello", "and then"))


def chat(template: str) -> TemplateChat:
    return TemplateChat(tiny.tokenizer(next(iter(tiny.ARCHITECTURES.values())), template=template))


def test_a_good_template_passes() -> None:
    chat(GOOD).check(Condition("plain"), SCRIPT)


@pytest.mark.parametrize(
    "code",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('touch touched') }}",
        "{{ 1 // 0 }}",
        "{{ messages['x' * 3].y.z }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_a_template_reaches_nothing_beyond_its_messages(code: str) -> None:
    with pytest.raises(UsageError, match="does not take"):
        chat(code + GOOD).check(Condition("plain"), SCRIPT)


def test_a_template_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "SECONDS", 0.2)
    slow = "{% for i in range(99999) %}{% for j in range(300) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(DriftError, match=r"takes longer than 0\.2 seconds"):
        chat(slow + GOOD).check(Condition("plain"), SCRIPT)
    assert time.monotonic() - started < 5


def test_a_template_that_fails_only_behind_a_reply_is_refused_too() -> None:
    with pytest.raises(DriftError, match="ends with a reply"):
        chat("{% if messages[-1]['role'] == 'assistant' %}{{ 1 // 0 }}{% endif %}" + GOOD).end_ids(frozenset())


@pytest.mark.parametrize("code", BOMBS.values(), ids=BOMBS)
def test_a_template_takes_neither_the_memory_nor_the_time_of_the_machine(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "SECONDS", 1.0)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DriftError):
        chat(code + GOOD).check(Condition("plain"), SCRIPT)
    assert time.monotonic() - started < 10
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19
    )  # KiB: half a GiB, of a rendering that is refused for its length


def double(given: Any) -> Any:
    return given * 2


def pid_of(work: confined.Confined) -> int:
    assert work._child is not None
    return work._child.pid


def test_a_child_that_somebody_kills_is_replaced() -> None:
    work = confined.Confined(double)
    assert work("a") == "aa"
    os.kill(pid_of(work), signal.SIGKILL)
    assert work("b") == "bb"


def test_a_child_has_no_file_of_its_parent_open(tmp_path: Path) -> None:
    def opened(given: Any) -> list[str]:
        return [str(place.readlink()) for place in list(Path("/proc/self/fd").iterdir()) if place.is_symlink()]

    with (tmp_path / "lock").open("w"):
        names = confined.Confined(opened)(None)
    assert {name.split(":")[0] for name in names} == {"/dev/null", "pipe"}
    assert len(names) == 5


def test_a_child_outlives_ctrl_c_and_ends_with_its_parent(tmp_path: Path) -> None:
    def parent(say: Callable[[bytes], object], listen: Callable[[], object]) -> None:
        work = confined.Confined(double)
        work("a")
        child = pid_of(work)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            os.kill(child, getattr(signal, name))
        assert work("b") == "bb"
        assert pid_of(work) == child
        (tmp_path / "child").write_text(str(child))
        say(b"!")
        listen()

    process = fork(parent)
    process.said()
    child = int((tmp_path / "child").read_text())
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while Path(f"/proc/{child}/stat").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text(encoding="ascii"):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.01)


def test_what_nobody_needs_any_more_leaves_no_process() -> None:
    work = confined.Confined(double)
    work("a")
    child = pid_of(work)
    del work
    assert not Path(f"/proc/{child}").exists()
