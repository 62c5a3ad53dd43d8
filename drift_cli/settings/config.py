"""Where every setting comes from: flag, environment, drift.toml, preset, default, in this order. No torch.

A setting `max_new_tokens` is the flag `--max-new-tokens`, the variable `DRIFT_MAX_NEW_TOKENS` and the key `max_new_tokens`; whichever is found first
counts, and the manifest records which one that was.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from drift_cli.errors import UsageError, did_you_mean
from drift_cli.settings.keys import KEYS
from drift_cli.spec import Condition, Placement

CONFIG_FILE = "drift.toml"
PRESETS = ("demo", "olmo3-003b", "smollm2")
_CONDITION = ("placement", "system")
"""What a condition's table may hold."""


@dataclass(frozen=True)
class Settings:
    """Every setting's value and where it came from, and the conditions."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    conditions: tuple[Condition, ...]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def origin(self, key: str) -> str:
        """`flag --samples`, `environment DRIFT_SAMPLES`, `drift.toml`, `preset demo` or `default`."""
        return self.origins[key]


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
    values = {key: layer.values.get(key, entry.default) for key, entry in KEYS.items()}
    origins = {key: layer.origin(key) if key in layer.values else "default" for key in KEYS}
    return Settings({**values, "preset": name}, origins, tuple(layer.conditions.values()))


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
        _Layer(_flag, _read_all(((k, v) for k, v in flags.items() if v not in (None, ())), "the command line"), {}),
        _Layer(_variable, _read_all(_from_environment(env), "the environment"), {}),
        _config_layer(config),
    ]
    preset = _first(layers, "preset")
    if preset is None and _first(layers, "model") in (None, "demo"):
        preset = "demo"
    if preset is not None:
        layers.append(_toml_layer(preset_text(preset), f"preset {preset}", f"preset {preset}"))
    values, origins = {}, {}
    for key, entry in KEYS.items():
        source = next((layer for layer in layers if key in layer.values), None)
        values[key] = entry.default if source is None else source.values[key]
        origins[key] = "default" if source is None else source.origin(key)
    values["preset"] = preset
    _settle_revision(layers, values, origins)
    return Settings(values, origins, _choose(layers, list(chosen), ad_hoc))


def _settle_revision(layers: list[_Layer], values: dict[str, Any], origins: dict[str, str]) -> None:
    """A revision is of the model that it is named with: one that a weaker source names for a model of its own does not count."""
    place = {key: next((n for n, layer in enumerate(layers) if key in layer.values), None) for key in ("model", "revision")}
    of_model, of_revision = place["model"], place["revision"]
    if (
        of_model is not None
        and of_revision is not None
        and of_revision > of_model
        and layers[of_revision].values.get("model") != values["model"]
    ):
        values["revision"], origins["revision"] = KEYS["revision"].default, "default"


def _flag(key: str) -> str:
    return "flag --" + {"transcripts": "transcript", "temperatures": "temperature"}.get(key, key).replace("_", "-")


def _variable(key: str) -> str:
    return f"environment DRIFT_{key.upper()}"


def _from_environment(env: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return ((key, env[f"DRIFT_{key.upper()}"]) for key in KEYS if env.get(f"DRIFT_{key.upper()}"))


def _first(layers: list[_Layer], key: str) -> Any:
    return next((layer.values[key] for layer in layers if key in layer.values), None)


def _read_all(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    read = {}
    for key, value in pairs:
        if key not in KEYS:
            hint = did_you_mean(key, [*KEYS, "conditions"]).rstrip() or f"Known: {', '.join(KEYS)}, conditions."
            raise UsageError(f"{where}: setting {key!r} does not exist", mend=hint)
        try:
            read[key] = KEYS[key].read(value)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{where}: {key} is {value!r}, but {error}") from None
    return read


def _config_layer(config: Path | None) -> _Layer:
    path = config or home() / CONFIG_FILE
    if not path.is_file():
        if config is not None:
            raise UsageError(f"{config} does not exist", mend="`drift init` writes a drift.toml to edit.")
        return _Layer(lambda _: CONFIG_FILE, {}, {})
    try:
        text = path.read_text(encoding="utf-8")
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
    made = {name: _condition(name, entry, where) for name, entry in conditions.items()}
    return _Layer(lambda _: origin, _read_all(found.items(), where), made)


def _condition(name: str, entry: Any, where: str) -> Condition:
    allowed = f"{where}: [conditions.{name}] may hold only `system` (text) and `placement`"
    if not isinstance(entry, dict):
        raise UsageError(allowed)
    for key in (key for key in entry if key not in _CONDITION):
        raise UsageError(f"{allowed}, not {key!r}", mend=did_you_mean(key, _CONDITION).rstrip() or None)
    system = entry.get("system")
    if system is not None and (not isinstance(system, str) or not system.strip()):
        raise UsageError(f"{where}: [conditions.{name}] system must be a text; leave it out for none")
    return Condition(name, system, placement(entry.get("placement", "start"), f"{where}: [conditions.{name}]"))


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
        return tuple(known[name] for name in dict.fromkeys(chosen))
    default = next((layer.conditions for layer in layers if layer.conditions), {"baseline": known["baseline"]})
    return tuple(default.values())
