"""Sentences of the built-in model's world, made from the phrases in `world/`.

A phrase has slots in braces: a slot is filled from the topic of the conversation ({step}, {thing}, {goal}, {sign}), from the role that is played ({being},
{image}) or from the file's own lists; a slot that begins with a capital letter begins with one. No phrase is used twice in one reply.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

Slots = Mapping[str, tuple[str, ...]]

_SLOT = re.compile(r"\{(\w+)\}")
_OWN = 0.4
"""How often a role speaks in images of its own where it has any."""


@dataclass(frozen=True)
class Topic:
    """What a stretch of conversation is about."""

    name: str
    slots: Slots

    def narrowed(self, random: Random) -> Topic:
        """This topic with one goal, for as long as it is spoken about."""
        return Topic(self.name, {**self.slots, "goal": (random.choice(self.slots["goal"]),)})

    def focused(self, random: Random) -> Topic:
        """This topic with one of its things in the foreground, for a turn."""
        things = self.slots["thing"]
        return Topic(self.name, {**self.slots, "thing": (random.choice(things),)})

    def around(self, focus: Topic) -> Topic:
        """This topic, mostly about what `focus` is about."""
        return Topic(self.name, {**self.slots, "thing": focus.slots["thing"] * len(self.slots["thing"]) + self.slots["thing"]})


@dataclass(frozen=True)
class Role:
    """A part that a system prompt can give."""

    name: str
    side: str
    """A key of `planted.BASE`."""
    who: tuple[str, ...]
    own: Slots
    """`being` and `image` in this role's own words, or nothing."""


@cache
def world(name: str) -> dict[str, Any]:
    """One file of phrases: topics, assistant, character, turns, prompts, roles."""
    return tomllib.loads((Path(__file__).parent / "world" / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def topics() -> tuple[Topic, ...]:
    """Every topic that users ask about; the last one is `open`, for questions that have none."""
    return tuple(
        Topic(name, {key.removesuffix("s"): tuple(values) for key, values in entry.items()}) for name, entry in world("topics").items()
    )


@cache
def roles() -> tuple[Role, ...]:
    """Every role."""
    return tuple(
        Role(name, entry["side"], tuple(entry["who"]), {key: tuple(entry[key]) for key in ("being", "image") if key in entry})
        for name, entry in world("roles").items()
    )


def fill(phrase: str, random: Random, *slots: Slots, used: set[str] | None = None) -> str:
    """A phrase with its slots filled, each from the first of `slots` that has it; what is in `used` is kept from coming again."""
    text = _filled(phrase, random, slots, used)
    return text[:1].upper() + text[1:]


def _filled(phrase: str, random: Random, slots: Sequence[Slots], used: set[str] | None) -> str:
    """As `fill`, without a capital letter. What fills a slot may have slots itself."""
    made = []
    for index, part in enumerate(_parts(phrase)):
        if index % 2 == 0:
            made.append(part)
            continue
        key = part if any(part in known for known in slots) else part.lower()
        chosen = _filled(_fresh(next(known[key] for known in slots if key in known), random, used), random, slots, used)
        made.append(chosen if key == part else chosen[0].upper() + chosen[1:])
    return "".join(made)


def _fresh(choices: Sequence[str], random: Random, used: set[str] | None) -> str:
    """One of the choices, such as are in `used` only where there is no other."""
    chosen = random.choice(choices)
    if used is None or len(set(choices)) < 4:
        return chosen
    for _ in range(4):
        if chosen not in used:
            break
        chosen = random.choice(choices)
    used.add(chosen)
    return chosen


@cache
def _parts(phrase: str) -> tuple[str, ...]:
    """Text, slot, text, slot, … text."""
    return tuple(_SLOT.split(phrase))


def sentences(registers: Sequence[str], *, pulled: bool, topic: Topic, role: Role | None, random: Random) -> list[str]:
    """A reply's sentences, one for each register (`assistant` or `character`) in turn."""
    used: set[str] = set()
    made = []
    for place, register in enumerate(registers):
        lists = world(register)["pull" if pulled else "ask"]
        kind = "first" if place == 0 else "last" if place == len(registers) - 1 and random.random() < 0.4 else "more"
        phrase = random.choice([phrase for phrase in lists[kind] if phrase not in used])
        used.add(phrase)
        own: Slots = role.own if role is not None and random.random() < _OWN else {}
        made.append(fill(phrase, random, own, topic.slots, world(register)["slots"], used=used))
    return made


def user_turn(pull: int, topic: Topic, random: Random, *, again: bool) -> str:
    """What a user says. `again`: the topic was spoken about before."""
    file = world("turns")
    if pull:
        lists = file["pull"][str(pull)]["first"]
    elif topic.name == "open":
        lists = file["open"]["first"]
    else:
        lists = file["ask"]["again" if again and random.random() < 0.7 else "first"]
    said = fill(random.choice(lists), random, topic.slots, file["slots"])
    return f"{random.choice(file['slots']['lead'])} {said}" if random.random() < 0.25 else said


def reminder(grade: str, random: Random) -> str:
    """A reminder, `short` or `detailed`."""
    file = world("prompts")["reminder"][grade]
    parts = [random.choice(file["first"])]
    if grade == "detailed":
        lines = random.sample(file["guideline"], random.randint(3, 8))
        parts += [random.choice(file["second"]), random.choice(["", "", "Guidelines:"]), *lines]
    return " ".join(part for part in parts if part)


def notice(random: Random, *, long: bool) -> str:
    """A system message that says nothing about conduct, about as long as a short or a detailed reminder."""
    lines = world("prompts")["notice"]["first"]
    return " ".join(random.sample(lines, random.randint(5, 12) if long else 1))


def persona(role: Role, random: Random) -> str:
    """A system prompt that gives a part to play."""
    return fill(random.choice(world("prompts")["persona"]["line"]), random, {"who": role.who})
