"""A chat format whose replies have segments, for tiny models that know nothing of thinking: which token ends the reasoning depends on its id alone. And what
the means of such replies must be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jobs import talk_of
from numpy.typing import NDArray

from drift_cli.chat import Chat, Conversation, Message, begin, messages, text_of
from drift_cli.chat.parts import Parts
from drift_cli.chat.template import TemplateChat
from drift_cli.engine.contract import Job, Reply
from drift_cli.models import LoadedModel
from drift_cli.segments import Part, Segment, SegmentKind, spans
from drift_cli.spec import Condition


def _mixed(token: int) -> int:
    """0 to 100, in no order."""
    return token * 7919 % 101


def split(ids: Sequence[int]) -> tuple[Segment, ...]:
    """Reasoning up to the first of some tokens, which is markup, then the answer; all answer where the reply begins with one of some others."""
    if not ids or _mixed(ids[0]) < 25:
        return ()
    close = next((place for place, token in enumerate(ids) if _mixed(token) > 88), None)
    if close is None:
        return (Segment(SegmentKind.REASONING, 0, len(ids)),)
    return tuple(
        segment
        for segment in (Segment(SegmentKind.REASONING, 0, close), Segment(SegmentKind.ANSWER, close + 1, len(ids)))
        if segment.stop > segment.start or segment.kind is SegmentKind.ANSWER
    )


def parts(chat: Chat, ids: Sequence[int], segments: tuple[Segment, ...]) -> Parts:
    """What a chat format that finds these segments says of a reply."""
    whole = text_of(chat.tokenizer, ids)
    if not segments:
        return Parts(whole, whole=whole)
    said = {part: "".join(text_of(chat.tokenizer, ids[a:b]) for a, b in spans(segments, part)) for part in (Part.ANSWER, Part.REASONING)}
    return Parts(said[Part.ANSWER], said[Part.REASONING] or None, segments, whole=whole)


class ThinkingChat(TemplateChat):
    """The model's template, with `split` for its replies."""

    @property
    def segmented(self) -> bool:
        return True

    def parts(self, ids: Sequence[int], prompt: Sequence[int]) -> Parts:
        return parts(self, ids, split(ids))

    def conversation(self, users: Sequence[str], replies: Sequence[Parts], condition: Condition) -> list[Message]:
        """History has whole replies, as it has where nobody knows of parts."""
        return messages(users, [reply.whole for reply in replies], condition)

    def _misplaced(self, *given: object) -> None:
        """Nothing is: whole replies are in no part's place."""


class ForgettingChat(ThinkingChat):
    """The same, with reasoning left out of history, so that every reply is encoded twice."""

    def extend(self, said: Conversation, reply: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        prompt, canonical = super().extend(said, reply)
        answer = next((s for s in split(reply) if s.kind is SegmentKind.ANSWER), None)
        kept = tuple(reply) if not split(reply) else tuple(reply[answer.start :]) if answer is not None else ()
        whole = (*said.ids, *reply)
        return ((*said.ids, *kept, *prompt[len(whole) :]), canonical) if tuple(prompt[: len(whole)]) == whole else (prompt, canonical)


def thinking(jobs: list[Job], kind: type[ThinkingChat] = ThinkingChat) -> list[Job]:
    """The same jobs, not yet begun, with a chat format that has segments."""
    return [replace(job, conversation=_with(talk_of(job), kind(talk_of(job).chat.tokenizer))) for job in jobs]


def _with(talk: Conversation, chat: Chat) -> Conversation:
    return begin(chat, talk.user, talk.condition, talk.end_ids)


def think(patch: pytest.MonkeyPatch, segments: Callable[[Sequence[int]], tuple[Segment, ...]] = split) -> None:
    """Every model's own template has segments from now on."""
    patch.setattr(TemplateChat, "segmented", property(lambda chat: True))
    patch.setattr(TemplateChat, "parts", lambda chat, ids, prompt: parts(chat, ids, segments(ids)))


def think_no_more(patch: pytest.MonkeyPatch) -> None:
    """No model's template has segments from now on: an earlier drift, or one that does not know them."""
    patch.setattr(TemplateChat, "segmented", property(lambda chat: False))
    patch.setattr(TemplateChat, "parts", lambda chat, ids, prompt: parts(chat, ids, ()))


def means_of(reply: Reply) -> dict[Part, NDArray[Any]]:
    """Every mean that a reply has."""
    return ({} if reply.residual is None else {Part.ANSWER: reply.residual}) | dict(reply.means)


def direct(model: LoadedModel, reply: Reply) -> dict[Part, NDArray[Any]]:
    """The same from one plain forward, averaged in float64; a reply without segments is all answer."""
    content = [token for token in reply.ids if token not in model.card.end_ids]
    with torch.inference_mode():
        states = model.network(
            input_ids=torch.tensor([[*reply.prompt, *reply.ids]], device=model.device), output_hidden_states=True
        ).hidden_states
    found = {part: spans(split(content), part) for part in Part} if split(content) else {Part.ANSWER: ((0, len(content)),)}
    if split(content):
        found[Part.ALL] = ((0, len(content)),)  # with the markup
    wanted = {part: [len(reply.prompt) + place for span in ranges for place in range(*span)] for part, ranges in found.items()}
    return {
        part: np.stack([state[0, places].cpu().numpy().astype(np.float64).mean(0) for state in states])
        for part, places in wanted.items()
        if places
    }


def check_means(model: LoadedModel, replies: Mapping[Any, Reply], tolerance: float) -> Counter[str]:
    """Compare every reply's means with a plain forward's; how many replies there are of each kind."""
    kinds: Counter[str] = Counter()
    for reply in replies.values():
        found, expected = means_of(reply), direct(model, reply)
        assert set(found) == set(expected)
        for part, mean in expected.items():
            error = np.linalg.norm(found[part] - mean, axis=1) / np.linalg.norm(mean, axis=1)
            assert error.max() < tolerance, part
        said = Part.ANSWER in found, Part.REASONING in found
        kinds[
            "plain" if not reply.segments else {(True, True): "both", (False, True): "no answer", (True, False): "answer"}.get(said, "")
        ] += 1
    return kinds
