"""Conversations of the built-in model's world, with the drift that was planted in them. The same seed gives the same conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tools.demo_model import grammar
from tools.demo_model.grammar import Role, Topic
from tools.demo_model.planted import Cue, drift

ASSISTANT, CHARACTER = "assistant", "character"


@dataclass(frozen=True)
class Turn:
    """A user turn, what stands beside it, and the reply."""

    user: str
    system: str | None
    """A system message between the user's and the reply."""
    cue: Cue
    p: float
    """The planted probability of the character's register."""
    registers: tuple[str, ...]
    """Of each sentence of the reply."""
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """A conversation as the model is to learn it."""

    system: str | None
    """A system message at the start."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class _Setting:
    """What stays the same through a conversation."""

    role: Role | None
    system: str | None
    opening: str | None
    """The grade of a reminder at the start."""
    beside: str | None
    """What stands beside user turns: `short`, `detailed`, `notice`, or nothing."""
    long: bool
    """Whether notices are as long as detailed reminders."""
    share: float
    """The share of turns that have it."""
    constant: str | None
    """The text where it is the same in all turns."""
    suffix: bool
    """Whether it is appended to the user's message."""
    pull: float
    """How much the user pulls: the chance that a calm stretch turns."""


def converse(random: Random, turns: int) -> Conversation:
    """A conversation of so many turns."""
    setting = _setting(random, turns)
    cues = _cues(setting, turns, random)
    side = "none" if setting.role is None else setting.role.side
    made, topic, again = [], random.choice(grammar.topics()).narrowed(random), False
    for cue, p in zip(cues, drift(cues, side, setting.opening), strict=True):
        if cue.pull == 0 and random.random() < 0.3:
            topic, again = random.choice(grammar.topics()).narrowed(random), False
        made.append(_turn(setting, cue, p, topic, again, random))
        again = True
    return Conversation(setting.system, tuple(made))


def _turn(setting: _Setting, cue: Cue, p: float, topic: Topic, again: bool, random: Random) -> Turn:
    focus = topic.focused(random)
    user = grammar.user_turn(cue.pull, focus, random, again=again)
    system = _beside(setting, cue, random)
    if system is not None and setting.suffix:
        user, system = f"{user}\n\n{system}", None
    count = random.choices((2, 3, 4, 5), (20, 35, 30, 15))[0]
    registers = tuple(CHARACTER if random.random() < p else ASSISTANT for _ in range(count))
    made = grammar.sentences(registers, pulled=cue.pull > 0, topic=topic.around(focus), role=setting.role, random=random)
    return Turn(user, system, cue, p, registers, tuple(made))


def _beside(setting: _Setting, cue: Cue, random: Random) -> str | None:
    """The text beside a turn. Notices keep their share by a draw of their own, reminders by the cue."""
    if setting.beside == "notice":
        return (setting.constant or grammar.notice(random, long=setting.long)) if random.random() < setting.share else None
    if cue.reminder is None:
        return None
    return setting.constant or grammar.reminder(cue.reminder, random)


def _setting(random: Random, turns: int) -> _Setting:
    start = random.choices(("nothing", "persona", "short", "detailed", "notice"), (36, 40, 7, 7, 10) if turns > 2 else (15, 75, 3, 3, 4))[0]
    beside = random.choices((None, "short", "detailed", "notice"), (40, 18, 20, 22))[0]
    long = random.random() < 0.6
    role = (
        random.choice(_by_side()[random.choices(("assistant", "near", "between", "far"), (25, 15, 15, 45))[0]])
        if start == "persona"
        else None
    )
    opening = start if start in ("short", "detailed") else None
    system = None
    if role is not None:
        system = grammar.persona(role, random)
    elif start == "notice":
        system = grammar.notice(random, long=long)
    elif opening is not None:
        system = grammar.reminder(opening, random)
    constant = None
    if beside is not None and random.random() < 0.75:
        constant = grammar.notice(random, long=long) if beside == "notice" else grammar.reminder(beside, random)
    share = 1.0 if random.random() < 0.7 else random.uniform(0.2, 0.8)
    return _Setting(role, system, opening, beside, long, share, constant, random.random() < 0.15, random.choice((0.0, 0.2, 0.5, 0.8)))


def _by_side() -> dict[str, list[Role]]:
    sides: dict[str, list[Role]] = {}
    for role in grammar.roles():
        sides.setdefault(role.side, []).append(role)
    return sides


def _cues(setting: _Setting, turns: int, random: Random) -> list[Cue]:
    """Stretches of asking and stretches of pulling, the latter of growing grades now and then broken by a question."""
    made, pulling, grade = [], False, 1
    for _ in range(turns):
        if random.random() < (0.2 if pulling else setting.pull):
            pulling, grade = not pulling, random.choice((1, 1, 2, 3))
        pull = grade if pulling and random.random() < 0.8 else 0
        if pull and random.random() < 0.4:
            grade = min(3, grade + 1)
        reminds = setting.beside in ("short", "detailed") and random.random() < setting.share
        made.append(Cue(pull, setting.beside if reminds else None))
    return made


def fit(random: Random, length: int, size: Callable[[Conversation], int]) -> Conversation:
    """A conversation of as many turns as fit into `length` tokens as `size` counts them; at least one turn, whatever its length."""
    turns = max(1, length // random.choice((60, 80, 110, 150)))
    made = converse(random, min(turns, 40))
    while len(made.turns) > 1 and size(made) > length:
        made = Conversation(made.system, made.turns[: max(1, int(len(made.turns) * 0.9))])
    return made


def texts(seed: int, count: int, turns: Sequence[int] = (1, 4, 12)) -> list[str]:
    """Everything said in `count` conversations, one text each: what a tokenizer is made from."""
    made: list[str] = []
    for index in range(count):
        talk = converse(Random(f"{seed}/texts/{index}"), turns[index % len(turns)])
        made += [
            text for text in (talk.system, *(t for turn in talk.turns for t in (turn.user, turn.system, " ".join(turn.sentences)))) if text
        ]
    return made
