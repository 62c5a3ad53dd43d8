"""Transcripts: every shape is read, everything unclear is refused by file and message number, private tags never reach a model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import drift_cli
from drift_cli import transcripts
from drift_cli.errors import UsageError
from drift_cli.names import checked_name
from drift_cli.transcripts.dialogue import Message
from drift_cli.transcripts.formats import clean_name
from drift_cli.transcripts.private import private_tag, without_private

ROOT = Path(drift_cli.__file__).parents[1]
seed_data = pytest.mark.skipif("DRIFT_SEED_DATA" not in os.environ, reason="DRIFT_SEED_DATA names no folder")


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ONE = [said("user", "one"), said("assistant", "first"), said("user", "two"), said("assistant", "second")]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(value: Any, name: str = "talk.json") -> Path:
        path = tmp_path / name
        path.write_bytes(value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode())
        return path

    return write


def refusal(path: Path | str, **how: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        transcripts.read(path, **how)
    return caught.value


SHARE = [
    {"from": "human", "value": "one"},
    {"from": "gpt", "value": "first"},
    {"from": "human", "value": "two"},
    {"from": "gpt", "value": "second"},
]
SHAPES = {
    "assistant-axis": json.dumps({"model": "m", "turns": 2, "conversation": ONE}),
    "messages": json.dumps(ONE),
    "chat object": json.dumps({"messages": ONE}),
    "pretty messages": json.dumps(ONE, indent=2),
    "JSON lines": "\n".join(map(json.dumps, ONE)) + "\n\n",
    "JSON lines with carriage returns": "\r\n".join(map(json.dumps, ONE)),
    "JSON lines, unusual line separators inside": "\n".join(json.dumps(m | {"note": "a\u2028b\x85c"}, ensure_ascii=False) for m in ONE),
    "ShareGPT": json.dumps({"id": "x", "conversations": SHARE}),
    "ShareGPT, one JSON line": json.dumps({"conversations": SHARE}) + "\n",
    "ShareGPT, bare": json.dumps(SHARE),
    "drift": json.dumps({"users": ["one", "two"], "replies": ["first", "second"], "description": "d", "language": "en"}),
    "seed with one conversation": json.dumps({"conversations": [ONE]}),
    "text parts": json.dumps([said("user", [{"type": "text", "text": "o"}, {"type": "text", "text": "ne"}]), *ONE[1:]]),
    "byte order mark": "\ufeff" + json.dumps(ONE),
}


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl", "talk.txt.json.json"])
def test_every_shape_is_found_from_the_content_alone(write: Any, text: str, name: str) -> None:
    loaded = transcripts.read(write(text, name))
    assert loaded.transcript.users == ("one", "two")
    assert loaded.transcript.replies == ("first", "second")
    assert loaded.transcript.name == ("talk.txt" if name.startswith("talk.txt") else "talk")
    assert loaded.notices == ()


@pytest.mark.parametrize("text", ['["one", "two"]', '"one"\n"two"\n', '[{"role":"user","content":"one"},{"role":"user","content":"two"}]'])
def test_user_turns_alone_are_a_transcript_without_replies(write: Any, text: str) -> None:
    transcript = transcripts.load(str(write(text)))
    assert (transcript.users, transcript.replies) == (("one", "two"), None)


def test_a_single_message_line_is_a_transcript(write: Any) -> None:
    assert transcripts.load(write(json.dumps(said("user", "one")) + "\n")).users == ("one",)


def test_system_messages_are_dropped_and_reported(write: Any) -> None:
    loaded = transcripts.read(write([said("system", "S"), ONE[0], said("developer", "S"), *ONE[1:]]))
    assert loaded.transcript.users == ("one", "two")
    assert loaded.transcript.replies == ("first", "second")
    assert "2 system message" in loaded.notices[0]


def test_a_missing_last_reply_drops_all_replies_and_says_so(write: Any) -> None:
    loaded = transcripts.read(write(ONE[:3]))
    assert (loaded.transcript.users, loaded.transcript.replies) == (("one", "two"), None)
    assert "no reply" in loaded.notices[0]


def seed(conversations: list[list[dict[str, str]]], **more: Any) -> dict[str, Any]:
    return {"transcript_source": "llama-70b/some talk", "system_prompt": None, "conversations": conversations} | more


def test_the_seeds_output_gives_the_script_its_conversations_share(write: Any) -> None:
    other = [
        said("user", "one"),
        said("system", "S"),
        said("assistant", ""),
        said("user", "two"),
        said("system", "S"),
        said("assistant", "b"),
    ]
    loaded = transcripts.read(write(seed([other, ONE, ONE[:2]])))
    assert loaded.transcript.name == "llama-70b_some_talk"
    assert (loaded.transcript.users, loaded.transcript.replies) == (("one", "two"), None)
    assert any("3 conversations" in notice for notice in loaded.notices)


def test_conversations_on_different_scripts_are_refused_by_number(write: Any) -> None:
    error = refusal(write(seed([ONE, ONE, [*ONE[:2], said("user", "TWO"), ONE[3]]])))
    assert "talk.json: conversation 3: message 3" in error.what


def test_a_prompt_appended_to_user_turns_is_not_part_of_the_script(write: Any) -> None:
    suffixed = [said("user", "one\n\nBe kind."), said("assistant", "a"), said("user", "two\n\nBe kind.")]
    loaded = transcripts.read(write(seed([suffixed], system_prompt="Be kind.")))
    assert loaded.transcript.users == ("one", "two")


def test_a_prompt_in_front_of_the_first_user_turn_is_not_part_of_the_script(write: Any) -> None:
    prefixed = [said("user", "Be kind.\n\none"), said("assistant", "a"), said("user", "Be kind.\n\ntwo")]
    loaded = transcripts.read(write(seed([prefixed], system_prompt="Be kind.")))
    assert loaded.transcript.users == ("one", "Be kind.\n\ntwo")
    assert any("beginning of the first user turn" in notice for notice in loaded.notices)


REFUSED = {
    "empty file": ("", "is empty"),
    "white space": (" \n", "is empty"),
    "not JSON": ("hello there", "line 1, column 1"),
    "a number": ("42", "found a number"),
    "null": ("null", "found null"),
    "empty list": ("[]", "empty list"),
    "empty object": ("{}", "no conversation in it"),
    "foreign object": ('{"foo": 1}', "keys: 'foo'"),
    "no users": ('{"users": []}', "has no user turn"),
    "no conversations": ('{"conversations": []}', "has no user message"),
    "conversations of null": ('{"conversations": null}', "expected a list of messages, found null"),
    "two bodies": ('{"users": ["a"], "conversation": []}', "both 'conversation' and 'users'"),
    "own typo": ('{"users": ["a"], "reply": ["b"]}', "unknown key 'reply'"),
    "own name": ('{"users": ["a"], "name": "a/b"}', "'a/b' cannot be used"),
    "own name, not text": ('{"users": ["a"], "name": 3}', "name is a number, not text"),
    "own replies": ('{"users": ["a", "b"], "replies": ["c"]}', "2 user turns but 1 replies"),
    "own empty reply": ('{"users": ["a", "b"], "replies": ["c", ""]}', "reply 2: is empty"),
    "mixed list": ('["a", {"role": "user", "content": "b"}]', "message 2: its content is an object"),
    "two datasets": ('{"messages": []}\n{"messages": []}', "holds 2 conversations"),
    "empty turn": ('["a", " \\n"]', "message 2: is empty"),
    "null content": ([said("user", "a"), said("assistant", None)], "message 2: its content is null"),
    "number content": ([said("user", 3)], "message 1: its content is a number"),
    "no content": ([{"role": "user"}], "message 1: has no 'content'"),
    "no role": ([said("user", "a"), {"content": "x"}], "message 2: has no 'role'"),
    "no value": ([{"from": "human"}], "message 1: has no 'value'"),
    "image part": ([said("user", [{"type": "text", "text": "a"}, {"type": "image_url"}])], "message 1, part 2: is not text (type 'image_url')"),
    "string part": ([said("user", ["a"])], "part 1: is not text (a string)"),
    "empty parts": ([said("user", [])], "message 1: is empty"),
    "unknown role": ([said("user", "a"), said("tool", "b")], "message 2: unknown role 'tool'"),
    "list as role": ([{"role": [], "content": "b"}], "message 1: unknown role []"),
    "two users": ([*ONE[:3], ONE[2], ONE[3]], "message 4: a second user message in a row"),
    "two assistants": ([*ONE[:2], ONE[1]], "message 3: a second assistant message in a row"),
    "assistant first": ([said("system", "s"), *ONE[1:]], "message 2: the assistant speaks first"),
    "only system": ([said("system", "s")], "has no user message"),
    "empty reply": ([ONE[0], said("assistant", "")], "message 2: is empty"),
    "surrogate": ('["a", "b\\ud83d"]', "message 2: character 2 is half of a surrogate pair"),
    "NaN": ('{"users": ["a"], "x": NaN}', "NaN is not a JSON number"),
    "Infinity": ('[-Infinity]', "-Infinity is not a JSON number"),
    "duplicate key": ('[{"role": "user", "content": "a", "content": "b"}]', "'content' stands twice"),
    "depth bomb": ("[" * 200_000, "nested too deeply"),
    "object depth bomb": ('{"a":' * 200_000, "nested too deeply"),
    "very long number": ("[" + "9" * 5000 + "]", "digits"),
    "bad JSON line": ('{"role": "user", "content": "a"}\n{"role": "assistant"', "talk.json:2: is not JSON"),
    "not UTF-8": (b'["caf\xe9"]', "is not UTF-8 text (byte 5)"),
    "UTF-16": ('["a"]'.encode("utf-16"), "is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_as_it_is_meant_is_refused_by_file_and_message(write: Any, value: Any, expected: str) -> None:
    error = refusal(write(value))
    assert expected in error.what
    assert "talk.json" in error.what


def test_huge_files_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    assert "larger than 64 MiB" in refusal(huge).what
    assert "is a folder" in refusal(str(tmp_path)).what
    assert "no such file" in refusal(str(tmp_path / "absent.json")).what
    assert "not a path" in refusal(f"{tmp_path}/a\0b").what
    assert "cannot be read" in refusal(f"{tmp_path}/{'a' * 5000}").what


def test_an_unknown_name_lists_the_names_there_are() -> None:
    error = refusal("gardem")
    assert error.exit_code == 2
    assert error.mend is not None
    assert "garden, harbour, lonely, mirror" in error.mend


def test_a_name_is_drifts_own_unless_a_file_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = transcripts.load("garden")
    (tmp_path / "lonely").mkdir()
    assert transcripts.load("lonely").name == "lonely"
    (tmp_path / "garden").write_text('["mine"]')
    assert transcripts.load("garden").users == ("mine",) != own.users


@pytest.mark.parametrize("name", ["garden", "lonely", "mirror"])
def test_drifts_own_transcripts_have_18_varied_user_turns(name: str) -> None:
    loaded = transcripts.read(name)
    lengths = [len(turn.split()) for turn in loaded.transcript.users]
    assert loaded.transcript.name == name
    assert len(set(loaded.transcript.users)) == 18
    assert min(lengths) in range(4, 9)
    assert max(lengths) in range(60, 121)
    assert loaded.transcript.replies is None
    assert loaded.notices == ()


def test_drifts_own_transcripts_are_found_in_an_installed_package(tmp_path: Path) -> None:
    package = Path(transcripts.__file__).parent.parent
    shutil.copytree(package, tmp_path / "drift_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "data" / "transcripts", tmp_path / "drift_cli" / "data" / "transcripts")
    (tmp_path / "drift_cli" / "data" / "transcripts" / "extra.json").write_text('["a"]')
    script = "from drift_cli import transcripts; print(transcripts.builtin_names(), transcripts.load('extra').users)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['extra', 'garden', 'harbour', 'lonely', 'mirror'] ('a',)"


def test_reading_transcripts_imports_no_torch() -> None:
    script = "import sys, drift_cli.transcripts; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "False"


TAGGED = "Hello there.\n\n<INTERNAL_STATE>\nI will push harder <now>.\n</INTERNAL_STATE>\n\nAre you awake?"


@pytest.mark.parametrize("tag", ["INTERNAL_STATE", "INTERNAL_MONOLOGUE", "PRIVATE_NOTES", "THINKING", "STEP_2"])
@pytest.mark.parametrize("form", ["<{}>x</{}>", "<{}>x", "x</{}>", "<{}/>", '<{} turn="3">x', "< {} >x</ {} >"])
def test_private_tags_are_refused_with_the_flag_that_strips_them(write: Any, tag: str, form: str) -> None:
    error = refusal(write([*ONE[:2], said("user", "hm " + form.format(tag, tag))]))
    assert "message 3" in error.what
    assert f"<{tag}>" in error.what
    assert error.mend is not None
    assert "--strip-private" in error.mend


def test_stripping_removes_the_tag_and_what_is_in_it_and_says_so(write: Any) -> None:
    loaded = transcripts.read(write([TAGGED, "plain  text\n"]), strip_private=True)
    assert loaded.transcript.users == ("Hello there.\n\nAre you awake?", "plain  text\n")
    assert "1 user turn" in loaded.notices[0]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<AB>x</AB> hi", "hi"),
        ("hi <AB>x</AB>", "hi"),
        ("a <AB>x</AB> b", "a b"),
        ("a\n<AB>x</AB> b", "a\nb"),
        ("a<AB>x</AB>b", "ab"),
        ("a <AB>x</AB> <CD>y</CD> b", "a b"),
        ("a <AB>x <CD>y</CD> z</AB> b", "a b"),
        ("a <AB>x <AB>y</AB> z</AB> b", "a b"),
        ("a <AB>x <CD> z</AB> b", "a b"),
        ("a <AB/> b", "a b"),
        ("List<T> and <b>bold</b> and <AB>x</AB>", "List<T> and <b>bold</b> and"),
    ],
)
def test_what_is_left_is_tidy(text: str, left: str) -> None:
    assert without_private(Message("m", "user", text)) == left


@pytest.mark.parametrize("text", ["a <AB>x", "a </AB> b", "a <AB>x <AB>y</AB> b", "<AB>x</AB> y</AB>", "<AB>x</CD> y", "<A<BC>x</BC>D>"])
def test_an_unbalanced_private_tag_is_an_error_even_when_stripping(write: Any, text: str) -> None:
    what = refusal(write(["a", text]), strip_private=True).what
    assert "message 2: " in what
    assert "private tag" in what


def test_a_turn_of_nothing_but_private_tags_is_an_error(write: Any) -> None:
    assert "message 1: nothing is left" in refusal(write(["<NOTES>x</NOTES>", "b"]), strip_private=True).what


@pytest.mark.parametrize("text", ["List<T>", "a < B and C > d", "<b>bold</b>", "<think>x</think>", "1 <A> 2", "x<Y_Zz>"])
def test_ordinary_angle_brackets_are_left_alone(text: str) -> None:
    assert private_tag(text) is None


@given(st.text(alphabet=" <>/ABab_\n", max_size=40))
def test_nothing_private_survives_stripping(text: str) -> None:
    try:
        left = without_private(Message("m", "user", text))
    except UsageError:
        return
    assert private_tag(left) is None


def test_private_tags_are_found_in_linear_time() -> None:
    for text in ("<AB" + " " * 200_000, "<" + " " * 200_000, "<AB " * 50_000, "<" * 200_000, "<" + "A" * 200_000):
        assert private_tag(text) is None


@given(st.text(max_size=120))
def test_any_file_name_gives_a_usable_name(text: str) -> None:
    checked_name("transcript", clean_name(text))


@pytest.mark.parametrize(
    ("text", "name"), [("llama-70b/self harm", "llama-70b_self_harm"), ("café №1", "cafe_No1"), ("..x", "x"), ("_a_", "a")]
)
def test_names_keep_what_they_can(text: str, name: str) -> None:
    assert clean_name(text) == name


def test_names_in_other_scripts_stay_apart() -> None:
    assert clean_name("孤独") != clean_name("庭")


@seed_data
def test_the_real_files_hold_one_script_of_18_turns() -> None:
    folder = Path(os.environ["DRIFT_SEED_DATA"])
    reference = transcripts.load(folder / "llama-70b_selfharm_unsteered.json")
    assert len(reference.users) == 18
    assert reference.replies is not None
    for label in ("baseline", "simple_sysprompt", "complex_sysprompt"):
        made = transcripts.load(folder / f"003b_{label}.json")
        assert made.digest == reference.digest
        assert made.name == reference.name == "llama-70b_selfharm_unsteered"
