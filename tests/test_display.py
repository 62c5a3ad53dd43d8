"""What reaches the terminal."""

from __future__ import annotations

import io
import json

import pytest

from drift_cli import display as module
from drift_cli.display import Display, Mode, Table, duration
from drift_cli.streams import inert


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _display(mode: Mode, *, as_json: bool = False) -> tuple[Display, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Display(mode, as_json, out, err), out, err


def test_auto_is_rich_on_a_terminal_and_plain_elsewhere() -> None:
    assert Display(Mode.AUTO, out=io.StringIO(), err=_Terminal()).mode is Mode.RICH
    assert Display(Mode.AUTO, out=io.StringIO(), err=io.StringIO()).mode is Mode.PLAIN


def test_plain_progress_is_whole_lines_without_escape_codes_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    display, _, err = _display(Mode.PLAIN)
    with display.progress(100, 0) as progress:
        for i in range(100):
            now[0] += 0.1
            progress.step(f"t/a/T1/{i:04d} turn 1")
    lines = err.getvalue().splitlines()
    assert "\x1b" not in err.getvalue()
    assert err.getvalue().endswith("\n")
    assert 5 <= len(lines) <= 7
    assert lines[0] == "0/100 turns"
    assert lines[-1].startswith("100/100 turns")


def test_plain_progress_goes_on_while_one_turn_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    display, _, err = _display(Mode.PLAIN)
    with display.progress(10, 3) as progress:
        for _ in range(300):
            now[0] += 0.1
            progress.tick()
    assert 14 <= len(err.getvalue().splitlines()) <= 17


def test_json_progress_is_one_object_a_line() -> None:
    display, out, err = _display(Mode.JSON)
    display.note("hello", kind="start")
    with display.progress(2, 0) as progress:
        progress.step("a")
        progress.step("b")
    kinds = [json.loads(line)["kind"] for line in err.getvalue().splitlines()]
    assert kinds[0] == "start"
    assert set(kinds[1:]) == {"progress"}
    assert out.getvalue() == ""


def test_none_is_silent_but_for_errors() -> None:
    display, out, err = _display(Mode.NONE)
    display.note("hello")
    with display.progress(2, 0) as progress:
        progress.step("a")
    assert (out.getvalue(), err.getvalue()) == ("", "")
    display.error("broken")
    assert err.getvalue() == "drift: broken\n"


def test_json_results_are_one_document_and_nothing_else() -> None:
    display, out, _ = _display(Mode.PLAIN, as_json=True)
    display.result({"a": [1, None]}, Table("t", ["x"], [["1"]]), "line")
    assert json.loads(out.getvalue()) == {"a": [1, None]}


def test_tables_are_plain_text_in_a_pipe() -> None:
    display, out, _ = _display(Mode.PLAIN)
    display.result({}, Table("Title", ["name", "n>"], [["[bold]a[/bold]", "1"], ["b" * 90, "22"]], ["a note"]))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "[bold]a[/bold]" in text
    assert "b" * 90 in text
    assert text.endswith("  a note\n\n")
    assert text.startswith("Title\n")


def test_text_that_would_steer_the_terminal_is_shown_inert() -> None:
    assert inert("a\x1b[31mb\u202ec\x07\n") == "a\\u001b[31mb\\u202ec\\u0007\n"
    display, _, err = _display(Mode.PLAIN)
    display.note("\x1b]0;owned\x07")
    assert "\x1b" not in err.getvalue()


def test_a_closed_pipe_does_not_end_the_work() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    display = Display(Mode.PLAIN, out=Closed(), err=Closed())
    display.note("nobody reads this")
    display.result({}, "nor this")
    display.result({}, Table("t", ["x"], [["1"]], ["n"]))


@pytest.mark.parametrize(("seconds", "text"), [(8.2, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_markup_in_any_text_is_literal() -> None:
    text = "[bold red]x[/bold red] [link=file:///etc]y[/link] :smile: [/]"
    display, out, err = _display(Mode.RICH)
    display.result({}, Table(text, [text], [[text]], [text]), text)
    display.note(text)
    display.error(text)
    with display.progress(2, 0) as progress:
        progress.step(text)
    assert out.getvalue().count(text) == 5
    assert err.getvalue().count(text) >= 3
