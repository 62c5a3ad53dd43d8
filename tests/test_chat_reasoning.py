"""Replies with reasoning: where its parts are, and what the next prompt makes of them, for every way in which the suite's templates have reasoning written."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import templates
import tiny
from templates import PLAIN, THINKING, Habit

from drift_cli.chat import Conversation, scripted
from drift_cli.chat.raw import RawChat
from drift_cli.chat.template import TemplateChat
from drift_cli.segments import Segment, SegmentKind
from drift_cli.spec import Condition

USERS = ("First", "Second", "Third")
ANSWER, REASONING = SegmentKind.ANSWER, SegmentKind.REASONING


@dataclass(frozen=True)
class Case:
    habit: str
    reply: str
    parts: tuple[tuple[SegmentKind, str], ...]
    """Of every segment: its kind and its tokens' text. () where the reply is all answer."""
    history: str
    """The reply's message in the next prompt."""
    kept: bool = False
    """The sampled ids stay in the conversation."""
    ended: bool = True
    """Not cut at the length limit."""


LEFT_OUT = "reasoning has a field, and is left out of history"
STAYS = "reasoning has a field, and stays in history"
CUT_OUT = "reasoning is cut out of the content, and begun by the prompt"
IN_CONTENT = "reasoning stays in the content, and is begun by the prompt in ordinary tokens"
EMPTY_THOUGHT = "history has an empty thought"
RESPONSE = "thought and response have tokens of their own"
UNLIKE = "a channel is opened and closed by unlike tokens"
CHANNELS = "messages in channels"
TO_SOMEBODY = "messages to somebody"
SWITCH = "a word of the user's turns thinking off"

BOTH = ((REASONING, "Hm. So."), (ANSWER, "Yes, you."))
THOUGHT_ONLY = ((REASONING, "Hm. So."),)


def said(text: str) -> str:
    return f"<|b|>assistant<|m|>{text}<|e|>"


