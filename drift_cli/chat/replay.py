"""A conversation brought past turns that are on disk: every prompt must be the one it was."""

from __future__ import annotations

from collections.abc import Sequence

from drift_cli.chat.conversation import Ask, Caller, Conversation, Script, User
from drift_cli.chat.format import Chat
from drift_cli.chat.messages import prompt_hash
from drift_cli.errors import StoreError
from drift_cli.spec import Transcript, Turn

_MEND = "`drift runs show` lists the versions in use then. Install those, or start a new run."


def user_turns(transcript: Transcript, turns: Sequence[Turn]) -> tuple[str, ...]:
    """What the user said in committed turns: from their lines, or, where those do not have it, from the script."""
    return tuple(turn.user if turn.user is not None else transcript.users[turn.index - 1] for turn in turns)


def user_of(transcript: Transcript, turns: Sequence[Turn], chat: Chat, code: Ask | None) -> User:
    """Who asks in a conversation of which `turns` are on disk: the script, or the user's `code`."""
    if transcript.user is None:
        return Script(transcript.users)
    assert code is not None
    return Caller(code, transcript.total, chat.refuse, user_turns(transcript, turns))


def replay(conversation: Conversation, turns: Sequence[Turn], where: str) -> Conversation:
    """The state behind committed turns of the rollout `where`, reply by reply as they were sampled.

    Raises:
        StoreError: a user turn, a prompt, or where a reply's reasoning and answer are, is no longer what it was.
    """
    for turn in turns:
        _check(conversation, turn, f"{where} turn {turn.index}")
        assert turn.ids is not None
        conversation = conversation.after(turn.ids)
        if conversation.past[-1].segments != turn.segments:
            raise StoreError(
                f"{where} turn {turn.index}: its reasoning and its answer are no longer found where they were when this turn was made",
                mend=f"drift or the tokenizer changed: {_MEND}",
            )
    return conversation


def _check(conversation: Conversation, turn: Turn, where: str) -> None:
    """Whether a conversation stands before a turn as it did when the turn was made."""
    if turn.user is not None and len(conversation.users) >= turn.index and conversation.users[turn.index - 1] != turn.user:
        raise StoreError(
            f"{where}: the user's text is not that of the transcript", mend="Check the run: drift runs verify. Or start a new run."
        )
    if conversation.end is not None or turn.ids is None or prompt_hash(conversation.prompt) != turn.prompt_hash:
        raise StoreError(
            f"{where}: the conversation's prompt is no longer what it was when this turn was made",
            mend=f"The tokenizer or transformers changed: {_MEND}",
        )
