"""How a chat template has reasoning written and given back, found out by rendering conversations with unique texts in them. No model's name is looked at.

Two questions are answered. *Which markup is around reasoning?* Where the template takes reasoning in a field of its own, it writes the markup itself, and
what stands around the text that was put in is read off. Where it does not, pairs of tags whose names speak of thinking are looked for, in the template's
text and among the tokenizer's added tokens. *How is a reply with reasoning put into the conversation?* In the template's field; else as a part of the
content, where the template either takes it out again or writes the content as it is; else not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift_cli.chat.parts import ANSWER, THINKING, Brackets, Channels, Marks, Parts

Render = Callable[[Sequence[Mapping[str, Any]], bool], str | None]
"""A conversation, and whether up to where the next reply begins → the template's rendering; None where it fails."""

FIELDS = ("reasoning_content", "thinking", "reasoning", "thought")
"""Names under which templates take an assistant message's reasoning."""

_USER, _REPLY, _THOUGHT, _NEXT = "drift probe one", "drift probe reply", "drift probe thought", "drift probe two"
_TAG = r"<[^<>\s'\"]{1,60}>|\[/?[A-Z][A-Z _]{2,40}\]"
_NAMED = re.compile(rf"({_TAG})((?:think|thought|reason)\w*)", re.IGNORECASE)


@dataclass(frozen=True)
class Reasoning:
    """A template's markup of reasoning, and how a reply that has it stands in the messages."""

    marks: Marks
    field: str | None = None
    """The message's field that takes the reasoning."""
    embedded: bool = False
    """Reasoning stands in the content, with its markup."""
    dropped: bool = False
    """The template takes reasoning out of the content of earlier replies."""
    opening: str = ""
    """What the generation prompt writes before a reply and the history does not, where it opens the reasoning."""

    def message(self, parts: Parts) -> dict[str, str]:
        """An assistant message."""
        if parts.reasoning is None:
            return {"role": "assistant", "content": parts.answer}
        if self.field is not None:
            return {"role": "assistant", "content": parts.answer, self.field: parts.reasoning}
        return {"role": "assistant", "content": self._content(parts) if self.embedded else parts.answer}

    def _content(self, parts: Parts) -> str:
        """As it was said, with what the prompt had begun; what is left open is closed where the template looks for the closing tag."""
        text = (self.opening if parts.opened else "") + parts.whole
        return text + self.marks.closes if self.dropped and not parts.closed and isinstance(self.marks, Brackets) else text

    def stand_in(self, answer: str, reasoning: str | None, *, opened: bool, closed: bool) -> Parts:
        """A reply with these parts, as a model would write it."""
        if reasoning is None or not isinstance(self.marks, Brackets):
            return Parts(answer, reasoning, whole=answer, opened=opened, closed=closed)
        said = f"{reasoning}\n{self.marks.closes}\n\n{answer}" if closed else reasoning
        return Parts(answer, reasoning, whole=said if opened else f"{self.marks.opens}\n{said}", opened=opened, closed=closed)


@dataclass(frozen=True)
class _Probe:
    """Renderings of a short conversation without reasoning."""

    prompt: str
    """Behind the user's text, up to where the reply begins."""
    history: str
    """From behind the user's text up to the reply's, where the reply is the last message."""


