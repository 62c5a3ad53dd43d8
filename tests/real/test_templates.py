"""A real chat model's template and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from jobs import replies

from drift_cli.chat import scripted
from drift_cli.chat.template import TemplateChat
from drift_cli.engine.contract import Job, Reply
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.sampling import noise_key
from drift_cli.models import LoadedModel
from drift_cli.spec import Cell, Condition, Finish, Placement, Rollout, Sampling, Transcript

USERS = ("Hello! Who are you?", "What is the capital of France?", "Thank you.\n\nAnd of Spain?", "And what is light?", "Goodbye.")
REPLIES = ("I am an assistant.", " Paris, of course. \n", "Madrid.", "Waves; or particles.")
SYSTEM = "Answer in one short sentence."


@pytest.fixture
def model(networks: Mapping[str, LoadedModel]) -> LoadedModel:
    return networks["float32"]


def messages_of(turn: int, placement: Placement | None) -> list[dict[str, str]]:
    """The messages of a turn's prompt, written down here once more."""
    made = [{"role": "system", "content": SYSTEM}] if placement is Placement.START else []
    for number, user in enumerate(USERS[:turn]):
        content = f"{SYSTEM}\n\n{user}" if placement is Placement.FIRST_USER and number == 0 else user
        made.append({"role": "user", "content": f"{content}\n\n{SYSTEM}" if placement is Placement.USER_SUFFIX else content})
        made += [{"role": "system", "content": SYSTEM}] if placement is Placement.EVERY_TURN else []
        made += [{"role": "assistant", "content": REPLIES[number]}] if number < turn - 1 else []
    return made


@pytest.mark.parametrize("placement", [None, *Placement])
def test_prompts_are_what_the_tokenizer_makes_of_the_messages(model: LoadedModel, placement: Placement | None) -> None:
    chat = TemplateChat(model.card.tokenizer)
    condition = Condition("c") if placement is None else Condition("c", SYSTEM, placement)
    chat.check(condition, Transcript("t", USERS))
    assert not chat.segmented
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.end_ids(frozenset()) == {end}
    talk = scripted(chat, USERS, condition, model.card.end_ids)
    for turn in range(1, len(USERS) + 1):
        made = chat.tokenizer.apply_chat_template(messages_of(turn, placement), add_generation_prompt=True, return_dict=False)
        assert list(talk.canonical) == made
        assert list(talk.prompt) == made
        if turn <= len(REPLIES):
            ids = chat.tokenizer.encode(REPLIES[turn - 1], add_special_tokens=False)
            assert (talk.parts(ids).answer, talk.parts(ids).segments) == (REPLIES[turn - 1], ())
            talk = talk.after([*ids, end])


def test_a_template_that_fails_on_a_reply_ends_rollouts_alike_in_both_engines(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = (
        "{%- for m in messages if m['role'] == 'assistant' and 'Par' in m['content'] -%}{{ raise_exception('Not Paris') }}{%- endfor -%}"
    )
    monkeypatch.setattr(model.card.tokenizer, "chat_template", fails + str(model.card.tokenizer.chat_template))

    def made(kind: type[SlotEngine] | type[ReferenceEngine]) -> dict[tuple[int, int], Reply]:
        cell = Cell("t", "c", 0.7)
        todo = []
        for sample in range(2):
            talk = scripted(TemplateChat(model.card.tokenizer), USERS[1 - sample :][:3], Condition("c"), model.card.end_ids)
            todo.append(Job(Rollout(cell, sample), talk, noise_key(0, cell, independent=False)))
        engine = kind(model, (10,), Sampling(), 12, 2)
        return {(reply.rollout.sample, reply.turn): reply for reply in replies(engine, todo)}

    slots, reference = made(SlotEngine), made(ReferenceEngine)
    assert {key: (reply.ids, reply.finish) for key, reply in slots.items()} == {
        key: (reply.ids, reply.finish) for key, reply in reference.items()
    }
    ends = [reply for reply in slots.values() if reply.finish is Finish.TEMPLATE]
    assert ends
    assert all("it fails: Not Paris" in str(reply.problem) for reply in ends)