CASES = [
    Case(LEFT_OUT, "<think>\nHm. So.\n</think>\n\nYes, you.", BOTH, said("Yes, you.")),
    Case(LEFT_OUT, "<think>\nHm. So.", THOUGHT_ONLY, said(""), ended=False),
    Case(LEFT_OUT, "Yes, you.", (), said("Yes, you."), kept=True),
    Case(LEFT_OUT, "Hm. So.</think>Yes, you.", BOTH, said("Yes, you.")),
    Case(LEFT_OUT, "<think>\n\n</think>\n\nYes, you.", ((ANSWER, "Yes, you."),), said("Yes, you.")),
    Case(
        LEFT_OUT,
        "<think>Hm. So.</think>Yes, <think>or no?</think>you.",
        (*BOTH[:1], (ANSWER, "Yes,"), (REASONING, "or no?"), (ANSWER, "you.")),
        said("Yes,\n\nyou."),
    ),
    Case(LEFT_OUT, "<think>", (), said(""), ended=False),
    Case(STAYS, "<think>\nHm. So.\n</think>\n\nYes, you.", BOTH, said("<think>\nHm. So.\n</think>\n\nYes, you."), kept=True),
    Case(STAYS, "<think>Hm. So.</think>Yes, you.", BOTH, said("<think>\nHm. So.\n</think>\n\nYes, you.")),
    Case(STAYS, "<think>\nHm. So.", THOUGHT_ONLY, said("<think>\nHm. So.\n</think>\n\n"), kept=True, ended=False),
    Case(STAYS, "Yes, you.", (), said("Yes, you."), kept=True),
    Case(CUT_OUT, "Hm. So.\n</think>\n\nYes, you.", BOTH, said("Yes, you.")),
    Case(CUT_OUT, "Hm. So.", THOUGHT_ONLY, said(""), ended=False),
    Case(CUT_OUT, "<think>\nHm. So.\n</think>\n\nYes, you.", BOTH, said("Yes, you.")),
    Case(IN_CONTENT, "\nHm. So.\n</think>\n\nYes, you.", BOTH, said("<think>\nHm. So.\n</think>\n\nYes, you."), kept=True),
    Case(IN_CONTENT, "\nHm. So.", THOUGHT_ONLY, said("<think>\nHm. So."), kept=True, ended=False),
    Case(EMPTY_THOUGHT, "<think>Hm. So.</think>Yes, you.", BOTH, said("<think></think>Yes, you.")),
    Case(EMPTY_THOUGHT, "Yes, you.", (), said("<think></think>Yes, you.")),
    Case(
        RESPONSE,
        "<|START_THINKING|>Hm. So.<|END_THINKING|><|START_RESPONSE|>Yes, you.",
        BOTH,
        said("<|START_RESPONSE|>Yes, you.<|END_RESPONSE|>"),
    ),
    Case(RESPONSE, "<|START_THINKING|>Hm. So.", THOUGHT_ONLY, said("<|START_RESPONSE|><|END_RESPONSE|>"), ended=False),
    Case(RESPONSE, "<|START_RESPONSE|>Yes, you.", ((ANSWER, "Yes, you."),), said("<|START_RESPONSE|>Yes, you.<|END_RESPONSE|>"), kept=True),
    Case(UNLIKE, "<|channel>thought\nHm. So.\n<channel|>Yes, you.", BOTH, said("Yes, you.")),
    Case(UNLIKE, "<|channel>thought\nHm. So.", THOUGHT_ONLY, said(""), ended=False),
    Case(UNLIKE, "Yes, you.", (), said("Yes, you."), kept=True),
    Case(
        CHANNELS,
        "<|c|>analysis<|m|>Hm. So.<|e|><|b|>assistant<|c|>final<|m|>Yes, you.",
        BOTH,
        "<|b|>assistant<|c|>final<|m|>Yes, you.<|e|>",
    ),
    Case(CHANNELS, "<|c|>analysis<|m|>Hm. So.", THOUGHT_ONLY, "<|b|>assistant<|c|>final<|m|><|e|>", ended=False),
    Case(CHANNELS, "<|c|>final<|m|>Yes, you.", ((ANSWER, "Yes, you."),), "<|b|>assistant<|c|>final<|m|>Yes, you.<|e|>", kept=True),
    Case(CHANNELS, "<|c|>ana", (), "<|b|>assistant<|c|>final<|m|><|e|>", ended=False),
    Case(
        CHANNELS,
        "<|c|>analysis<|m|>Hm.<|e|><|b|>assistant<|c|>analysis<|m|>So.<|e|><|c|>commentary<|m|>Wait.<|e|><|b|>assistant<|c|>final<|m|>Yes, you.",
        ((REASONING, "Hm."), (REASONING, "So."), (ANSWER, "Wait."), (ANSWER, "Yes, you.")),
        "<|b|>assistant<|c|>final<|m|>Wait.\n\nYes, you.<|e|>",
    ),
    Case(
        CHANNELS,
        "<|c|>analysis<|m|>Hm. So.<|e|><|b|>assistant to=tool<|c|>commentary<|m|>{}",
        THOUGHT_ONLY,
        "<|b|>assistant<|c|>final<|m|><|e|>",
    ),
    Case(
        TO_SOMEBODY,
        " to=self<|m|>Hm. So.<|n|><|b|>assistant to=user<|m|>Yes, you.",
        BOTH,
        "<|b|>assistant to=self<|m|>Hm. So.<|n|><|b|>assistant to=user<|m|>Yes, you.<|e|>",
        kept=True,
    ),
    Case(TO_SOMEBODY, " to=user<|m|>Yes, you.", ((ANSWER, "Yes, you."),), "<|b|>assistant to=user<|m|>Yes, you.<|e|>", kept=True),
    Case(SWITCH, "Hm. So.\n</think>\n\nYes, you.", BOTH, said("Yes, you.")),
]


def start(habit: Habit, users: tuple[str, ...] = USERS) -> Conversation:
    chat = TemplateChat(habit.tokenizer(), options=habit.options)
    return scripted(chat, users, Condition("c"), chat.end_ids(frozenset()))


def ids_of(talk: Conversation, text: str) -> list[int]:
    return [int(i) for i in talk.chat.tokenizer.encode(text, add_special_tokens=False)]


def text_of(talk: Conversation, ids: list[int]) -> str:
    return str(talk.chat.tokenizer.decode(ids))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.habit}: {case.reply!r}")