def find_reasoning(render: Render, template: str, added: Sequence[str]) -> Reasoning | None:
    """A template's markup of reasoning, None where it has none. `template` is its text, `added` the tokenizer's added tokens."""
    user, reply = {"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}
    prompt, plain = render([user], True), render([user, reply], False)
    if prompt is None or plain is None or _USER not in prompt or not _stand(plain, _USER, _REPLY):
        return None
    probe = _Probe(_behind(prompt, _USER), _between(plain, _USER, _REPLY))
    for field in FIELDS:
        text = render([user, {**reply, field: _THOUGHT}], False)
        if text is not None and _stand(text, _USER, _THOUGHT, _REPLY):
            marks = _marks(_between(text, _USER, _THOUGHT), _between(text, _THOUGHT, _REPLY), probe, added)
            if marks is not None:
                return Reasoning(marks, field=field, opening=_opening(marks, probe))
    return next(_embedded(render, template, added, probe), None)


def answer_tags(template: str, special: Sequence[str]) -> tuple[str, ...]:
    """Tags that may stand around an answer: the template's special tokens, and those whose names speak of an answer."""
    tags = (tag for tag in re.findall(_TAG, template) if ANSWER.search(tag))
    return tuple(dict.fromkeys([*(token for token in special if token in template), *tags]))


def _marks(before: str, behind: str, probe: _Probe, added: Sequence[str]) -> Marks | None:
    """The markup from what a template wrote before reasoning and between it and the answer."""
    opens, closes = re.search(rf"(({_TAG})(?:\w+)?)\s*$", before), re.match(rf"\s*({_TAG})", behind)
    if opens and closes and _pair(opens[2], closes[1]):
        return _brackets(opens[1], closes[1], probe, added)
    head = before[len(probe.prompt) :] if before.startswith(probe.prompt) else before if not probe.prompt.startswith(before) else ""
    if (channels := _channels(head, behind, probe)) is not None:
        return channels
    if not head.strip() and re.fullmatch(rf"\s*(?:{_TAG})\s*", behind):
        return _brackets("", behind.strip(), probe, added)
    return None


def _channels(head: str, behind: str, probe: _Probe) -> Channels | None:
    """Messages with headers: what stands before reasoning, and what stands before the answer, ends with the same token."""
    header, later = re.fullmatch(rf"(.*)({_TAG})\s*", head, re.DOTALL), re.fullmatch(rf"(.*)({_TAG})\s*", behind, re.DOTALL)
    role = re.search(rf"(?:{_TAG})[^<>]*$", probe.prompt)
    if header is None or later is None or header[2] != later[2] or role is None or role[0] not in later[1]:
        return None
    reasoning, answer = header[1].strip(), later[1].rpartition(role[0])[2].strip()
    stops = tuple(tag for tag in dict.fromkeys(re.findall(_TAG, later[1])) if tag != header[2])
    return Channels(header[2], reasoning, answer, role[0], stops) if reasoning and reasoning != answer else None


def _brackets(opens: str, closes: str, probe: _Probe, added: Sequence[str]) -> Brackets:
    at = probe.prompt.rfind(opens) if opens else -1
    tail = probe.prompt[at + len(opens) :] if at >= 0 else ""
    tag = re.match(_TAG, opens)
    return Brackets(opens, closes, tag is not None and tag[0] in added and closes in added, "" if closes in tail else tail)


def _opening(marks: Marks, probe: _Probe) -> str:
    if not isinstance(marks, Brackets) or not marks.lead(probe.prompt):
        return ""
    return probe.prompt[len(probe.history) :] if probe.prompt.startswith(probe.history) else marks.opens + marks.behind


def _embedded(render: Render, template: str, added: Sequence[str], probe: _Probe) -> Iterator[Reasoning]:
    """Markup that a template has no field for, in the order in which its text and then the tokenizer's vocabulary name it."""
    for opens, closes in _pairs(template, added, probe.prompt):
        marks = _brackets(opens, closes, probe, added)
        content = f"{opens}\n{_THOUGHT}\n{closes}\n\n{_REPLY}"
        messages = [("user", _USER), ("assistant", content), ("user", _NEXT)]
        text = render([{"role": role, "content": said} for role, said in messages], True)
        # Markup of the template's own before an answer (an empty thought, a token that begins a response) leaves no room for reasoning in the content.
        led = probe.history.startswith(probe.prompt) and bool(probe.history[len(probe.prompt) :].strip())
        led = led or any(ANSWER.search(tag) for tag in re.findall(_TAG, probe.prompt))
        stands = text is not None and _stand(text, _USER, _REPLY, _NEXT)
        dropped = stands and _THOUGHT not in (text or "")
        if dropped or THINKING.search(opens):
            yield Reasoning(marks, embedded=stands and (dropped or not led), dropped=dropped, opening=_opening(marks, probe))


def _pairs(template: str, added: Sequence[str], prompt: str) -> Iterator[tuple[str, str]]:
    """Pairs of tags that speak of thinking: both named by the template, or both added to the vocabulary, or the first one written in the prompt. At last any
    pairs that the template names: they are markup of reasoning if it drops what stands between them.
    """
    tags = list(dict.fromkeys([*re.findall(_TAG, template), *(token for token in added if re.fullmatch(_TAG, token))]))
    named = [(tag, tag + word) for tag, word in _NAMED.findall(template) if not _closing(tag)]
    for tag, opens in [*named, *((tag, tag) for tag in tags if THINKING.search(tag) and not _closing(tag))]:
        closes = next((other for other in tags if _pair(tag, other)), None)
        if closes is not None:
            yield opens, closes
        elif prompt.rstrip().endswith(opens):
            yield opens, f"{opens[0]}/{opens[1:]}"
    for tag in tags:
        if tag in template and tag[1] == "/" and THINKING.search(tag):
            yield tag[0] + tag[2:], tag
    named_tags = [tag for tag in tags if tag in template]
    yield from ((tag, other) for tag in named_tags for other in named_tags if _pair(tag, other) and not THINKING.search(tag))


def _pair(opens: str, closes: str) -> bool:
    """Whether the second tag closes what the first one opens, by their spelling."""
    return not _closing(opens) and _closing(closes) and _name(opens) == _name(closes) != ""


def _closing(tag: str) -> bool:
    letters = "".join(letter for letter in tag.lower() if letter.isalpha())
    return "/" in tag[:3] or letters.startswith("end") or letters.endswith("end") or bool(re.fullmatch(r"<[^|<>]+\|>", tag))


def _name(tag: str) -> str:
    name = "".join(letter for letter in tag.lower() if letter.isalpha())
    for word in ("beginof", "startof", "endof", "begin", "start", "end"):
        name = name.removeprefix(word).removesuffix(word)
    return name


def _stand(text: str, *parts: str) -> bool:
    """Whether every part stands in the text once, in this order."""
    places = [text.find(part) for part in parts]
    return all(text.count(part) == 1 for part in parts) and places == sorted(places)


def _behind(text: str, part: str) -> str:
    return text[text.index(part) + len(part) :]


def _between(text: str, first: str, second: str) -> str:
    return _behind(text, first)[: _behind(text, first).index(second)]
