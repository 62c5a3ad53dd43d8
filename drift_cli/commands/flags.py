"""Options made from dataclasses, so that none is declared twice.

`grouped` makes options of the fields of a command's parameters that are dataclasses; `with_settings` makes flags of the fields of `Settings`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

from typer import Option

from drift_cli.settings.settings import Key, keys

Command = Callable[..., None]
Flags = Mapping[str, Any]
"""Setting → what the command line gave for it, as its parser reads it; None where it was silent. `resolve` and `Settings.given` read them."""
MOVED = {
    "model": "Where the run's model is now, if it was moved or renamed.",
    "adapter": "Where the run's adapter is now, if it was moved or renamed.",
}
"""Help texts of commands that go on with a run, which knows its model."""


def grouped(command: Command) -> Command:
    """A command whose parameters that are dataclasses become their fields, as options; a call gives the fields, and those left out are the defaults."""
    return _expanded(command, {})


def with_settings(*names: str, **helps: str) -> Callable[[Command], Command]:
    """As `grouped`, and give a command the flags of some settings, in front of its own options; it gets them as its first argument, `Flags`.

    `helps` has help texts for settings that mean something of their own in this command.
    """
    return lambda command: _expanded(command, {name: _option(keys()[name], helps.get(name)) for name in names})


def _expanded(command: Command, flags: Mapping[str, Any]) -> Command:
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @wraps(command)
    def called(*args: Any, **given: Any) -> None:
        first = ({name: given.pop(name, None) for name in flags},) if flags else ()
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given}) for name, kind in groups.items()}
        command(*first, *args, **given, **made)

    parameters = [_parameter(name, hint, None) for name, hint in flags.items()]
    for name, one in list(inspect.signature(command).parameters.items())[1 if flags else 0 :]:
        if name in groups:
            within = get_type_hints(groups[name], include_extras=True)
            parameters += [_parameter(f.name, within[f.name], f.default) for f in fields(groups[name])]
        else:
            parameters.append(_parameter(name, hints[name], one.default))
    # Typer makes options of these two, and would look at the command itself behind `__wrapped__`.
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    vars(called)["__signature__"] = inspect.Signature(parameters)
    del vars(called)["__wrapped__"]
    return called


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _option(key: Key, said: str | None) -> Any:
    """The annotation from which Typer makes the flag of a setting."""
    complete = (lambda: list(key.known)) if key.known else None
    shown = {list[str]: "<str>", list[float]: "<float>"}.get(key.kind)
    return Annotated[key.kind | None, Option(key.flag, help=said or key.help, metavar=shown, show_default=False, autocompletion=complete)]
