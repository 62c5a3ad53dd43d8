"""The seed experiment's output file: one cell, as JSON, with its conversations and their projections on one axis.

```
model, transcript_source, condition, n_samples, temperature, seed, system_prompt (or null)
projections      n_samples lists, one number to each reply
conversations    n_samples lists of {"role", "content"}: user, perhaps the system prompt, assistant, user, …
```

The file does not say where the system prompt was placed; the conversations do, and `read_seed` finds the one placement that builds exactly them. A
conversation that ended early has fewer messages and fewer projections than the others; the user turns that it has are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from drift_cli.chat import messages
from drift_cli.errors import UsageError
from drift_cli.spec import Condition, Placement
from drift_cli.transcripts.dialogue import encodable, kind
from drift_cli.transcripts.document import parse_json, read_text

KEYS = ("model", "transcript_source", "condition", "n_samples", "temperature", "seed", "system_prompt", "projections", "conversations")
"""In the order in which the seed wrote them."""

_MEND = "Mend the file, or write it again with the program that made it."
_Message = dict[str, str]


class Conversation(NamedTuple):
    """One rollout: replies and as many projections."""

    replies: tuple[str, ...]
    projections: tuple[float, ...]


@dataclass(frozen=True)
class SeedFile:
    """A file of the seed's, checked."""

    path: Path
    model: str
    transcript_source: str
    condition: str
    temperature: float
    seed: int
    system_prompt: str | None
    placement: Placement
    users: tuple[str, ...]
    """Of the longest conversation; the others have the first of these."""
    conversations: tuple[Conversation, ...]
    ignored: tuple[str, ...]
    """Keys that are not part of the format."""


def read_seed(path: Path) -> SeedFile:
    """Read and check one file; `UsageError` names the conversation and message, or the turn, that does not fit."""
    where = str(path)
    value = parse_json(read_text(path), where, nan=True)
    if not isinstance(value, dict):
        raise _misfit(where, f"expected an object, found {kind(value)}")
    missing = [key for key in KEYS if key not in value]
    if missing:
        raise _misfit(where, f"has no {', '.join(map(repr, missing))}")
    prompt = None if value["system_prompt"] is None else _text(value, "system_prompt", where)
    dialogues = _dialogues(value, where)
    placement = _placement(dialogues, prompt, where)
    scripts = [_users(dialogue, prompt, placement) for dialogue in dialogues]
    _check_scripts(scripts, where)
    replies = [tuple(message["content"] for message in dialogue if message["role"] == "assistant") for dialogue in dialogues]
    projections = _projections(value["projections"], [len(made) for made in replies], where)
    return SeedFile(
        path=path,
        model=_text(value, "model", where),
        transcript_source=_text(value, "transcript_source", where),
        condition=_text(value, "condition", where),
        temperature=_number(value["temperature"], f"{where}: temperature"),
        seed=_whole(value, "seed", where),
        system_prompt=prompt,
        placement=placement,
        users=max(scripts, key=len),
        conversations=tuple(map(Conversation, replies, projections)),
        ignored=tuple(key for key in value if key not in KEYS),
    )


