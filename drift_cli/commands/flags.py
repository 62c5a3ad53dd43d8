"""Flags made from the fields of `Settings`, so that a command names the settings it takes and declares none of them again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

from typer import Option

from drift_cli.settings.settings import Key, keys

P = ParamSpec("P")
MOVED = {
    "model": "Where the run's model is now, if it was moved or renamed.",
    "adapter": "Where the run's adapter is now, if it was moved or renamed.",
}
"""Help texts of commands that go on with a run, which knows its model."""
Flags = Mapping[str, Any]
"""Setting → what the command line gave for it, as its parser reads it; None where it was silent. `resolve` and `Settings.given` read them."""


def with_settings(*names: str, **helps: str) -> Callable[[Callable[Concatenate[Flags, P], None]], Callable[..., None]]:
    """Give a command the flags of some settings, in front of its own options; it gets them as its first argument.

    `helps` has help texts for settings that mean something of their own in this command.
    """

    def decorate(command: Callable[Concatenate[Flags, P], None]) -> Callable[..., None]:
        @wraps(command)
        def called(*args: Any, **given: Any) -> None:
            flags = {name: given.pop(name) for name in names if name in given}
            command(flags, *args, **given)

        first, *own = inspect.signature(command).parameters.values()
        hints = get_type_hints(command, include_extras=True)
        del hints[first.name]
        made = {name: _option(keys()[name], helps.get(name)) for name in names}
        flags = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in made.items()]
        options = [one.replace(kind=one.KEYWORD_ONLY, annotation=hints[one.name]) for one in own]
        # Typer makes options of these two, and would look at the command itself behind `__wrapped__`.
        called.__annotations__ = {**hints, **made}
        vars(called)["__signature__"] = inspect.Signature([*flags, *options])
        del vars(called)["__wrapped__"]
        return called

    return decorate


def _option(key: Key, said: str | None) -> Any:
    """The annotation from which Typer makes the flag of a setting."""
    complete = (lambda: list(key.known)) if key.known else None
    shown = {list[str]: "<str>", list[float]: "<float>"}.get(key.kind)
    return Annotated[key.kind | None, Option(key.flag, help=said or key.help, metavar=shown, show_default=False, autocompletion=complete)]
