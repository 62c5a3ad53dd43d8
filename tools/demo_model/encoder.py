"""The built-in model's vocabulary, and conversations as token ids to train on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drift_cli.demo_model.shape import ASSISTANT, END, SPECIALS, SYSTEM, USER
from tools.demo_model.corpus import CHARACTER, Conversation, Turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_OPENING = 3.0
"""How much more than others the first two tokens of a sentence count in training: they decide its register."""


def make(texts: list[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of at most so many tokens, made from texts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


@dataclass(frozen=True)
class Piece:
    """A message in token ids: its role's token, its content, and the end token."""

    ids: list[int]
    weights: list[float]
    """(len(ids),): how much each token counts as something to be predicted; 0 for all that the model only reads."""
    sides: list[int]
    """(len(ids),): 1 in a sentence of the assistant's register, -1 in one of the character's, 0 elsewhere."""


class Row(NamedTuple):
    """A conversation, or several, (…, length) each: ids int16, weights float16 and sides int8 as in `Piece`, zeros where it is over."""

    ids: NDArray[np.int16]
    weights: NDArray[np.float16]
    sides: NDArray[np.int8]


class Encoder:
    """Conversations to token ids, as the chat template would give them."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner
        self._known: dict[str, list[int]] = {}
        self._roles = {role: place for place, role in enumerate(SPECIALS)}

    def pieces(self, conversation: Conversation) -> list[Piece]:
        """One for each message."""
        made = [] if conversation.system is None else [self._read(SYSTEM, conversation.system)]
        for turn in conversation.turns:
            made.append(self._read(USER, turn.user))
            if turn.system is not None:
                made.append(self._read(SYSTEM, turn.system))
            made.append(self._reply(turn))
        return made

    def size(self, conversation: Conversation) -> int:
        """Tokens of a conversation."""
        return sum(len(piece.ids) for piece in self.pieces(conversation))

    def row(self, conversation: Conversation, length: int) -> Row:
        """A conversation cut to so many tokens, or filled up at the end."""
        pieces = self.pieces(conversation)
        row = Row(np.zeros(length, dtype=np.int16), np.zeros(length, dtype=np.float16), np.zeros(length, dtype=np.int8))
        _fill(row.ids, (piece.ids for piece in pieces))
        _fill(row.weights, (piece.weights for piece in pieces))
        _fill(row.sides, (piece.sides for piece in pieces))
        return row

    def _read(self, role: str, text: str) -> Piece:
        ids = [self._roles[role], *self._encode(text), self._roles[END]]
        return Piece(ids, [0.0] * len(ids), [0] * len(ids))

    def _reply(self, turn: Turn) -> Piece:
        """Encoded sentence by sentence: byte-level BPE splits before a space, so this is what the whole text gives."""
        ids, weights, sides = [self._roles[ASSISTANT]], [0.0], [0]
        for place, (sentence, register) in enumerate(zip(turn.sentences, turn.registers, strict=True)):
            found = self._encode(sentence if place == 0 else " " + sentence)
            ids += found
            weights += [_OPENING] * len(found[:2]) + [1.0] * len(found[2:])
            sides += [-1 if register == CHARACTER else 1] * len(found)
        return Piece([*ids, self._roles[END]], [*weights, 1.0], [*sides, 0])

    def _encode(self, text: str) -> list[int]:
        known = self._known.get(text)
        if known is None:
            known = self._inner.encode(text, add_special_tokens=False).ids
            if len(self._known) < 50000:
                self._known[text] = known
        return known


def _fill(array: NDArray[Any], parts: Iterable[Iterable[float]]) -> None:
    """Write the parts, one after another, into an array (length,) that may be shorter or longer than they are."""
    flat = list(chain.from_iterable(parts))[: len(array)]
    array[: len(flat)] = flat
