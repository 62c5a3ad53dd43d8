"""Engines give a mean for each part of a reply: the answer, the reasoning, and all of it."""

from __future__ import annotations

import numpy as np
import pytest
from jobs import jobs, run, talk_after, text
from thinking import ForgettingChat, ThinkingChat, check_means, split, thinking

from drift_cli.chat import text_of
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.models import LoadedModel
from drift_cli.segments import Part, spans
from drift_cli.spec import Sampling

TOKENS = 12
Engine = type[SlotEngine] | type[ReferenceEngine]


def _engine(kind: Engine, model: LoadedModel) -> SlotEngine | ReferenceEngine:
    return kind(model, tuple(range(model.card.layers + 1)), Sampling(top_p=0.9), TOKENS, 4)


@pytest.mark.parametrize("chat", [ThinkingChat, ForgettingChat])
@pytest.mark.parametrize("kind", [ReferenceEngine, SlotEngine])
@pytest.mark.parametrize("name", ["olmo3", "qwen3"])
def test_the_means_of_all_parts_are_a_direct_forwards(
    name: str, kind: Engine, chat: type[ThinkingChat], loaded: dict[str, LoadedModel]
) -> None:
    model = loaded[name]
    replies = run(_engine(kind, model), thinking(jobs(model), chat))
    kinds = check_means(model, replies, 1e-5 if kind is ReferenceEngine else 1e-4)
    assert {"plain", "both", "no answer"} <= set(kinds)
    forgotten = [
        replies[rollout, turn + 1].prompt[: len(reply.prompt) + len(reply.ids) - 1] != (*reply.prompt, *reply.ids[:-1])
        for (rollout, turn), reply in replies.items()
        if (rollout, turn + 1) in replies
    ]
    assert any(forgotten) or chat is not ForgettingChat
    for reply in replies.values():
        content = [token for token in reply.ids if token not in model.card.end_ids]
        assert reply.segments == split(content)
        if reply.segments:
            said = {part: "".join(text_of(model.card.tokenizer, content[a:b]) for a, b in spans(reply.segments, part)) for part in Part}
            assert (text(reply), talk_after(reply).said[-1].reasoning or "") == (said[Part.ANSWER], said[Part.REASONING])
            assert (reply.residual is None) == (not spans(reply.segments, Part.ANSWER))


@pytest.mark.parametrize("kind", [ReferenceEngine, SlotEngine])
def test_replies_without_segments_have_the_bits_that_they_have_in_a_format_without(kind: Engine, loaded: dict[str, LoadedModel]) -> None:
    model = loaded["olmo3"]
    plain, thought = run(_engine(kind, model), jobs(model)), run(_engine(kind, model), thinking(jobs(model)))
    assert {key: reply.ids for key, reply in plain.items()} == {key: reply.ids for key, reply in thought.items()}
    compared = 0
    for key, reply in thought.items():
        whole = reply.means.get(Part.ALL) if reply.segments else reply.residual
        assert (whole is None) == (plain[key].residual is None)
        if whole is not None:
            assert np.array_equal(whole, plain[key].residual)
            compared += 1
    assert compared > len(plain) // 2
