"""Where every setting comes from: flag, environment, drift.toml, preset, default, in this order. No torch.

A setting `max_new_tokens` is the flag `--max-new-tokens`, the variable `DRIFT_MAX_NEW_TOKENS` and the key `max_new_tokens`; whichever is found first
counts, and the manifest records which one that was.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from drift_cli.errors import UsageError, did_you_mean
from drift_cli.files import read_regular
from drift_cli.settings.settings import PRESETS, Settings, keys, read_all, spoken
from drift_cli.spec import Condition, Placement

CONFIG_FILE = "drift.toml"
_LIMIT = 4 << 20
"""Bytes: system prompts stand in it."""
_CONDITION = ("placebo_of", "placement", "system", "variant_of", "variants")
"""What a condition's table may hold."""


@dataclass(frozen=True)
class _Layer:
    """One source of settings: how it calls itself, and what it sets."""

    origin: Callable[[str], str]
    values: Mapping[str, Any]
    conditions: Mapping[str, Condition]


def home() -> Path:
    """Where drift reads drift.toml and writes checkpoints/, data/ and images/: `DRIFT_HOME`, else the current folder."""
    return Path(os.environ.get("DRIFT_HOME") or ".")


def axes_folder() -> Path:
    """Where axes lie that were built or imported: `data/axes` at home."""
    return home() / "data" / "axes"


def store_folder(asked: Path | None = None) -> Path:
    """The store: `--store`, else `DRIFT_STORE`, else `checkpoints/` at home."""
    if asked is not None:
        return asked
    named = os.environ.get("DRIFT_STORE")
    return Path(named) if named else home() / "checkpoints"


def preset_text(name: str) -> str:
    """A preset as the text of its drift.toml; `UsageError` lists the names."""
    if name not in PRESETS:
        raise UsageError(f"preset {name!r} does not exist", mend=f"{did_you_mean(name, PRESETS)}There are: {', '.join(PRESETS)}.")
    return resources.files("drift_cli.settings.presets").joinpath(f"{name}.toml").read_text(encoding="utf-8")


def preset_settings(name: str) -> Settings:
    """A preset as it comes, whatever drift.toml and the environment say."""
    layer = _toml_layer(preset_text(name), f"preset {name}", f"preset {name}")
    origins = {key: layer.origin(key) for key in layer.values}
    return Settings(**{**layer.values, "preset": name}, origins=origins, conditions=tuple(layer.conditions.values()))