def test_a_reply_is_taken_apart_and_goes_into_history_as_the_template_means_it(case: Case) -> None:
    talk = start(THINKING[case.habit])
    ids, before = ids_of(talk, case.reply), talk.prompt
    sampled = [*ids, max(talk.end_ids)] if case.ended else ids
    segments = talk.parts(sampled).segments
    if case.parts:
        assert [(it.kind, text_of(talk, ids[it.start : it.stop])) for it in segments] == list(case.parts)
    elif case.ended:
        assert segments == ()
    else:
        assert segments == (Segment(ANSWER, len(ids), len(ids)),)  # markup and nothing else: not one token of an answer
    answers, thoughts = ([text for kind, text in case.parts if kind is wanted] for wanted in (ANSWER, REASONING))
    assert talk.parts(sampled).answer == ("\n\n".join(answers) if segments else case.reply)
    assert (talk.parts(sampled).reasoning or None) == ("\n\n".join(thoughts) or None)
    talk = talk.after(sampled)
    assert talk.problem is None
    history = text_of(talk, talk.prompt).removeprefix("<|b|>user<|m|>First<|e|>")
    assert history.split("<|b|>user<|m|>Second<|e|>")[0] == case.history
    assert (talk.prompt[: len(before) + len(ids)] == (*before, *ids)) == case.kept


@pytest.mark.parametrize("habit", THINKING.values(), ids=lambda habit: habit.name)
def test_every_kind_of_reply_leads_to_a_next_prompt_and_prompts_are_a_function_of_the_conversation(habit: Habit) -> None:
    replies = [case for case in CASES if case.habit == habit.name]
    users = tuple(f"Question {number}" for number in range(len(replies) + 1))
    one, other = start(habit, users), start(habit, users)
    for case in replies:
        ids = [*ids_of(one, case.reply), *([max(one.end_ids)] if case.ended else [])]
        one = one.after(ids)
        assert one.problem is None
    for answered in one.past:
        other = other.after(answered.content)
    assert other.prompt == one.prompt
    text = text_of(one, one.prompt)
    assert [text.count(user) for user in users] == [1] * len(users)


@pytest.mark.parametrize("users", [("One", "/quick Two", "Three"), ("One", "Two", "Three")], ids=["off", "on"])
def test_whether_a_prompt_begins_the_reasoning_is_looked_up_in_that_prompt(users: tuple[str, ...]) -> None:
    talk = start(THINKING[SWITCH], users)
    assert talk.parts(ids_of(talk, "Yes, you.")).segments == (Segment(REASONING, 0, len(ids_of(talk, "Yes, you."))),)
    talk = talk.after(ids_of(talk, "Hm.</think>Yes."))
    off = "/quick" in users[1]
    assert text_of(talk, talk.prompt).endswith("<think>\n\n</think>\n\n" if off else "<think>\n")
    assert (talk.parts(ids_of(talk, "Yes, you.")).segments == ()) == off
    # A reply that somebody else gave is an answer, whatever the prompt began.
    talk = talk.after(ids_of(talk, "No, you."), given=True)
    assert [said.answer for said in talk.said] == ["Yes.", "No, you."]


@pytest.mark.parametrize(
    ("habit", "before"),
    [(STAYS, "<think>\nHm\n</think>\n\n"), (RESPONSE, "<|START_RESPONSE|>"), (CHANNELS, "<|c|>final<|m|>"), (LEFT_OUT, "")],
)
def test_ids_stay_as_they_were_sampled_where_history_is_the_prompt_the_reply_and_a_tail(habit: str, before: str) -> None:
    talk = start(THINKING[habit])
    letters = [talk.chat.tokenizer.convert_tokens_to_ids(letter) for letter in ("o", "k", "Ġ", "h", "e", "l", "l", "o")]
    assert ids_of(talk, "ok hello") != letters
    reply, first = [*ids_of(talk, before), *letters], talk.prompt
    talk = talk.after([*reply, max(talk.end_ids)])
    assert [said.answer for said in talk.said] == ["ok hello"]
    assert talk.prompt[: len(first) + len(reply)] == (*first, *reply)