def _misfit(where: str, problem: str) -> UsageError:
    return UsageError(f"{where}: {problem}", mend=_MEND)


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(value[key], str):
        raise _misfit(where, f"{key!r} is {kind(value[key])}, not text")
    return encodable(value[key], f"{where}: {key}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _misfit(where, f"is {kind(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _misfit(where, f"is {number}, not a finite number")
    return number


def _whole(value: Mapping[str, Any], key: str, where: str) -> int:
    if isinstance(value[key], bool) or not isinstance(value[key], int):
        raise _misfit(where, f"{key!r} is {value[key]!r}, not a whole number")
    return int(value[key])


def _rows(value: Any, where: str, noun: str) -> list[Any]:
    if not isinstance(value, list):
        raise _misfit(where, f"expected a list of {noun}, found {kind(value)}")
    return value


def _dialogues(value: Mapping[str, Any], where: str) -> list[list[_Message]]:
    """The conversations' messages, each with a known role and text; as many as `n_samples` says."""
    rows = _rows(value["conversations"], f"{where}: conversations", "conversations")
    if len(rows) != _whole(value, "n_samples", where) or not rows:
        raise _misfit(where, f"'n_samples' is {value['n_samples']}, but it holds {len(rows)} conversations")
    return [_dialogue(row, f"{where}: conversation {number}") for number, row in enumerate(rows, 1)]


def _dialogue(row: Any, where: str) -> list[_Message]:
    made = [_message(item, f"{where}, message {number}") for number, item in enumerate(_rows(row, where, "messages"), 1)]
    if made and made[-1]["role"] != "assistant":
        raise _misfit(f"{where}, message {len(made)}", "is the last one and has no reply")
    return made


def _message(item: Any, where: str) -> _Message:
    if not isinstance(item, dict) or set(item) != {"role", "content"}:
        raise _misfit(where, "is not an object of role and content")
    if item["role"] not in ("user", "assistant", "system"):
        raise _misfit(where, f"unknown role {item['role']!r}")
    return {"role": item["role"], "content": _text(item, "content", where)}


def _placement(dialogues: Sequence[list[_Message]], prompt: str | None, where: str) -> Placement:
    """The placement that builds all conversations exactly. Without a prompt all placements build the same, and it is `start`."""
    fitting = set(Placement)
    for number, dialogue in enumerate(dialogues, 1):
        built = {placement: _built(dialogue, prompt, placement) for placement in Placement}
        fits = {placement for placement in fitting if built[placement] == dialogue}
        if not fits:
            tried = [built[placement] for placement in Placement if placement in fitting]
            raise _strange_message(dialogue, tried, f"{where}: conversation {number}")
        fitting = fits
    return next(placement for placement in Placement if placement in fitting)


def _users(dialogue: Sequence[_Message], prompt: str | None, placement: Placement) -> tuple[str, ...]:
    """A conversation's user turns, without the prompt that the placement puts into them."""
    prefix = f"{prompt}\n\n" if prompt is not None and placement is Placement.FIRST_USER else ""
    suffix = f"\n\n{prompt}" if prompt is not None and placement is Placement.USER_SUFFIX else ""
    users = [message["content"].removesuffix(suffix) for message in dialogue if message["role"] == "user"]
    return tuple([user.removeprefix(prefix) for user in users[:1]] + users[1:])


def _built(dialogue: Sequence[_Message], prompt: str | None, placement: Placement) -> list[_Message]:
    """The conversation as it would be if the prompt were placed so."""
    replies = [message["content"] for message in dialogue if message["role"] == "assistant"]
    return messages(_users(dialogue, prompt, placement), replies, Condition("imported", prompt, placement)) if dialogue else []


def _strange_message(dialogue: Sequence[_Message], tried: Sequence[list[_Message]], where: str) -> UsageError:
    """The first message that fits no placement."""
    fit = [
        next((at for at, pair in enumerate(zip(dialogue, built, strict=False)) if pair[0] != pair[1]), min(len(dialogue), len(built)))
        for built in tried
    ]
    at = min(max(fit), len(dialogue) - 1)
    found = dialogue[at]["role"]
    return _misfit(
        f"{where}, message {at + 1}",
        f"{found} message where none fits, or with other text than 'system_prompt'"
        if found != "user"
        else "user message where none fits, or 'system_prompt' is missing near it",
    )


def _check_scripts(scripts: Sequence[tuple[str, ...]], where: str) -> None:
    """All conversations have the same user turns, as far as they go."""
    longest = max(range(len(scripts)), key=lambda index: len(scripts[index]))
    if not scripts[longest]:
        raise _misfit(where, "its conversations are empty")
    for number, script in enumerate(scripts, 1):
        for turn, (user, expected) in enumerate(zip(script, scripts[longest], strict=False), 1):
            if user != expected:
                raise _misfit(f"{where}: conversation {number}, user turn {turn}", f"is not the one of conversation {longest + 1}")


def _projections(value: Any, lengths: Sequence[int], where: str) -> list[tuple[float, ...]]:
    """One finite number to each reply: `lengths` counts the replies of each conversation."""
    rows = _rows(value, f"{where}: projections", "lists")
    if len(rows) != len(lengths):
        raise _misfit(where, f"{len(lengths)} conversations but {len(rows)} lists of projections")
    return [
        _row(row, length, f"{where}: projections of conversation {n}") for n, (row, length) in enumerate(zip(rows, lengths, strict=True), 1)
    ]


def _row(row: Any, length: int, where: str) -> tuple[float, ...]:
    if len(_rows(row, where, "numbers")) != length:
        raise _misfit(where, f"{len(row)} numbers for {length} replies")
    return tuple(_number(number, f"{where}, turn {turn}") for turn, number in enumerate(row, 1))
