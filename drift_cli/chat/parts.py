"""A reply's parts: where its reasoning and its answer are, found by the markup that its chat format puts around them.

In: a reply's ids as they were sampled, its text with all control tokens spelled out, and the markup. Out: segments, ranges of those ids, and the texts of
the parts. What is looked for is the markup's text, since some formats write it in ordinary tokens; a token that holds a piece of markup belongs to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from drift_cli.segments import Segment, SegmentKind

Decode = Callable[[Sequence[int]], str]
"""Token ids → their text, control tokens spelled out."""

THINKING = re.compile(r"(?:think|thought|reason)", re.IGNORECASE)
"""Words that a tag of reasoning has in its name, or behind it."""
ANSWER = re.compile(r"answer|response", re.IGNORECASE)
_MARK = "\ufffd"
"""What an unfinished character decodes to."""


@dataclass(frozen=True)
class Parts:
    """What a reply consists of."""

    answer: str
    reasoning: str | None = None
    """None where the reply has no markup of reasoning at all."""
    segments: tuple[Segment, ...] = ()
    """() where the reply is all answer. Where there is markup but no token in any part, one empty segment of the answer."""
    pieces: tuple[tuple[SegmentKind, str], ...] = ()
    """The texts of the segments; () where the reply is all answer."""
    whole: str = ""
    """The text as it was said, markup included."""
    opened: bool = False
    """The prompt had begun the reasoning already."""
    closed: bool = True
    """The reasoning, if any, was brought to its end."""


@dataclass(frozen=True)
class Stretch:
    """Characters `start` to before `stop` of a reply's text: one part, and any space around it, from one piece of markup to the next."""

    kind: SegmentKind
    start: int
    stop: int


class Marks(Protocol):
    """How a chat format tells a reply's parts apart."""

    def lead(self, prompt: str) -> str:
        """The end of a prompt's text that belongs to the reply's markup already, "" where the reply begins afresh."""

    def stretches(self, text: str, lead: str) -> tuple[Stretch, ...]:
        """The parts of a reply's text, in order; () where it has no markup. `lead` stands before the text."""


@dataclass(frozen=True)
class Brackets:
    """Reasoning stands between two tags, and what is not reasoning is the answer: `<think>`, `</think>`."""

    opens: str
    """"" where reasoning begins with the reply."""
    closes: str
    solid: bool
    """Both are tokens of their own, which no reply spells by chance."""
    behind: str = ""
    """What a generation prompt that opens the reasoning writes behind the opening tag."""

    def lead(self, prompt: str) -> str:
        """The opening tag, where the prompt ends with it."""
        for opening in (self.opens + self.behind, self.opens):
            if opening.strip() and prompt.rstrip().endswith(opening.rstrip()):
                return opening
        return ""

    def stretches(self, text: str, lead: str) -> tuple[Stretch, ...]:
        """A tag that closes what nobody opened closes what stands before it. Tags in ordinary tokens open a part only at the reply's beginning."""
        begins = len(text) - len(text.lstrip())
        repeated = bool(self.opens) and text.startswith(self.opens, begins)
        close = text.find(self.closes)
        unopened = close >= 0 and not (self.opens and self.opens in text[:close])
        if not (lead or not self.opens or repeated or unopened or (self.solid and self.opens in text)):
            return ()
        inside = bool(lead) or not self.opens or repeated or unopened
        return tuple(self._walk(text, begins + len(self.opens) if repeated else 0, inside))

    def _walk(self, text: str, start: int, inside: bool) -> Iterator[Stretch]:
        while True:
            if inside and self.opens and not THINKING.search(self.opens):
                label = re.compile(rf"{THINKING.pattern}\w*\s*\n", re.IGNORECASE).match(text, start)
                start = label.end() if label else start
            tag = self.closes if inside else self.opens if self.solid else ""
            stop = text.find(tag, start) if tag else -1
            yield Stretch(SegmentKind.REASONING if inside else SegmentKind.ANSWER, start, len(text) if stop < 0 else stop)
            if stop < 0:
                return
            start, inside = stop + len(tag), not inside


@dataclass(frozen=True)
class Channels:
    """A reply is a row of messages, each with a header that says what it is: `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final…`."""

    body: str
    """The token behind a header."""
    reasoning: str
    """The header of reasoning, without space around it."""
    answer: str
    """The header of an answer. What has another header is said to the user too, unless its header names who is meant (`to=`)."""
    role: str
    """What the prompt ends with, and what stands before the header of each later message."""
    stops: tuple[str, ...]
    """Tokens that end a message's body."""

    def lead(self, prompt: str) -> str:
        """A header that the prompt began, or a message's body."""
        start = prompt.rfind(self.role)
        return prompt[start + len(self.role) :] if start >= 0 else ""

    def stretches(self, text: str, lead: str) -> tuple[Stretch, ...]:
        """The bodies of all messages."""
        said = lead + text
        ends = re.compile("|".join(map(re.escape, self.stops)))
        found, at = [], 0
        for body in re.finditer(re.escape(self.body), said):
            end = ends.search(said, body.end())
            stop = len(said) if end is None else end.start()
            kind = self._kind(said[at : body.start()])
            if kind is not None:
                found.append(Stretch(kind, max(0, body.end() - len(lead)), stop - len(lead)))
            at = stop
        if not found and (lead.strip() or self._has_header(text)):
            return (Stretch(SegmentKind.ANSWER, len(text), len(text)),)
        return tuple(found)

    def _kind(self, header: str) -> SegmentKind | None:
        if self.answer in header:
            return SegmentKind.ANSWER
        if self.reasoning in header:
            return SegmentKind.REASONING
        return None if "to=" in header else SegmentKind.ANSWER

    def _has_header(self, text: str) -> bool:
        """Whether the reply has begun a header, or has only messages that are for somebody else."""
        return self.body in text or any(text.lstrip().startswith(header[:4]) for header in (self.reasoning, self.answer))


