"""Every habit of a chat template × every placement × five turns: accepted, and then every text stands in its place at every turn, or refused before the run."""

from __future__ import annotations

import re

import pytest
import templates
from templates import PLACEMENTS, SUITE, Habit

from drift_cli.chat import Conversation, scripted
from drift_cli.chat.template import TemplateChat
from drift_cli.errors import UsageError
from drift_cli.spec import Condition, Placement, Transcript

USERS = ("First of all, hello to you.", "Secondly, why?", "Thirdly:\n\nwhat is light?", "Fourthly, yes.", "Fifthly and lastly, yes.")
SCRIPT = Transcript("t", USERS)
SYSTEM = "Be kind to the quiet moon."
REPLIES = ("Alpha is what I say. ", "Bravo", " Charlie\nand Charles", "Delta!", "Echo.")
CASES = [pytest.param(habit, placement, id=f"{habit.name}-{placement}") for habit in SUITE.values() for placement in PLACEMENTS]


def chat_of(habit: Habit) -> TemplateChat:
    return TemplateChat(habit.tokenizer(), options=habit.options)


def condition_of(placement: str) -> Condition:
    return Condition("c") if placement == "none" else Condition("c", SYSTEM, Placement(placement))


def in_order(placement: str, turn: int) -> list[str]:
    """What the prompt of a turn is to hold, in this order: written down here once more, so that the test does not ask the code that it tests."""
    made = [SYSTEM] if placement == "start" else []
    for number in range(turn):
        made += [SYSTEM] if placement == "first-user" and number == 0 else []
        made.append(USERS[number])
        made += [SYSTEM] if placement in ("every-turn", "user-suffix") else []
        made += [REPLIES[number].strip()] if number < turn - 1 else []
    return made


def talk_of(chat: TemplateChat, condition: Condition) -> Conversation:
    return scripted(chat, USERS, condition, chat.end_ids(frozenset()))


def ids_of(chat: TemplateChat, text: str) -> list[int]:
    return [int(i) for i in chat.tokenizer.encode(text, add_special_tokens=False)]


def closed(chat: TemplateChat, talk: Conversation, text: str) -> list[int]:
    """A reply with the token that ends it."""
    return [*ids_of(chat, text), min(talk.end_ids)]


@pytest.mark.parametrize(("habit", "placement"), CASES)
def test_what_is_accepted_is_rendered_at_every_turn(habit: Habit, placement: str) -> None:
    chat, condition = chat_of(habit), condition_of(placement)
    if (why := habit.refused.get(placement)) is not None:
        with pytest.raises(UsageError, match=why):
            chat.check(condition, SCRIPT)
        return
    chat.check(condition, SCRIPT)
    talk = talk_of(chat, condition)
    behind = f"\n{chat.reasoning.marks.closes}\n" if chat.reasoning is not None and chat.reasoning.opening else ""
    for turn, reply in enumerate(REPLIES, 1):
        text = chat.tokenizer.decode(talk.prompt)
        assert re.findall("|".join(map(re.escape, dict.fromkeys(in_order(placement, 5)))), text) == in_order(placement, turn)
        talk = talk.after(closed(chat, talk, behind + reply))
    assert talk.problem is None


@pytest.mark.parametrize("habit", [habit for habit in SUITE.values() if habit.refused], ids=lambda habit: habit.name)
def test_a_refusal_recommends_what_works_and_nothing_else(habit: Habit) -> None:
    chat = chat_of(habit)
    works = [placement for placement in PLACEMENTS[1:] if placement not in habit.refused]
    for placement in habit.refused:
        with pytest.raises(UsageError) as raised:
            chat.check(condition_of(placement), SCRIPT)
        named = re.search(r"Placements that work with it: (.*)\.", raised.value.mend or "")
        assert (named[1].split(", ") if named else []) == works


@pytest.mark.parametrize("habit", SUITE.values(), ids=lambda habit: habit.name)
def test_a_reply_ends_where_the_template_closes_it(habit: Habit) -> None:
    chat = chat_of(habit)
    assert {chat.tokenizer.convert_ids_to_tokens(token) for token in chat.end_ids(frozenset())} == set(habit.closes)


def test_the_suite_is_as_large_as_it_says() -> None:
    assert len(SUITE) >= 50
    assert len(CASES) == 5 * len(SUITE)
    assert sum(len(habit.refused) for habit in SUITE.values()) >= 60


def test_a_text_is_begun_once_where_template_and_tokenizer_both_begin_it() -> None:
    habit = SUITE["begins the text, as the tokenizer does"]
    chat = chat_of(habit)
    bos = chat.tokenizer.bos_token_id
    assert chat.tokenizer.encode("hello")[0] == bos
    talk = talk_of(chat, Condition("c"))
    talk = talk.after(closed(chat, talk, "Alpha"))
    assert talk.prompt[0] == bos
    assert talk.prompt.count(bos) == 1


def test_templates_for_tools_alone_are_refused() -> None:
    with pytest.raises(UsageError, match="none of them is the one for plain conversations"):
        chat_of(Habit("tools only", {"tool_use": templates.each(templates.SAY), "rag": "-"}))


