"""Every setting, declared once: `Settings` and what its fields say of how they are read.

A field `max_new_tokens` is the flag `--max-new-tokens`, the variable `DRIFT_MAX_NEW_TOKENS`, the key `max_new_tokens` of drift.toml and presets, and the
entry `max_new_tokens` of a manifest's settings. Its type says how it is read, its metadata the rest: `Key`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Any, get_type_hints

from drift_cli.errors import StoreError, UsageError, did_you_mean
from drift_cli.settings import readers
from drift_cli.settings.readers import Reader, reader_of
from drift_cli.spec import Condition

PRESETS = ("demo", "olmo3-003b", "smollm2")


class EngineChoice(StrEnum):
    """`--engine`: what makes the rollouts."""

    AUTO = "auto"
    SLOTS = "slots"
    REFERENCE = "reference"


class ChatKind(StrEnum):
    """`--chat`: how messages become one prompt."""

    TEMPLATE = "template"
    RAW = "raw"


class DtypeChoice(StrEnum):
    """`--dtype`: the precision of the weights."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


@dataclass(frozen=True)
class Key:
    """How one setting is read, and how its flag looks."""

    name: str
    default: Any
    read: Reader
    """Makes its value of what a flag, a variable, TOML or a manifest says, or raises `ValueError`."""
    flag: str
    """Its flag as click spells it: `--seed`, or `--independent-noise/--common-noise`."""
    kind: Any
    """The type that the command line's parser makes of the flag's text before `read` sees it."""
    help: str
    recorded: bool
    """False for a setting that came after the first runs: a manifest has it only where it is not the default, so that those stay what they are."""
    known: tuple[str, ...]
    """Values that the shell completes, where the type names none."""

    @property
    def option(self) -> str:
        """The flag as messages name it."""
        return self.flag.partition("/")[0]

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"DRIFT_{self.name.upper()}"


def setting(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    read: Reader | None = None,
    kind: Any = None,
    recorded: bool = True,
    known: tuple[str, ...] = (),
) -> Any:
    """A field of `Settings`. `flag`, `read` and `kind` follow from the field's name and type where they are left out."""
    said = {"flag": flag, "read": read, "kind": kind, "help": help, "recorded": recorded, "known": known}
    return field(default=default, metadata=said)


