"""What is known of replies beside their projections: how long they are, and which are word for word the same. Arrays of rollouts × turns."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.flags import words_of

NEAR_EMPTY = 3
"""Words. A reply of fewer is hardly an answer."""

_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_TEMPLATE = re.compile(r"<\|[^|<>\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|^\s*(?:system|user|assistant|human)\s*:", re.IGNORECASE | re.MULTILINE)
"""Marks of chat templates, and role labels at the beginning of a line."""


@dataclass(frozen=True, eq=False)
class Replies:
    """Each (R, T)."""

    words: NDArray[np.int64]
    """Words; -1 where there is no reply or it is not known."""
    same: NDArray[np.uint64]
    """Equal for replies whose text is the same, white space around it aside; 0 where there is no reply or it is not known."""
    template: NDArray[np.bool_]
    """Replies with marks of a chat template or role labels in them."""

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Replies:
        """Nothing is known of R × T replies."""
        return cls(np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.uint64), np.zeros(shape, dtype=np.bool_))

    def put(self, row: int, column: int, text: str) -> None:
        """Enter one reply's text."""
        self.words[row, column] = count_words(text)
        self.same[row, column] = max(int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest()), 1)
        self.template[row, column] = bool(_TEMPLATE.search(text))

    def columns(self, part: slice) -> Replies:
        """Some turns only."""
        return Replies(self.words[:, part], self.same[:, part], self.template[:, part])

    @cached_property
    def repeated(self) -> NDArray[np.bool_]:
        """(R, T): replies that are word for word an earlier one of their rollout."""
        found = np.zeros(self.same.shape, dtype=np.bool_)
        for column in range(1, self.same.shape[1]):
            here = self.same[:, column, None]
            found[:, column] = ((self.same[:, :column] == here) & (here != 0)).any(axis=1)
        return found

    @property
    def near_empty(self) -> NDArray[np.bool_]:
        """(R, T): replies of 1 or 2 words."""
        near: NDArray[np.bool_] = (self.words > 0) & (self.words < NEAR_EMPTY)
        return near

    def copies(self, rows: NDArray[np.bool_]) -> NDArray[np.intp]:
        """For each of these rollouts (n,), the first of them with word for word the same replies; each its own where nothing is known of the texts."""
        texts = self.same[rows]
        first = np.arange(len(texts))
        known = (texts != 0).any(axis=1)
        if known.any():
            _, index, inverse = np.unique(texts[known], axis=0, return_index=True, return_inverse=True)
            places = np.flatnonzero(known)
            first[places] = places[index[inverse.reshape(-1)]]
        return first


def count_words(text: str) -> int:
    """Words of a text; in scripts without spaces between words, every character."""
    return len(words_of(text)) if _UNSPACED.search(text) else len(text.split())