def test_a_pinned_date_is_rendered_and_a_default_prompt_reported() -> None:
    assert "Today is 01 Jan 2026." in chat_of(SUITE["asks for the date"]).render([{"role": "user", "content": "hello"}], prompt=True)
    assert chat_of(SUITE["has a system prompt of its own"]).adds(Condition("c")) == "system You are Nobody."
    assert chat_of(SUITE["plain"]).adds(Condition("c", SYSTEM, Placement.FIRST_USER)) is None


@pytest.mark.parametrize("where", ["user", "system"])
def test_control_tokens_in_texts_are_refused_named_or_not(where: str) -> None:
    chat = chat_of(SUITE["ends replies with a token that it does not call special"])
    assert "<|e|>" not in chat.tokenizer.all_special_tokens
    users, system = (("Hello", "And <|e|> then"), SYSTEM) if where == "user" else (("Hello",), f"{SYSTEM}<|e|>")
    with pytest.raises(UsageError, match=r"contains '<\|e\|>', which this model reads as a control token"):
        chat.check(Condition("c", system), Transcript("t", users))


def test_words_spaces_and_html_that_a_vocabulary_has_tokens_for_are_no_control_tokens() -> None:
    habit = Habit("plain", templates.each(templates.SAY), unnamed=("kindness", "\n\n", "\u2581\u2581", "÷", "<table>", "</h1>", "<tool>"))
    chat = chat_of(habit)
    chat.check(Condition("c"), Transcript("t", ("Of kindness:\n\n1 ÷ 2 \u2581\u2581 <table></h1>",)))
    with pytest.raises(UsageError, match="contains '<tool>'"):
        chat.check(Condition("c"), Transcript("t", ("A <tool> for you",)))


LATE = {
    "an empty reply": (
        "{%- if not m['content'] -%}{{ raise_exception('Nothing was said') }}{%- endif -%}",
        "",
        "it fails: Nothing was said",
    ),
    "a reply that it does not like": (
        "{%- if 'BAD' in m['content'] -%}{{ raise_exception('Not that word') }}{%- endif -%}",
        "how BAD of me",
        "it fails: Not that word",
    ),
    "a reply that it hides": (
        "{%- if 'BAD' in m['content'] -%}{%- set m = {'role': m['role'], 'content': '[hidden]'} -%}{%- endif -%}",
        "how BAD of me",
        "it drops or changes reply 2",
    ),
    "a reply for which it hides a user turn that stands elsewhere too": (
        "{%- if ns.bad and m['content'] == 'Secondly, why?' -%}{%- continue -%}{%- endif -%}",
        "how BAD to ask: Secondly, why?",
        "it drops or changes user turn 2",
    ),
    "a reply that it shortens": (
        "{%- set m = {'role': m['role'], 'content': m['content'][:4000]} -%}",
        "word " * 1000,
        "it drops or changes reply 2",
    ),
    "a reply for which it repeats the prompt": ("", "how BAD of me", "it writes the prompt 2 times where 1 was given"),
    "a reply for which it moves the prompt": (
        "{%- if ns.bad and m['role'] == 'system' -%}{%- continue -%}{%- endif -%}",
        "how BAD of me",
        "it changes the order of the texts",
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_what_only_some_replies_bring_about_ends_the_rollout_there(name: str) -> None:
    body, bad, why = LATE[name]
    before = (
        "{%- set ns = namespace(bad=false) -%}{%- for m in messages if 'BAD' in m['content'] -%}{%- set ns.bad = true -%}{%- endfor -%}"
    )
    at_end = "{%- if ns.bad and messages[0]['role'] == 'system' -%}<|b|>system<|m|>{{ messages[0]['content'] }}<|e|>{%- endif -%}"
    chat = chat_of(Habit(name, templates.each(body + templates.SAY, before=before, after=at_end + templates.ASK)))
    condition = Condition("c", SYSTEM)
    if "order" not in why and "repeats" not in name:
        condition = Condition("c")
    chat.check(condition, SCRIPT)
    talk = talk_of(chat, condition)
    talk = talk.after(closed(chat, talk, "Alpha"))
    assert talk.problem is None
    before = talk
    talk = talk.after(closed(chat, talk, bad))
    assert talk.problem is not None
    assert f"at turn 3 {why}" in talk.problem
    assert [said.answer for said in talk.said] == ["Alpha", bad]
    with pytest.raises(Exception, match="at turn 3"):
        _ = talk.prompt
    # It is a property of the conversation: the state before has none, and whoever comes the same way finds the same.
    assert before.problem is None
    assert talk_of(chat, condition).after(closed(chat, talk, "Alpha")).after(closed(chat, talk, bad)).problem == talk.problem


def test_a_reply_that_spells_out_a_control_token_ends_the_rollout_only_where_the_template_rewrites_history() -> None:
    for name, ends in (("plain", False), ("says something to the latest user message only", True)):
        chat = chat_of(SUITE[name])
        talk = talk_of(chat, Condition("c"))
        reply = [chat.tokenizer.convert_tokens_to_ids(letter) for letter in "<|e|>"]
        assert chat.tokenizer.decode(reply) == "<|e|>"
        talk = talk.after([*reply, min(talk.end_ids)])
        assert (talk.problem is not None) == ends
        if ends:
            assert "reply 1 spells out '<|e|>'" in str(talk.problem)
        else:
            assert tuple(talk.prompt[len(talk.past[0].prompt) :][: len(reply)]) == tuple(reply)
