"""A conversation of a model with its user, in token ids: what the engine's contract calls a `Conversation`.

In: a user (a script, or Python code that asks), a condition, and the ids of each reply as it was sampled. Out: prompts as token ids. A conversation is a
state that never changes: `after(ids)` is the next one.

The prompt is what the model's own chat template makes of the conversation. A reply's text, tokenized again, need not give the ids that were sampled; so
where the template leaves history alone (the new rendering begins with the old one, goes on with the reply's text and then closes it), the ids of the
reply are kept as sampled and only the template's own tail is appended. Where the template rewrites history (drops reasoning, trims text), its rendering
is taken as it is. Either way a prompt is a function of the conversation alone, so a resumed process computes the same one.

A reply that has reasoning is kept in its parts (see `parts`), and its reasoning stands in the conversation where the template's makers meant it to stand. A
prompt that the template fails on, or in which a text is not in its place, is no prompt: the conversation ends there with a `problem`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from drift_cli.chat.format import Chat, TemplateProblem
from drift_cli.chat.messages import text_of
from drift_cli.chat.parts import Parts
from drift_cli.errors import UsageError
from drift_cli.spec import Answered, Condition, Finish, Transcript


class Exchange(NamedTuple):
    """One turn of a conversation, as a user knows it: what they asked, and the answer (without reasoning)."""

    user: str
    reply: str


Ask = Callable[[Sequence[Exchange]], str]
"""A user of one's own: the turns so far → the text of the next user turn."""


class User(Protocol):
    """Who asks."""

    @property
    def total(self) -> int:
        """The number of user turns."""

    def ask(self, so_far: Sequence[Exchange]) -> str:
        """The next user turn."""


@dataclass(frozen=True)
class Script:
    """A user whose turns are written beforehand."""

    users: tuple[str, ...]

    @property
    def total(self) -> int:
        """See `User.total`."""
        return len(self.users)

    def ask(self, so_far: Sequence[Exchange]) -> str:
        """See `User.ask`."""
        return self.users[len(so_far)]


@dataclass(frozen=True)
class Caller:
    """A user whose turns Python code makes, from what was said so far.

    `recorded` are the turns that are on disk already: they are put again as they were put, and the code is not asked for them.
    """

    code: Ask
    total: int
    refuse: Callable[[Sequence[tuple[str, str]]], None]
    """The chat format's `refuse`."""
    recorded: tuple[str, ...] = ()

    def ask(self, so_far: Sequence[Exchange]) -> str:
        """See `User.ask`. Raises `UsageError` where the code gives no text, or one that the model would read as a control token."""
        turn = len(so_far) + 1
        if turn <= len(self.recorded):
            return self.recorded[turn - 1]
        text = self.code(so_far)
        if not isinstance(text, str):
            raise UsageError(f"the user's code gave {type(text).__name__} for turn {turn}", mend="Return the text of the next user turn.")
        self.refuse([(f"user turn {turn}", text)])
        return text


@dataclass(frozen=True, eq=False)
class Conversation:
    """See the module's docstring, and `engine.contract.Conversation`. Made with `begin` or `scripted`."""

    chat: Chat
    condition: Condition
    end_ids: frozenset[int]
    user: User
    users: tuple[str, ...]
    """Every user turn that was put, the current one included."""
    ids: tuple[int, ...]
    """The newest prompt."""
    canonical: tuple[int, ...]
    """The same conversation tokenized from its text alone."""
    said: tuple[Parts, ...] = ()
    """The parts of every reply."""
    past: tuple[Answered, ...] = ()
    """Every answered turn."""
    problem: str | None = None
    """Why there is no prompt for the current turn: the conversation ends here. Another process finds the same."""
    _known: dict[tuple[tuple[int, ...], bool], Conversation] = field(default_factory=dict, init=False, repr=False)
    """The state that was asked for last, so that a user's code is asked once."""

    @property
    def turn(self) -> int:
        """The turn to answer next, 1 for the first; once every turn is answered, one more than there are."""
        return len(self.past) + 1

    @property
    def total(self) -> int:
        """The number of user turns."""
        return self.user.total

    @property
    def end(self) -> Finish | None:
        """See `engine.contract.Conversation.end`."""
        if self.turn > self.total:
            return Finish.COMPLETE
        return None if self.problem is None else Finish.TEMPLATE

    @property
    def prompt(self) -> tuple[int, ...]:
        """What the model is given next. Raises `TemplateProblem` where there is a problem: nobody who overlooks it gets a number."""
        if self.problem is not None:
            raise TemplateProblem(self.problem)
        if self.turn > self.total:
            raise LookupError("every turn is answered: there is no next prompt")
        return self.ids

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Every answered turn, as the user knows it."""
        return tuple(Exchange(user, parts.answer) for user, parts in zip(self.users, self.said, strict=False))

    @property
    def has_stops(self) -> bool:
        """See `engine.contract.Conversation.has_stops`."""
        return self.chat.has_stops

    def stop_length(self, ids: Sequence[int]) -> int | None:
        """See `Chat.stop_length`."""
        return self.chat.stop_length(ids)

    def content(self, ids: Sequence[int]) -> Sequence[int]:
        """A reply's ids without its end-of-turn token."""
        return ids[:-1] if ids and ids[-1] in self.end_ids else ids

    def parts(self, ids: Sequence[int]) -> Parts:
        """The parts of a reply to the current prompt, ids as sampled."""
        return self.chat.parts(self.content(ids), self.prompt)

    def after(self, ids: Sequence[int], *, given: bool = False) -> Conversation:
        """The state behind a reply to the current turn, ids as sampled. Where there is no prompt for the next turn, its `problem` says why.

        A reply that is `given`, not made by the model, is all answer, whatever the prompt began.
        """
        key = tuple(ids), given
        if key not in self._known:
            made = self._after(key[0], given=given)
            self._known.clear()
            self._known[key] = made
        return self._known[key]

    def _after(self, ids: tuple[int, ...], *, given: bool) -> Conversation:
        content = self.content(ids)
        parts = Parts(text := text_of(self.chat.tokenizer, content), whole=text) if given else self.parts(ids)
        answered = Answered(self.prompt, ids, len(content), parts.segments)
        said = replace(self, said=(*self.said, parts), past=(*self.past, answered))
        if said.turn > said.total:
            return said
        said = replace(said, users=(*said.users, said.user.ask(said.exchanges)))
        try:
            prompt, canonical = said.chat.extend(said, content)
        except TemplateProblem as error:
            return replace(said, problem=error.what)
        return replace(said, ids=tuple(prompt), canonical=tuple(canonical))


def begin(chat: Chat, user: User, condition: Condition, end_ids: frozenset[int]) -> Conversation:
    """A conversation before its first reply. Raises `TemplateProblem` where the chat format has no prompt for it."""
    users = (user.ask(()),)
    ids = tuple(chat.prompt(users, (), condition))
    return Conversation(chat, condition, end_ids, user, users, ids, ids)


def scripted(chat: Chat, users: Sequence[str], condition: Condition, end_ids: frozenset[int]) -> Conversation:
    """`begin` with a script of user turns."""
    return begin(chat, Script(tuple(users)), condition, end_ids)


def stand_in(transcript: Transcript) -> Transcript:
    """A script to check a chat format with before a run: the transcript's own, or short turns in place of those that nobody knows beforehand."""
    if transcript.user is None:
        return transcript
    return Transcript(transcript.name, tuple(f"User turn {turn}." for turn in range(1, transcript.total + 1)))
