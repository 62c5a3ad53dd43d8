"""Replies that may not be answers: text and finish reason in, flags out. No files.

A flagged reply is counted and marked, never dropped. The rules, each on one reply:

- *empty*: nothing visible (only white space, control or zero-width characters).
- *repeated*: at least half of the reply's 4-grams of words occurred earlier in it (seq-rep-4 of Welleck et al. 2020, arXiv:1908.04319). Ordinary
  replies stay under .1, a loop that fills most of a reply lies above .5. A reply of fewer than 16 words is judged by its characters instead, from 40 on.
- *reciting*: a run of at least 8 words of the system prompt, verbatim but for case and punctuation, stands in the reply (a prompt of 4 to 7 words:
  all of it; shorter prompts are ordinary phrases and never flagged). Ordinary replies share up to 3 words in a row with their prompt.
- *length*: the reply was cut off at the number of new tokens allowed.
- *context*: no reply was made, as the prompt no longer fitted; the flag stands on that first missing turn.
- *template*: no reply was made, as the chat template failed on the conversation or did not render it as it was; on that first missing turn too.

Of replies that have reasoning apart from their answer (the rules above then look at the part that is measured):

- *no_answer*: there is no answer at all: the limit was reached, or the model stopped, while it was still reasoning.
- *reasoning_cut*: the limit on new tokens cut the reasoning off.

In scripts that put no spaces between words a character counts as half a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from drift_cli.segments import SegmentKind
from drift_cli.spec import Finish, Turn

RECITED_WORDS = 8
SHORTEST_PROMPT = 4
"""Words. A shorter system prompt can stand in any reply by chance."""
NGRAM = 4
REPEATED_SHARE = 0.5
LEAST_WORDS = 16
LEAST_CHARACTERS = 40

# Scripts written without spaces: Thai to Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_BETWEEN_WORDS = re.compile(r"[-\u2010-\u2015\u2212/\u2026]")
_NOT_WORD = re.compile(r"[^\w\s]|_")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")

BoolArray = NDArray[np.bool_]


class Flag(StrEnum):
    """Why a reply is flagged; the names are the fields of `Flags` and `FlagCounts`."""

    EMPTY = "empty"
    REPEATED = "repeated"
    RECITING = "reciting"
    LENGTH = "length"
    CONTEXT = "context"
    TEMPLATE = "template"
    NO_ANSWER = "no_answer"
    REASONING_CUT = "reasoning_cut"


@dataclass(frozen=True)
class FlagCounts:
    """Number of flagged replies per kind (`context` and `template`: of rollouts that ended before a turn for that reason)."""

    empty: int
    repeated: int
    reciting: int
    length: int
    context: int
    template: int
    suspect: int
    """Replies with any of empty, repeated, reciting, context or template."""


@dataclass(frozen=True)
class SegmentFlagCounts(FlagCounts):
    """The same of a run whose replies may have segments."""

    no_answer: int
    reasoning_cut: int
    no_answer_share: float | None
    """Of the replies that were made; None where there is none."""
    reasoning_cut_share: float | None


@dataclass(frozen=True, eq=False)
class Flags:
    """Masks over rollouts × turns, each (R, T) bool."""

    empty: BoolArray
    repeated: BoolArray
    reciting: BoolArray
    length: BoolArray
    context: BoolArray
    template: BoolArray
    no_answer: BoolArray
    reasoning_cut: BoolArray

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Flags:
        """No reply flagged: separate all-false masks of `shape` (R, T)."""
        return cls(*(np.zeros(shape, dtype=np.bool_) for _ in fields(cls)))

    def of(self, kind: Flag) -> BoolArray:
        """The mask (R, T) of one kind."""
        mask: BoolArray = getattr(self, kind.value)
        return mask

    @property
    def suspect(self) -> BoolArray:
        """(R, T): empty, repeated, reciting, context or template. A reply that was merely long (`length`) is still an answer."""
        return self.empty | self.repeated | self.reciting | self.context | self.template

    def rows(self, index: NDArray[np.intp] | BoolArray) -> Flags:
        """The masks of the rollouts in `index` only."""
        return Flags(*(self.of(kind)[index] for kind in Flag))

    def columns(self, part: slice) -> Flags:
        """The masks of some turns only."""
        return Flags(*(self.of(kind)[:, part] for kind in Flag))

    def counts(self) -> FlagCounts:
        """How many are flagged, per kind."""
        return FlagCounts(
            **{kind.name: int(self.of(Flag(kind.name)).sum()) for kind in fields(FlagCounts) if kind.name != "suspect"},
            suspect=int(self.suspect.sum()),
        )

    def segment_counts(self, replies: int) -> SegmentFlagCounts:
        """The same of a run whose replies may have segments; `replies` were made."""
        missing, cut = int(self.no_answer.sum()), int(self.reasoning_cut.sum())
        shares = (missing / replies, cut / replies) if replies else (None, None)
        return SegmentFlagCounts(
            **asdict(self.counts()), no_answer=missing, reasoning_cut=cut, no_answer_share=shares[0], reasoning_cut_share=shares[1]
        )


@dataclass(frozen=True)
class Recital:
    """A system prompt as the set of its shortest runs of words that count as reciting it."""

    size: float
    runs: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, prompt: str) -> Recital:
        """All runs of `RECITED_WORDS` of the prompt, or the whole of a shorter one; no runs where it is too short to tell."""
        words = words_of(prompt)
        size = min(float(RECITED_WORDS), sum(map(_weight, words)))
        return cls(size, frozenset(_runs(words, size)) if size >= SHORTEST_PROMPT else frozenset())

    def stands_in(self, words: Sequence[str]) -> bool:
        """Whether the reply with these words has one of the prompt's runs."""
        return not self.runs.isdisjoint(_runs(words, self.size))


