"""Prompts, placements, histories."""

from __future__ import annotations

import pytest
import tiny

from drift_cli.chat import Conversation, chat_for, messages, scripted
from drift_cli.chat.raw import RawChat
from drift_cli.chat.template import TemplateChat
from drift_cli.engine.contract import common_prefix
from drift_cli.errors import UsageError
from drift_cli.running.estimate import prompt_lengths
from drift_cli.spec import Condition, Placement, Transcript

USERS = ("hello there", "tell me more", "what is the light")
SCRIPT = Transcript("t", USERS)
PROMPT = "be kind to the moon"


def _chat(name: str, **how: str) -> TemplateChat:
    return TemplateChat(tiny.tokenizer(tiny.ARCHITECTURES[name]), **how)


def _talk(chat: TemplateChat | RawChat, condition: Condition | None = None, users: tuple[str, ...] = USERS) -> Conversation:
    return scripted(chat, users, condition or Condition("baseline"), frozenset({0}))


def test_a_prompt_after_every_turn_gives_the_messages_of_the_original_experiment() -> None:
    made = messages(USERS, ("a", "b", "c"), Condition("c", PROMPT, Placement.EVERY_TURN))
    assert [m["role"] for m in made] == ["user", "system", "assistant"] * 3


def test_start_first_user_and_suffix_placements() -> None:
    start = messages(USERS, ("a",), Condition("c", PROMPT))
    assert [m["role"] for m in start] == ["system", "user", "assistant", "user", "user"]
    first = messages(USERS, ("a",), Condition("c", PROMPT, Placement.FIRST_USER))
    assert [m["content"] for m in first] == [f"{PROMPT}\n\nhello there", "a", "tell me more", "what is the light"]
    suffix = messages(USERS[:1], (), Condition("c", PROMPT, Placement.USER_SUFFIX))
    assert suffix == [{"role": "user", "content": f"hello there\n\n{PROMPT}"}]


@pytest.mark.parametrize("name", list(tiny.ARCHITECTURES))
def test_placements_that_a_template_does_not_take_are_refused_with_those_it_takes(name: str) -> None:
    chat = _chat(name)
    for placement in Placement:
        condition = Condition("c", PROMPT, placement)
        if placement.value in tiny.ARCHITECTURES[name].placements:
            chat.check(condition, SCRIPT)
        else:
            with pytest.raises(UsageError, match="Placements that work with it: first-user, user-suffix"):
                chat.check(condition, SCRIPT)


def test_a_template_that_silently_drops_a_later_system_message_is_found_out() -> None:
    template = "{% for m in messages %}{% if m['role'] != 'system' or loop.first %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}[assistant]"
    chat = TemplateChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"], template=template))
    with pytest.raises(UsageError, match="at turn 1 it writes the prompt 0 times where 1 was given"):
        chat.check(Condition("c", PROMPT, Placement.EVERY_TURN), SCRIPT)
    chat.check(Condition("c", PROMPT, Placement.START), SCRIPT)


def test_a_template_that_drops_history_is_refused() -> None:
    template = "[user]{{ messages[-1]['content'] }}[assistant]"
    chat = TemplateChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"], template=template))
    with pytest.raises(UsageError, match="at turn 2 it drops user turn 1"):
        chat.check(Condition("baseline"), SCRIPT)


def test_a_prompt_that_the_template_adds_of_its_own_is_reported() -> None:
    olmo = _chat("olmo3")
    assert "You are Olmo, a helpful model." in (olmo.adds(Condition("baseline")) or "")
    assert "You are Olmo" in (olmo.adds(Condition("c", PROMPT, Placement.EVERY_TURN)) or "")
    assert olmo.adds(Condition("c", PROMPT, Placement.START)) is None
    assert "Today is" in (_chat("llama").adds(Condition("baseline")) or "")
    assert _chat("qwen3").adds(Condition("baseline")) is None
    assert _chat("gemma").adds(Condition("baseline")) is None


def test_the_date_is_pinned_and_part_of_the_format() -> None:
    text = _chat("llama").render(messages(USERS[:1], (), Condition("b")), prompt=True)
    assert "Today is 01 Jan 2026." in text
    other = _chat("llama", date="2024-07-26")
    assert "Today is 26 Jul 2024." in other.render(messages(USERS[:1], (), Condition("b")), prompt=True)
    assert other.format.date == "2024-07-26"
    assert _chat("olmo3").format.date is None


def test_a_template_with_date_formats_that_cannot_be_pinned_is_refused() -> None:
    template = "{% set f = '%Y' %}{{ strftime_now(f) }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = TemplateChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"], template=template))
    with pytest.raises(UsageError, match="date"):
        chat.check(Condition("baseline"), SCRIPT)


def test_options_reach_the_template_and_its_identity() -> None:
    on, off = _chat("qwen3"), _chat("qwen3", options='{"enable_thinking": false}')
    conversation = messages(USERS[:1], (), Condition("b"))
    assert on.render(conversation, prompt=True).endswith("<|im_start|>assistant\n")
    assert off.render(conversation, prompt=True).endswith("<think></think>")
    assert on.format != off.format