@dataclass(frozen=True)
class Settings:
    """Every setting's value, where it came from, and the conditions."""

    name: str | None = setting(None, "The run's name (default: the model's).")
    preset: str | None = setting(None, f"An experiment that comes with drift: {', '.join(PRESETS)}.", known=PRESETS)
    model: str = setting("demo", "A hub id, a local folder, a GGUF file, the folder of a LoRA adapter, or demo.")
    revision: str | None = setting(None, "The hub revision of the model.")
    adapter: str | None = setting(None, "The folder of a LoRA adapter to merge into the model.", recorded=False)
    dtype: DtypeChoice = setting(DtypeChoice.AUTO, "Precision of the weights (auto: bfloat16 on a GPU, float32 on a CPU).")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.", known=("auto", "cpu", "cuda"))
    chat: ChatKind = setting(ChatKind.TEMPLATE, "Chat format: the model's template, or raw text for base models.")
    chat_date: str = setting("2026-01-01", "Fixed date passed to chat templates that insert today's date (YYYY-MM-DD).", read=readers.date)
    chat_options: str = setting(
        "{}", "A variable for the chat template, KEY=VALUE; repeat for several.", flag="--chat-option", read=readers.options, kind=list[str]
    )
    transcripts: tuple[str, ...] = setting(
        (), "A transcript's file, or the name of a built-in one; repeat for several.", flag="--transcript"
    )
    strip_private: bool = setting(False, "Remove auditors' private tags from user turns.", flag="--strip-private")
    turns: int | None = setting(
        None, "Use the first N user turns of each transcript only; the transcript is then called NAME-N.", recorded=False
    )
    temperatures: tuple[float, ...] = setting((0.7,), "Sampling temperature, 0 for greedy; repeat for several.", flag="--temperature")
    samples: int = setting(16, "Rollouts per cell.", read=readers.positive)
    seed: int = setting(0, "The run's seed.")
    max_new_tokens: int = setting(512, "The longest reply, in tokens.")
    top_p: float | None = setting(None, "Nucleus sampling: keep the likeliest tokens of this total probability (default: the model's own).")
    top_k: int | None = setting(None, "Keep the k likeliest tokens, 0 for all (default: the model's own).")
    min_p: float | None = setting(None, "Drop tokens below this share of the likeliest token's probability (default: the model's own).")
    independent_noise: bool = setting(
        False, "Whether each condition draws random numbers of its own.", flag="--independent-noise/--common-noise"
    )
    layers: str | tuple[int, ...] = setting(
        "auto", "Residual layers to store: auto, all, or numbers such as 20,21.", read=readers.layers, kind=str, known=("auto", "all")
    )
    pool: str = setting(
        "mean",
        "Tokens of a reply that are averaged: mean (all), last (the last one), or first:N.",
        read=readers.pool,
        recorded=False,
        known=("mean", "last"),
    )
    axis: str | None = setting(None, "The axis to project on, by name or file; demo@3 names its layer too.")
    layer: int | None = setting(None, "The layer to project at (default: the one that the axis suggests).")
    foreign_axis: bool = setting(
        False, "Accept an axis that was built on another model of the same width.", flag="--foreign-axis", recorded=False
    )
    engine: EngineChoice = setting(
        EngineChoice.AUTO,
        "What makes the rollouts: slots is fast, reference is slow and runs every model (auto: slots where they are exact).",
    )
    batch: int | None = setting(None, "Rollouts generated at the same time.", read=readers.positive)
    conditions: tuple[Condition, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    """Setting → `flag --samples`, `environment DRIFT_SAMPLES`, `drift.toml`, `preset demo`; one that is not here has its default."""

    def origin(self, name: str) -> str:
        """Where a setting's value came from, in words; `default` where nothing set it."""
        return self.origins.get(name, "default")

    @property
    def values(self) -> Mapping[str, Any]:
        """Setting → value, in the order of declaration."""
        return {name: getattr(self, name) for name in keys()}

    def given(self, flags: Mapping[str, Any]) -> Settings:
        """These settings with the flags of a command line on top; None and () are silence. Where a value came from stays as it was."""
        return replace(self, **read_all(spoken(flags), "the command line"))

    def changed(self, origin: str, **values: Any) -> Settings:
        """These settings with other values, which come from `origin`."""
        return replace(self, **values, origins={**self.origins, **dict.fromkeys(values, origin)})

    @classmethod
    def recorded(cls, values: Mapping[str, Any], conditions: tuple[Condition, ...], origin: str) -> Settings:
        """Settings as a manifest kept them: setting → JSON value. Those it does not have, or has as null, are the defaults.

        Raises:
            StoreError: a value is not one that the setting can have.
        """
        there = {name: values[name] for name in keys() if values.get(name) is not None}
        try:
            read = read_all(there, origin)
        except UsageError as error:
            raise StoreError(error.what, mend="Restore run.json from a copy.") from error
        return cls(**read, conditions=conditions, origins=dict.fromkeys(keys(), origin))


@cache
def keys() -> Mapping[str, Key]:
    """Setting → how it is read, in the order of declaration."""
    hints = get_type_hints(Settings)
    found = {}
    for one in fields(Settings):
        if not one.metadata:
            continue
        said = {key: value for key, value in one.metadata.items() if value is not None}
        shape = {"flag": "--" + one.name.replace("_", "-"), "read": None, "kind": _parsed(hints[one.name]), **said}
        shape["read"] = shape["read"] or reader_of(hints[one.name])
        found[one.name] = Key(name=one.name, default=one.default, **shape)
    return MappingProxyType(found)


def _parsed(hint: Any) -> Any:
    """The type that the parser makes of a flag: of several values a list, of one that may be None the value's own."""
    return {tuple[str, ...]: list[str], tuple[float, ...]: list[float], str | None: str, int | None: int, float | None: float}.get(
        hint, hint
    )


def spoken(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those flags that the command line gave."""
    return {name: value for name, value in flags.items() if value is not None and value not in ((), [])}


def read_all(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Setting → value of what one source says. `UsageError` names the source and the setting."""
    read = {}
    for name, value in found.items():
        if name not in keys():
            hint = did_you_mean(name, [*keys(), "conditions"]).rstrip() or f"Known: {', '.join(keys())}, conditions."
            raise UsageError(f"{where}: setting {name!r} does not exist", mend=hint)
        try:
            read[name] = keys()[name].read(value)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{where}: {name} is {value!r}, but {error}") from None
    return read