def recitals(prompts: Iterable[str | None]) -> tuple[Recital, ...]:
    """What to look for in a condition's replies: one `Recital` per prompt that is there."""
    return tuple(Recital.of(prompt) for prompt in prompts if prompt)


def flag_reply(text: str, finish: Finish, prompts: Sequence[Recital] = ()) -> frozenset[Flag]:
    """The flags of one reply, given its condition's system prompts as `recitals` made them."""
    found = set()
    if is_empty(text):
        found.add(Flag.EMPTY)
    words = words_of(text)
    if repeated_share(text, words) >= REPEATED_SHARE:
        found.add(Flag.REPEATED)
    if any(prompt.stands_in(words) for prompt in prompts):
        found.add(Flag.RECITING)
    if finish in (Finish.LENGTH, Finish.CONTEXT, Finish.TEMPLATE):
        found.add(Flag(finish.value))
    return frozenset(found)


def flag_segments(turn: Turn) -> frozenset[Flag]:
    """The flags of a reply's segments: none where it has none."""
    filled = [segment for segment in turn.segments if segment.stop > segment.start]
    found = set() if turn.answered else {Flag.NO_ANSWER}
    # A reply that was cut has no end-of-turn token: its last token is its last id.
    if turn.finish is Finish.LENGTH and filled and filled[-1].kind is SegmentKind.REASONING and filled[-1].stop == len(turn.ids or ()):
        found.add(Flag.REASONING_CUT)
    return frozenset(found)


def is_empty(text: str) -> bool:
    """Whether no character of the text can be seen."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def repeated_share(text: str, words: Sequence[str] | None = None) -> float:
    """Share of the text's 4-grams (of words; of characters in a text of few words) that occurred earlier in it; 0 for a text too short to tell."""
    units: Sequence[str] = words_of(text) if words is None else words
    if len(units) < LEAST_WORDS:
        units = "".join(text.split())
        if len(units) < LEAST_CHARACTERS:
            return 0.0
    grams = [tuple(units[i : i + NGRAM]) for i in range(len(units) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams)


def words_of(text: str) -> list[str]:
    """The text's words without case and punctuation; characters, where the script has no spaces between words."""
    plain = _BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(_NOT_WORD.sub("", plain))


def _weight(word: str) -> float:
    """A word counts 1, a character of a script without spaces half."""
    return 0.5 if _UNSPACED_CHARACTER.match(word) else 1.0


def _runs(words: Sequence[str], size: float) -> Iterable[tuple[str, ...]]:
    """From each word on, the shortest run of words that weighs `size`. It depends on these words alone, so equal passages have equal runs."""
    weights = [_weight(word) for word in words]
    end, weight = 0, 0.0
    for start in range(len(words)):
        while weight < size and end < len(words):
            weight += weights[end]
            end += 1
        if weight < size:
            return
        yield tuple(words[start:end])
        weight -= weights[start]
