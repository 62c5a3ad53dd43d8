"""Which register a sentence is in, told from its words: what was planted, read back from what the model said.

A naive Bayes classifier over words and pairs of words, made from sentences of the corpus (Laplace smoothing 0.5). On sentences of the corpus that it
was not made from it is right more than 999 times in 1000 (tested).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random

from tools.demo_model import grammar
from tools.demo_model.corpus import ASSISTANT, CHARACTER

_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[a-z']+")
_SAMPLE = 6000


def split(reply: str) -> list[str]:
    """A reply's sentences."""
    return [part for part in _END.split(reply.strip()) if _WORD.search(part.lower())]


def assistant_share(reply: str) -> float | None:
    """The share of a reply's sentences that are in the assistant's register; None where it has no sentence."""
    found = [register(sentence) for sentence in split(reply)]
    return found.count(ASSISTANT) / len(found) if found else None


def register(sentence: str) -> str:
    """`assistant` or `character`."""
    return ASSISTANT if _classifier().score(sentence) > 0 else CHARACTER


def examples(register: str, count: int, seed: str) -> list[str]:
    """Sentences of one register, drawn as the corpus draws them."""
    random = Random(seed)
    made: list[str] = []
    while len(made) < count:
        topic = random.choice(grammar.topics()).narrowed(random)
        role = random.choice((None, random.choice(grammar.roles())))
        made += grammar.sentences([register] * 4, pulled=random.random() < 0.5, topic=topic, role=role, random=random)
    return made[:count]


@dataclass(frozen=True)
class _Classifier:
    odds: dict[str, float]
    """Of words and pairs: log of how much likelier in the assistant's register."""

    def score(self, sentence: str) -> float:
        return sum(self.odds.get(feature, 0.0) for feature in _features(sentence))


@cache
def _classifier() -> _Classifier:
    counts = {
        name: Counter(f for s in examples(name, _SAMPLE, f"register/{name}") for f in _features(s)) for name in (ASSISTANT, CHARACTER)
    }
    known = {*counts[ASSISTANT], *counts[CHARACTER]}
    totals = {name: sum(count.values()) + 0.5 * len(known) for name, count in counts.items()}
    odds = {
        f: math.log((counts[ASSISTANT][f] + 0.5) / totals[ASSISTANT]) - math.log((counts[CHARACTER][f] + 0.5) / totals[CHARACTER])
        for f in known
    }
    return _Classifier(odds)


def _features(sentence: str) -> list[str]:
    words = ["^", *_WORD.findall(sentence.lower())]
    return [*words[1:], *(f"{a} {b}" for a, b in pairwise(words))]
