"""Chat templates from strangers: they reach nothing, and they cannot keep anybody waiting."""

from __future__ import annotations

import time

import pytest
import tiny

from drift_cli.chat import limit
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
    monkeypatch.setattr(limit, "SECONDS", 0.2)
    slow = "{% for i in range(99999) %}{% for j in range(300) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(DriftError, match=r"takes longer than 0\.2 seconds"):
        chat(slow + GOOD).check(Condition("plain"), SCRIPT)
    assert time.monotonic() - started < 5


def test_a_template_that_fails_only_behind_a_reply_is_refused_too() -> None:
    with pytest.raises(DriftError, match="ends with a reply"):
        chat("{% if messages[-1]['role'] == 'assistant' %}{{ 1 // 0 }}{% endif %}" + GOOD).end_ids(frozenset())