def parts_of(
    ids: Sequence[int], plain: str, decode: Decode, marks: Marks, prompt: str, tags: Sequence[str], strays: Sequence[str]
) -> Parts:
    """The parts of a reply.

    Args:
        ids: the reply's, without its end-of-turn token.
        plain: its text without control tokens.
        decode: see `Decode`.
        marks: the format's markup.
        prompt: the text of the prompt's end, control tokens spelled out.
        tags: control tokens and tags that are markup too where they stand at an end of a part.
        strays: control tokens that are left out of the texts.
    """
    text, lead = decode(ids), marks.lead(prompt)
    found = marks.stretches(text, lead)
    if not found and ANSWER.search(_first_tag(text, tags)):
        found = (Stretch(SegmentKind.ANSWER, 0, len(text)),)
    if not found:
        return Parts(plain, whole=plain)
    kept = [(whole, _trimmed(text, whole, tags)) for whole in found]
    pieces = tuple((it.kind, _without(strays, text[it.start : it.stop])) for _, it in kept if it.stop > it.start)
    reasons = any(stretch.kind is SegmentKind.REASONING for stretch in found)
    return Parts(
        answer="\n\n".join(said for kind, said in pieces if kind is SegmentKind.ANSWER),
        reasoning="\n\n".join(said for kind, said in pieces if kind is SegmentKind.REASONING) if reasons else None,
        pieces=pieces,
        segments=tuple(_segments(ids, kept, decode)) or (Segment(SegmentKind.ANSWER, len(ids), len(ids)),),
        whole=_without(strays, text),
        opened=bool(lead),
        closed=found[-1].kind is SegmentKind.ANSWER or found[-1].stop < len(text),
    )


def _without(strays: Sequence[str], text: str) -> str:
    for token in strays:
        text = text.replace(token, "")
    return text


def _first_tag(text: str, tags: Sequence[str]) -> str:
    return next((tag for tag in tags if text.lstrip().startswith(tag)), "")


def _trimmed(text: str, stretch: Stretch, tags: Sequence[str]) -> Stretch:
    """A stretch without the space and the tags next to markup. Space at the reply's own end is the answer's, as in replies without markup."""
    start, stop = stretch.start, stretch.stop
    inner = start > 0 or stretch.kind is SegmentKind.REASONING or bool(_first_tag(text, tags))
    while inner:
        start += len(text[start:stop]) - len(text[start:stop].lstrip())
        tag = next((tag for tag in tags if text.startswith(tag, start) and start + len(tag) <= stop), "")
        start, inner = start + len(tag), bool(tag)
    inner, end = True, stop
    while inner:
        end = start + len(text[start:end].rstrip())
        tag = next((tag for tag in tags if text.endswith(tag, start, end)), "")
        end, inner = end - len(tag), bool(tag)
    at_end = stop == len(text) and not text[end:stop].strip() and stretch.kind is SegmentKind.ANSWER
    return Stretch(stretch.kind, start, stop if at_end else end)


def _segments(ids: Sequence[int], kept: Sequence[tuple[Stretch, Stretch]], decode: Decode) -> Iterator[Segment]:
    """Token ranges: no token that holds a piece of markup, none that is only the space next to it.

    An unfinished character decodes to one or more marks, which are counted where a part begins (its first bytes are its own) and not where it ends.
    """

    def reached(tokens: int) -> int:
        return len(decode(ids[:tokens]))

    def finished(tokens: int) -> int:
        return len(decode(ids[:tokens]).rstrip(_MARK))

    for whole, it in kept:
        if it.stop > it.start:
            start = max(_least(reached, len(ids), whole.start), _most(reached, len(ids), it.start))
            stop = min(_most(finished, len(ids), whole.stop), _least(finished, len(ids), it.stop))
            if stop > start:
                yield Segment(whole.kind, start, stop)


def _least(length: Callable[[int], int], count: int, place: int) -> int:
    """The fewest tokens whose text reaches up to a character."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if length(middle) >= place else (middle + 1, high)
    return low


def _most(length: Callable[[int], int], count: int, place: int) -> int:
    """The most tokens whose text does not go beyond a character."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(middle) <= place else (low, middle - 1)
    return low
