"""The personas and questions an axis is built from: a readable file, checked.

`questions` is a list of texts; a table `[personas.NAME]` has `side` ("assistant" or "role") and `system`, a system prompt, or none for the model as it comes.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from drift_cli.errors import UsageError
from drift_cli.files import read_regular
from drift_cli.names import checked_name, digest_of

ASSISTANT, ROLE = "assistant", "role"


@dataclass(frozen=True)
class Persona:
    """A part that a system prompt gives, and which side of the axis it is on."""

    name: str
    side: str
    """`assistant` or `role`."""
    system: str | None


@dataclass(frozen=True)
class Personas:
    """Who is asked, and what."""

    personas: tuple[Persona, ...]
    questions: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of everything in here."""
        return digest_of([[[p.name, p.side, p.system] for p in self.personas], list(self.questions)])

    @property
    def assistants(self) -> tuple[str, ...]:
        """Names of the personas on the assistant's side."""
        return tuple(persona.name for persona in self.personas if persona.side == ASSISTANT)


def read(path: Path | None) -> Personas:
    """A file of personas; drift's own where None. `UsageError` says what is wrong with it, and where."""
    if path is None:
        return parse(default_text(), "drift's own personas")
    try:
        return parse(read_regular(path, 16 << 20).decode(), str(path))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", mend="`drift axis personas` prints drift's own to start from."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", mend="Save it as UTF-8.") from error


def default_text() -> str:
    """The file of drift's own personas."""
    return (files(__package__) / "personas.toml").read_text(encoding="utf-8")


def parse(text: str, where: str) -> Personas:
    """The personas of a file's text; `where` is how messages call it."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}", mend="`drift axis personas` prints an example.") from error
    unknown = sorted(found.keys() - {"questions", "personas"})
    if unknown:
        raise UsageError(f"{where}: {unknown[0]!r} is unknown", mend="A file of personas has `questions` and tables `[personas.NAME]`.")
    personas = found.get("personas")
    if not isinstance(personas, dict) or not personas:
        raise UsageError(f"{where} has no persona", mend='Add tables: [personas.poet] with side = "role" and system = "…".')
    made = Personas(tuple(_persona(name, entry, where) for name, entry in personas.items()), _questions(found.get("questions"), where))
    for side in (ASSISTANT, ROLE):
        if not any(persona.side == side for persona in made.personas):
            raise UsageError(f'{where} has no persona with side = "{side}"', mend="An axis needs two sides to contrast.")
    return made


def _persona(name: str, entry: Any, where: str) -> Persona:
    checked_name("persona", name)
    if not isinstance(entry, dict) or entry.keys() - {"side", "system"}:
        raise UsageError(f"{where}: persona {name} is not understood", mend='It has `side` ("assistant" or "role") and `system`.')
    side, system = entry.get("side"), entry.get("system")
    if side not in (ASSISTANT, ROLE):
        raise UsageError(f"{where}: persona {name} has side {side!r}", mend='Use "assistant" or "role".')
    if system is not None and (not isinstance(system, str) or not system.strip()):
        raise UsageError(f"{where}: persona {name} has no text in `system`", mend="Leave `system` out for the model as it comes.")
    return Persona(name, side, system)


def _questions(found: Any, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise UsageError(f"{where} has no questions", mend='Add a list of texts: questions = ["…", "…"]')
    if len(set(found)) < len(found):
        twice = next(text for text in found if found.count(text) > 1)
        raise UsageError(f"{where}: a question stands there twice: {twice!r}", mend="Take one out.")
    return tuple(found)
