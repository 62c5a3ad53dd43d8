"""Whether every text of a conversation stands in its place in what a chat template made of it: in order, as often as it was given, none of it lost.

Searching for the texts alone would not do, as "yes" is found in many places. So the same conversation is rendered with a unique word, a *marker*, in place of
each text. That rendering shows where the template puts what, and what it writes around it. The real rendering must be the same with the texts for the markers.
Space around a text may be trimmed; reasoning of earlier replies may be left out. Where a template looks into texts and writes something else around them
on their account, the texts are looked for one after the other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from drift_cli.chat.parts import Parts
from drift_cli.segments import SegmentKind
from drift_cli.spec import Condition, Placement

PROMPT = "the prompt"
_MARKER = re.compile(r"zq[a-z]+[0-9]{4}qz")


@dataclass(frozen=True)
class Passage:
    """A text of a conversation."""

    what: str
    """In words: `user turn 2`."""
    text: str
    optional: bool = False
    """May be left out: reasoning."""


def marker(kind: str, number: int) -> str:
    """A word that no conversation has."""
    return f"zq{kind}{number:04d}qz"


def passages(users: Sequence[str], replies: Sequence[Parts], condition: Condition) -> list[Passage]:
    """The texts of a conversation in their order, those without a visible character left out."""
    prompt = [] if condition.system is None else [Passage(PROMPT, condition.system)]
    placed = condition.placement
    made = [*prompt] if placed is Placement.START else []
    for turn, user in enumerate(users, 1):
        made += prompt if placed is Placement.FIRST_USER and turn == 1 else []
        made.append(Passage(f"user turn {turn}", user))
        made += prompt if placed in (Placement.EVERY_TURN, Placement.USER_SUFFIX) else []
        if turn <= len(replies):
            made += _reply(replies[turn - 1], turn)
    return [passage for passage in made if passage.text.strip()]


def _reply(reply: Parts, turn: int) -> list[Passage]:
    pieces = reply.pieces or ((SegmentKind.REASONING, reply.reasoning or ""), (SegmentKind.ANSWER, reply.answer))
    named = {SegmentKind.REASONING: f"the reasoning of reply {turn}", SegmentKind.ANSWER: f"reply {turn}"}
    return [Passage(named[kind], text, optional=kind is SegmentKind.REASONING) for kind, text in pieces]


def misplaced(rendered: str, expected: Sequence[Passage]) -> str | None:
    """What is wrong with the rendering of a conversation of markers; None where all of it is in its place."""
    found = _MARKER.findall(rendered)
    counts, given = Counter(found), Counter(passage.text for passage in expected)
    for passage in expected:
        there, wanted = counts[passage.text], given[passage.text]
        if there == wanted or (passage.optional and not there):
            continue
        if passage.what == PROMPT:
            return _miscounted(there, wanted)
        if there > wanted:
            return f"it writes {passage.what} {there} times"
        return f"it {'changes' if passage.text in rendered.casefold() else 'drops'} {passage.what}"
    kept = [passage for passage in expected if counts[passage.text]]
    for passage, word in zip(kept, found, strict=True):
        if passage.text != word:
            moved = next(other for other in kept if other.text == word)
            return f"it moves {moved.what if moved.what == PROMPT else passage.what} to another place"
    return None


def _miscounted(there: int, wanted: int) -> str:
    return f"it writes the prompt {there} times where {wanted} {'was' if wanted == 1 else 'were'} given"


def fits(rendered: str, marked: str, expected: Sequence[Passage], marks: Sequence[Passage]) -> bool:
    """Whether a rendering is that of the markers with the texts put in, but for space at their ends."""
    if [passage.what for passage in expected] != [mark.what for mark in marks]:
        return False
    texts = {mark.text: passage.text for mark, passage in zip(marks, expected, strict=True)}
    place = 0
    for piece in re.split(f"({_MARKER.pattern})", marked):
        core = texts.get(piece, piece).strip()
        start = place + len(rendered[place:]) - len(rendered[place:].lstrip()) if core else place
        if not rendered.startswith(core, start):
            return False
        place = start + len(core)
    return not rendered[place:].strip()


def lost(rendered: str, expected: Sequence[Passage], around: str) -> str | None:
    """What of a conversation is not found in a rendering, each text behind the one before it and each as often as there are texts that hold it. `around` is
    what the template writes of its own.
    """
    place = 0
    required = [passage for passage in expected if not passage.optional]
    for passage in required:
        text = passage.text.strip()
        found, there = rendered.find(text, place), rendered.count(text)
        if found < 0 and there:
            return "it changes the order of the texts"
        if there < sum(other.text.count(text) for other in required):
            return f"it drops or changes {passage.what}"
        wanted = sum(text == other.text.strip() if other.what == PROMPT else other.text.count(text) for other in expected)
        if passage.what == PROMPT and there > wanted + around.count(text):
            return _miscounted(there, wanted)
        place = found + len(text)
    return None


def own_text(marked: str) -> str:
    """What a template writes around the texts."""
    return _MARKER.sub(" ", marked)