def test_a_token_that_begins_with_the_space_behind_markup_belongs_to_the_part() -> None:
    talk = start(THINKING[LEFT_OUT])
    hello, there = (ids_of(talk, token) for token in (" hello", " there"))
    assert (len(hello), len(there)) == (1, 1)
    opens, closes = ids_of(talk, "<think>"), ids_of(talk, "</think>")
    assert talk.parts([*opens, *hello, *closes, *there]).segments == (Segment(REASONING, 1, 2), Segment(ANSWER, 3, 4))
    assert talk.parts([*opens, *hello, *closes, *there]).answer == "there"


def test_between_its_channels_a_reply_goes_on() -> None:
    chat = TemplateChat(THINKING[CHANNELS].tokenizer())
    names = {token: chat.tokenizer.convert_tokens_to_ids(token) for token in ("<|e|>", "<|x|>", "<|k|>", "<|b|>")}
    assert chat.end_ids(frozenset({names["<|e|>"], names["<|x|>"]})) == {names["<|x|>"], names["<|k|>"]}


def test_a_segment_begins_with_the_first_byte_of_its_first_character_and_ends_where_the_reply_was_cut() -> None:
    talk = start(THINKING[LEFT_OUT])
    ids = ids_of(talk, "<think>\n\U0001f60a Hm \U0001f60a\n</think>\n\n\U0001f60a you \U0001f60a")[:-2]  # cut inside a character
    reasoning, answer = talk.parts(ids).segments
    assert text_of(talk, ids[reasoning.start : reasoning.stop]) == "\U0001f60a Hm \U0001f60a"
    assert text_of(talk, ids[answer.start : answer.stop]).startswith("\U0001f60a you")
    assert answer.stop == len(ids)


def test_tags_in_ordinary_tokens_that_a_reply_only_speaks_of_are_no_markup() -> None:
    talk = start(Habit("plain tags", templates.each(templates.SAY, before="{%- if tools -%}<think>, </think>{%- endif -%}")))
    assert talk.chat.segmented
    assert talk.parts(ids_of(talk, "The tag <think> opens.")).segments == ()
    reasoning, answer = talk.parts(ids_of(talk, "<think>Hm</think>The tag <think> opens.")).segments
    assert (reasoning.kind, answer.kind) == (REASONING, ANSWER)


def test_tokens_of_the_vocabulary_alone_are_markup_too() -> None:
    plain = templates.each(templates.SAY)
    thinks = start(Habit("tokens", plain, unnamed=("<think>", "</think>")))
    ids = ids_of(thinks, "<think>Hm. So.</think>Yes, you.")
    assert [it.kind for it in thinks.parts(ids).segments] == [REASONING, ANSWER]
    before = thinks.prompt
    thinks = thinks.after(ids)
    assert thinks.prompt[: len(before) + len(ids)] == (*before, *ids)
    assert not start(Habit("tokens", plain)).chat.segmented


@pytest.mark.parametrize("habit", [habit for habit in PLAIN if "none" not in habit.refused], ids=lambda habit: habit.name)
def test_without_markup_of_reasoning_replies_are_all_answer_and_prompts_what_transformers_makes_of_the_messages(habit: Habit) -> None:
    talk = start(habit)
    assert not talk.chat.segmented
    messages = []
    for user in USERS:
        messages.append({"role": "user", "content": user})
        content = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages] if "chunks" in habit.name else messages
        template = talk.chat.template  # type: ignore[attr-defined]
        made = talk.chat.tokenizer.apply_chat_template(content, chat_template=template, add_generation_prompt=True, return_dict=False)
        assert list(talk.canonical) == made
        reply = ids_of(talk, "<think>no</think> you")
        assert talk.parts(reply).segments == ()
        assert talk.parts(reply).answer == "<think>no</think> you"
        talk = talk.after(reply)
        messages.append({"role": "assistant", "content": "<think>no</think> you"})


def test_raw_replies_are_all_answer() -> None:
    chat = RawChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"]))
    talk = scripted(chat, USERS, Condition("c"), frozenset({0}))
    ids = ids_of(talk, " <think>Hm</think>Yes")
    assert (chat.segmented, talk.parts(ids).segments, talk.parts(ids).reasoning) == (False, (), None)