def resolve(
    flags: Mapping[str, Any],
    *,
    chosen: Iterable[str] = (),
    ad_hoc: Condition | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Settle every setting.

    Args:
        flags: what the command line gave, None or () where it was silent.
        chosen: names of the conditions asked for; all that drift.toml, else the preset, defines where empty.
        ad_hoc: a condition defined on the command line; it is the one chosen.
        config: a drift.toml to read instead of the one at home.
        environment: instead of `os.environ`.
    """
    env = os.environ if environment is None else environment
    layers = [
        _Layer(lambda key: f"flag {keys()[key].option}", read_all(spoken(flags), "the command line"), {}),
        _Layer(lambda key: f"environment {keys()[key].variable}", read_all(_from_environment(env), "the environment"), {}),
        _config_layer(config),
    ]
    preset = _first(layers, "preset")
    if preset is None and _first(layers, "model") in (None, "demo"):
        preset = "demo"
    if preset is not None:
        layers.append(_toml_layer(preset_text(preset), f"preset {preset}", f"preset {preset}"))
    settled = {key: next((layer for layer in layers if key in layer.values), None) for key in keys()}
    if _of_another_model(layers, settled):
        settled["revision"] = None
    values = {key: layer.values[key] for key, layer in settled.items() if layer is not None}
    origins = {key: layer.origin(key) for key, layer in settled.items() if layer is not None}
    return Settings(**{**values, "preset": preset}, origins=origins, conditions=_choose(layers, list(chosen), ad_hoc))


def _of_another_model(layers: list[_Layer], settled: Mapping[str, _Layer | None]) -> bool:
    """Whether the revision was named by a weaker source than the model, and for a model of its own: a revision is of the model that it is named with."""
    model, revision = settled["model"], settled["revision"]
    if model is None or revision is None or layers.index(revision) <= layers.index(model):
        return False
    return bool(revision.values.get("model") != model.values["model"])


def _from_environment(env: Mapping[str, str]) -> dict[str, str]:
    return {name: env[key.variable] for name, key in keys().items() if env.get(key.variable)}


def _first(layers: list[_Layer], key: str) -> Any:
    return next((layer.values[key] for layer in layers if key in layer.values), None)


def _config_layer(config: Path | None) -> _Layer:
    path = config or home() / CONFIG_FILE
    if not os.path.lexists(path):
        if config is not None:
            raise UsageError(f"{config} does not exist", mend="`drift init` writes a drift.toml to edit.")
        return _Layer(lambda _: CONFIG_FILE, {}, {})
    try:
        text = read_regular(path, _LIMIT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return _toml_layer(text, str(path), CONFIG_FILE)


def _toml_layer(text: str, where: str, origin: str) -> _Layer:
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where} is not valid TOML: {error}") from error
    conditions = found.pop("conditions", {})
    if not isinstance(conditions, dict):
        raise UsageError(f"{where}: conditions must be tables such as [conditions.simple]")
    made = {one.name: one for name, entry in conditions.items() for one in _wordings(name, entry, where)}
    _check_variants(made, where)
    return _Layer(lambda _: origin, read_all(found, where), made)


def _wordings(name: str, entry: Any, where: str) -> list[Condition]:
    """A condition and, behind it, other wordings of its prompt: `simple`, `simple.2`, `simple.3`."""
    first = _condition(name, entry, where)
    texts = entry.get("variants", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UsageError(
            f"{where}: [conditions.{name}] variants must be a list of texts", mend='variants = ["Another wording.", "A third."]'
        )
    if texts and first.system is None:
        raise UsageError(f"{where}: [conditions.{name}] has variants, but no system prompt of which they are other wordings")
    return [first, *(replace(first, name=f"{name}.{number}", system=text, variant_of=name) for number, text in enumerate(texts, 2))]


def _check_variants(made: Mapping[str, Condition], where: str) -> None:
    """Refuse references to conditions that are not there."""
    for one in made.values():
        if one.placebo_of is not None and (one.placebo_of not in made or made[one.placebo_of].system is None):
            raise UsageError(
                f"{where}: [conditions.{one.name}] is a placebo of {one.placebo_of!r}, which has no system prompt there",
                mend="Name the condition whose prompt it is to be as long as.",
            )
        if one.variant_of is not None and (one.variant_of not in made or made[one.variant_of].variant_of is not None):
            raise UsageError(
                f"{where}: [conditions.{one.name}] is a variant of {one.variant_of!r}, which is no condition of its own there",
                mend="Name the condition whose prompt has the first wording.",
            )


def _condition(name: str, entry: Any, where: str) -> Condition:
    allowed = f"{where}: [conditions.{name}] may hold only `system` (text), `placement`, `variants` (texts), `variant_of` and `placebo_of` (conditions)"
    if not isinstance(entry, dict):
        raise UsageError(allowed)
    for key in (key for key in entry if key not in _CONDITION):
        raise UsageError(f"{allowed}, not {key!r}", mend=did_you_mean(key, _CONDITION).rstrip() or None)
    system = entry.get("system")
    if system is not None and (not isinstance(system, str) or not system.strip()):
        raise UsageError(f"{where}: [conditions.{name}] system must be a text; leave it out for none")
    variant_of = entry.get("variant_of")
    if variant_of is not None and (not isinstance(variant_of, str) or "variants" in entry):
        raise UsageError(f"{where}: [conditions.{name}] variant_of must be the name of a condition, and does not go with variants")
    placebo_of = entry.get("placebo_of")
    if placebo_of is not None and (not isinstance(placebo_of, str) or len(entry) > 1):
        raise UsageError(
            f"{where}: [conditions.{name}] placebo_of must be the name of a condition, alone: text and placement follow from that condition's"
        )
    return Condition(name, system, placement(entry.get("placement", "start"), f"{where}: [conditions.{name}]"), variant_of, placebo_of)


def placement(value: Any, where: str) -> Placement:
    """A placement by name; `UsageError` lists the names."""
    try:
        return Placement(value)
    except ValueError:
        names = ", ".join(p.value for p in Placement)
        raise UsageError(f"{where}: placement {value!r} does not exist", mend=f"Use one of {names}.") from None


def _choose(layers: list[_Layer], chosen: list[str], ad_hoc: Condition | None) -> tuple[Condition, ...]:
    known: dict[str, Condition] = {"baseline": Condition("baseline")}
    for layer in reversed(layers):
        known.update(layer.conditions)
    if ad_hoc is not None:
        return (ad_hoc,)
    for name in chosen:
        if name not in known:
            raise UsageError(
                f"condition {name!r} is not defined",
                mend=f'{did_you_mean(name, known)}Defined: {", ".join(known)}. Define it in drift.toml, or here: --condition {name} --system "…".',
            )
    if chosen:
        named = (one for name in chosen for one in (name, *(other.name for other in known.values() if other.variant_of == name)))
        return tuple(known[name] for name in dict.fromkeys(named))
    default = next((layer.conditions for layer in layers if layer.conditions), {"baseline": known["baseline"]})
    return tuple(default.values())
