"""A tokenizer's control tokens: which they are, and whether a text has one.

Control tokens are those that the tokenizer calls special, and those added to its vocabulary without being called so whose spelling has brackets or bars and
is no tag of HTML. (Vocabularies also have tokens added for words, for runs of spaces, for single letters and for `<table>`.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from drift_cli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HTML = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|div|em|h[1-6]|hr|i|img|li|ol|p|pre|span|strong|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul)/?>"
)
_SHORTEST = 3
"""Characters, brackets included."""


@dataclass(frozen=True)
class Controls:
    """The control tokens of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def by_id(self) -> Mapping[int, str]:
        """Every control token: its id and how it is spelled."""
        named = dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        added = {
            index: str(token) for index, token in self.tokenizer.added_tokens_decoder.items() if token.special or _controls(str(token))
        }
        return {int(index): str(token) for index, token in {**added, **named}.items()}

    @cached_property
    def special(self) -> tuple[str, ...]:
        """Those that are called special, and left out of a reply's text; the longest first."""
        added = (str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return tuple(sorted({*self.tokenizer.all_special_tokens, *added}, key=len, reverse=True))

    @cached_property
    def _named(self) -> tuple[str, ...]:
        return tuple(self.tokenizer.all_special_tokens)

    def first_in(self, text: str) -> str | None:
        """A control token that the text spells out or that the tokenizer reads in it; None where there is none."""
        spelled = next((token for token in self._named if token in text), None)
        if spelled is not None:
            return spelled
        return next((self.by_id[index] for index in self.read_in(text)), None)

    def read_in(self, text: str) -> list[int]:
        """The control tokens that the tokenizer reads in a text. What a vocabulary has no token for is no control token either."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [int(index) for index in ids if int(index) in self.by_id and index != self.tokenizer.unk_token_id]

    def first_of(self, ids: Sequence[int]) -> int | None:
        """The first control token among ids."""
        return next((int(index) for index in ids if int(index) in self.by_id), None)

    def refuse(self, texts: Sequence[tuple[str, str]]) -> None:
        """Raise `UsageError` where one of the texts, each behind the words for where it stands, has a control token."""
        for where, text in texts:
            token = self.first_in(text)
            if token is not None:
                raise UsageError(f"{where} contains {token!r}, which this model reads as a control token", mend="Take it out of the text.")


def _controls(token: str) -> bool:
    bare = token.strip()
    return len(bare) >= _SHORTEST and any(letter in "<>[]{}|" for letter in bare) and not _HTML.fullmatch(bare.lower())