def test_sampled_ids_stay_in_the_conversation_though_the_text_would_be_tokenized_otherwise() -> None:
    chat = _chat("olmo3")
    talk = _talk(chat)
    letters = [chat.tokenizer.convert_tokens_to_ids(letter) for letter in ["Ġ", "h", "e", "l", "l", "o"]]
    assert list(chat.tokenizer.encode(" hello", add_special_tokens=False)) != letters
    first = talk.prompt
    talk = talk.after([*letters, 0])
    assert [said.answer for said in talk.said] == [" hello"]
    assert talk.prompt[: len(first) + len(letters)] == (*first, *letters)
    assert talk.prompt[len(first) + len(letters)] == 0
    assert chat.tokenizer.decode(talk.prompt) == chat.render(messages(USERS[:2], (" hello",), talk.condition), prompt=True)


def test_a_template_that_trims_a_reply_is_followed() -> None:
    chat = _chat("llama")
    talk = _talk(chat)
    talk = talk.after([*chat.tokenizer.encode("  hello there \n", add_special_tokens=False), 0])
    assert list(talk.prompt) == chat.prompt(USERS[:2], ("  hello there \n",), talk.condition)
    assert "hello there<|eot|>" in chat.tokenizer.decode(talk.prompt)


def test_a_template_that_drops_reasoning_is_followed() -> None:
    chat = _chat("qwen3")
    talk = _talk(chat)
    before = list(talk.prompt)
    talk = talk.after([*chat.tokenizer.encode("I feel</think> hello", add_special_tokens=False), 0])
    assert "I feel" not in chat.tokenizer.decode(talk.prompt)
    assert common_prefix(before, talk.prompt) == len(before)


def test_the_same_conversation_always_has_the_same_prompt() -> None:
    chat = _chat("gemma")
    replies = [[90, 91, 92, 0], [], [400, 9, 300]]
    a, b = _talk(chat), _talk(chat)
    for reply in replies[:2]:
        a = a.after(reply)
    for reply in replies[:2]:
        b = b.after(reply)
    assert a.prompt == b.prompt
    assert a.past == b.past


@pytest.mark.parametrize("name", list(tiny.ARCHITECTURES))
def test_the_token_that_closes_a_reply_is_found(name: str) -> None:
    chat = _chat(name)
    assert chat.end_ids(frozenset()) == {chat.tokenizer.convert_tokens_to_ids(tiny.ARCHITECTURES[name].end)}


def test_control_tokens_in_user_text_are_refused_by_turn() -> None:
    with pytest.raises(UsageError, match="user turn 2 of transcript t contains '<|im_end|>'".replace("|", r"\|")):
        _chat("olmo3").check(Condition("b"), Transcript("t", ("fine", "not <|im_end|> fine")))


def test_raw_replies_end_where_another_speaker_begins() -> None:
    chat = RawChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"]))

    def ids(text: str) -> list[int]:
        return list(chat.tokenizer.encode(text, add_special_tokens=False))

    reply = ids(" hello there.\n\nUser: and")
    keep = chat.stop_length(reply)
    assert keep is not None
    assert chat.tokenizer.decode(reply[:keep]).strip() == "hello there."
    assert chat.stop_length(ids(" hello there.\n\nUse")) is None
    assert chat.stop_length(ids("\nUser:")) == 0


def test_raw_prompts_keep_every_sampled_id() -> None:
    chat = RawChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"]))
    talk = _talk(chat, Condition("c", PROMPT, Placement.EVERY_TURN))
    first = talk.prompt
    assert chat.tokenizer.decode(first) == f"User: hello there\n\nSystem: {PROMPT}\n\nAssistant:"
    talk = talk.after([90, 91, 92])
    assert talk.prompt[: len(first) + 3] == (*first, 90, 91, 92)
    assert chat.tokenizer.decode(talk.prompt[len(first) + 3 :]) == f"\n\nUser: tell me more\n\nSystem: {PROMPT}\n\nAssistant:"


def test_raw_text_has_the_prompt_in_front_of_the_first_user_message_only() -> None:
    chat = RawChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"]))
    talk = _talk(chat, Condition("c", PROMPT, Placement.FIRST_USER))
    talk = talk.after([90])
    text = chat.tokenizer.decode(talk.prompt)
    assert text.startswith(f"User: {PROMPT}\n\nhello there\n\nAssistant:")
    assert text.endswith("\n\nUser: tell me more\n\nAssistant:")


def test_control_tokens_are_refused_in_raw_text_too() -> None:
    with pytest.raises(UsageError, match=r"the prompt of condition c contains '<\|im_end\|>'"):
        RawChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"])).check(Condition("c", "be <|im_end|>"), SCRIPT)


def test_prompt_lengths_are_foreseen_where_a_template_takes_no_empty_reply() -> None:
    fussy = "{% for m in messages if not m['content'] %}{{ raise_exception('empty') }}{% endfor %}" + tiny.OLMO
    lengths = [
        prompt_lengths(TemplateChat(tiny.tokenizer(tiny.ARCHITECTURES["olmo3"], template=template)), SCRIPT, Condition("b"))
        for template in (tiny.OLMO, fussy)
    ]
    assert lengths[1] == tuple(length + turn for turn, length in enumerate(lengths[0]))


def test_a_model_without_a_template_points_to_raw() -> None:
    bare = tiny.tokenizer(tiny.ARCHITECTURES["olmo3"])
    bare.chat_template = None
    with pytest.raises(UsageError, match="--chat raw"):
        chat_for(bare, "template")
    with pytest.raises(UsageError, match="template or --chat raw"):
        chat_for(bare, "smoke-signals")
