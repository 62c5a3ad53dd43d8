"""From settings to something that can run: the model's card, the chat format, the axis, and the manifest that names the run. No weights yet."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_cli import axes as axis_files
from drift_cli import models, transcripts
from drift_cli.axes import Axis
from drift_cli.chat import Chat, chat_for
from drift_cli.config import Settings, home
from drift_cli.engine.contract import ENGINES
from drift_cli.errors import UsageError
from drift_cli.existing import as_recorded, check_places
from drift_cli.models import ModelCard
from drift_cli.models.identity import Say
from drift_cli.spec import Cell, Condition, RunSpec, Sampling, Transcript
from drift_cli.store.manifest import AxisEntry, CellPlan, Manifest, ModelFacts, Setting, merge

if TYPE_CHECKING:
    from drift_cli.store.run import Run

_DEPTH = 0.65
"""Where `layers = "auto"` looks when no axis says: this share of the way up, as the experiment of the preset olmo3-003b did (21 of 32)."""


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs but the weights."""

    manifest: Manifest
    card: ModelCard
    chat: Chat
    axis: Axis | None
    device: str
    notices: tuple[str, ...]
    """What was decided for the user, one sentence each."""


def axes_folder() -> Path:
    """Where imported axes live: `data/axes` at home."""
    return home() / "data" / "axes"


def card_of(settings: Settings, say: Say | None = None) -> ModelCard:
    """The model that the settings name, with the adapter that they name. `say` is told what takes long."""
    return models.describe(settings["model"], settings["revision"], adapter=settings["adapter"], say=say)


def prepare(settings: Settings, scripts: Sequence[Transcript] | None = None, say: Say | None = None) -> Experiment:
    """Settle everything that the settings ask for; every problem that can be seen before the weights are read is raised here.

    `scripts` are transcripts that come from no file; where given, the settings name none. `say` is told what takes long.
    """
    _check(settings)
    card = card_of(settings, say)
    scripts = tuple(_by_name(_load_transcripts(settings) if scripts is None else scripts).values())
    plans = tuple(
        CellPlan(Cell(script.name, condition.name, temperature), settings["samples"])
        for script in scripts
        for condition in settings.conditions
        for temperature in settings["temperatures"]
    )
    axis = None if settings["axis"] is None else axis_files.find(settings["axis"], axes_folder())
    return _assemble(settings, card, scripts, settings.conditions, plans, axis)


def _check(settings: Settings) -> None:
    for key in ("samples", "batch"):
        if settings[key] is not None and settings[key] < 1:
            raise UsageError(f"{key} is {settings[key]}", mend="Use at least 1.")
    if settings["engine"] not in ENGINES:
        raise UsageError(f"engine {settings['engine']!r} does not exist", mend=f"Use one of {', '.join(ENGINES)}.")
    try:
        datetime.date.fromisoformat(settings["chat_date"])
    except ValueError:
        raise UsageError(f"chat_date is {settings['chat_date']!r}", mend="Use a day such as 2026-01-31.") from None


def reopen(run: Run, settings: Settings, say: Say | None = None) -> Experiment:
    """The experiment of a run that exists, as its manifest has it; `settings` was read back from the manifest. `say` is told what takes long.

    Raises:
        DriftError: the model is not where it was.
        StoreError: the model, its chat template or anything else is no longer what it was; the difference is shown.
    """
    manifest = run.manifest
    _check(settings)
    if manifest.imported is not None:
        raise UsageError(f"run {run.paths.run_id} was imported and cannot be gone on with", mend="Start a new one: drift generate")
    check_places(run.paths.run_id, settings)
    here = Path(settings["model"]).expanduser().exists()
    found = models.describe(settings["model"], None if here else manifest.spec.revision, adapter=settings["adapter"], say=say)
    card, notice = as_recorded(found, manifest.spec)
    axis = axis_files.load(run.paths.axis(manifest.axes[0].name)) if manifest.axes else None
    conditions = tuple(manifest.conditions.values())
    made = _assemble(settings, card, tuple(manifest.transcripts.values()), conditions, manifest.cells, axis, name=manifest.spec.name)
    merge(manifest, made.manifest)
    return made if notice is None else replace(made, notices=(notice, *made.notices))


def settings_of(manifest: Manifest) -> Settings:
    """A run's settings as its manifest recorded them."""
    from drift_cli.settings import KEYS

    values: dict[str, Any] = {}
    for key, entry in KEYS.items():
        recorded = manifest.settings.get(key)
        values[key] = entry.default if recorded is None or recorded.value is None else entry.read(recorded.value)
    origins = dict.fromkeys(KEYS, f"run {manifest.spec.id}")
    return Settings(values, origins, tuple(manifest.conditions.values()))


def _assemble(
    settings: Settings,
    card: ModelCard,
    scripts: Sequence[Transcript],
    conditions: Sequence[Condition],
    plans: tuple[CellPlan, ...],
    axis: Axis | None,
    name: str | None = None,
) -> Experiment:
    chat = chat_for(card.tokenizer, settings["chat"], date=settings["chat_date"], options=settings["chat_options"])
    for condition in conditions:
        for script in scripts:
            chat.check(condition, script)
    card = _with_end(card, chat)
    device = models.choose_device(settings["device"])
    layer, layers = _layers(settings, card, axis)
    if axis is not None:
        axis.check_model(card.name, card.width, card.layers, revision=card.identity)
        axis.at(layer)
    spec = RunSpec(
        name=name or settings["name"] or plain_name((card.name if card.adapter is None else card.adapter.name).rsplit("/", 1)[-1]),
        model=card.name,
        revision=card.revision,
        dtype=models.choose_dtype(settings["dtype"], device),
        chat=chat.format,
        sampling=_sampling(settings, card),
        max_new_tokens=settings["max_new_tokens"],
        seed=settings["seed"],
        adapter=None if card.adapter is None else card.adapter.digest,
    )
    adds = {condition.name: text for condition in conditions if (text := chat.adds(condition)) is not None}
    manifest = Manifest(
        spec=spec,
        layers=layers,
        conditions={c.name: c for c in conditions},
        transcripts=_by_name(scripts),
        cells=plans,
        axes=() if axis is None else (AxisEntry(axis.name, layer, axis.digest, axis.note),),
        model=_facts(card),
        template_adds=adds,
        settings=_recorded(settings, card, spec),
        segments=chat.segmented,
    )
    return Experiment(manifest, card, chat, axis, device, _notices(card, adds, axis, layer, settings))


def _with_end(card: ModelCard, chat: Chat) -> ModelCard:
    """A reply also ends where the chat format closes it, should the model's own list of end tokens not have that token."""
    return replace(card, end_ids=chat.end_ids(card.end_ids))


def _sampling(settings: Settings, card: ModelCard) -> Sampling:
    asked = {key: settings[key] if settings[key] is not None else getattr(card, key) for key in ("top_p", "top_k", "min_p")}
    given = {key: value for key, value in asked.items() if value is not None}
    return Sampling(**given, independent_noise=settings["independent_noise"])


def _layers(settings: Settings, card: ModelCard, axis: Axis | None) -> tuple[int, tuple[int, ...]]:
    """The layer that is projected, and the layers whose residual means are stored."""
    layer = settings["layer"]
    if layer is None:
        layer = axis.layers[0] if axis is not None and len(axis.layers) == 1 else round(_DEPTH * card.layers)
    asked = settings["layers"]
    layers = {"auto": (layer,), "all": tuple(range(card.layers + 1))}.get(asked) if isinstance(asked, str) else tuple(asked)
    assert layers is not None
    if axis is not None and layer not in layers:
        layers = (*layers, layer)
    beyond = [found for found in (*layers, layer) if not 0 <= found <= card.layers]
    if beyond:
        raise UsageError(f"layer {beyond[0]} does not exist in {card.name}", mend=f"It has layers 0 (embeddings) to {card.layers}.")
    return layer, layers


def _facts(card: ModelCard) -> ModelFacts:
    architecture = (getattr(card.config, "architectures", None) or [type(card.config).__name__])[0]
    return ModelFacts(
        architecture=architecture,
        layers=card.layers,
        width=card.width,
        context=card.context,
        parameters=models.count_parameters(card),
        end_ids=tuple(sorted(card.end_ids)),
        note=card.note,
        quantization=None if card.quantization is None else card.quantization.text,
        adapter=None if card.adapter is None else card.adapter.name,
    )


def _by_name(scripts: Sequence[Transcript]) -> Mapping[str, Transcript]:
    named: dict[str, Transcript] = {}
    for script in scripts:
        if named.setdefault(script.name, script).digest != script.digest:
            raise UsageError(f"two different transcripts are called {script.name}", mend="Rename one of the files.")
    return named


def _load_transcripts(settings: Settings) -> tuple[Transcript, ...]:
    if not settings["transcripts"]:
        names = ", ".join(transcripts.builtin_names())
        raise UsageError("no transcript was given", mend=f"Name a file, or one of drift's own ({names}): --transcript NAME")
    return tuple(transcripts.load(source, strip_private=settings["strip_private"]) for source in settings["transcripts"])


def _recorded(settings: Settings, card: ModelCard, spec: RunSpec) -> dict[str, Setting]:
    """Every setting as the manifest keeps it; what the model decided is recorded as the model's."""
    made = {}
    for key, value in settings.values.items():
        if key == "adapter" and value is None:
            continue  # runs without one are recorded as they were before there were any
        made[key] = Setting(list(value) if isinstance(value, tuple) else value, settings.origin(key))
    if card.folder is not None or card.adapter is not None:
        made["model"] = Setting(str(card.folder or card.name), settings.origin("model"))
    if card.adapter is not None:
        made["adapter"] = Setting(str(card.adapter.folder), settings.origin("adapter" if settings["adapter"] else "model"))
    for key in ("top_p", "top_k", "min_p"):
        own = getattr(card, key)
        if settings[key] is None:
            made[key] = Setting(getattr(spec.sampling, key), "default" if own is None else "the model's generation_config")
    return made


def _notices(card: ModelCard, adds: Mapping[str, str], axis: Axis | None, layer: int, settings: Settings) -> tuple[str, ...]:
    said = list(card.notices())
    if card.ignored:
        said.append(
            f"not applied: {', '.join(card.ignored)} of the model's generation_config (drift samples with temperature, top-p, top-k, min-p)"
        )
    for text in dict.fromkeys(adds.values()):
        names = ", ".join(name for name, added in adds.items() if added == text)
        said.append(f"the chat template adds a prompt of its own in {names}: {_short(text)}")
    if axis is None:
        said.append(f"no axis was given: residual means are stored, and `drift measure --axis A` projects them later (layer {layer})")
    elif settings["layer"] is None and len(axis.layers) > 1:
        said.append(
            f"axis {axis.name} has {len(axis.layers)} layers: projecting at layer {layer}, {_DEPTH * 100:.0f} % of the way up (--layer chooses)"
        )
    if axis is not None and axis.note:
        said.append(f"axis {axis.name}: {axis.note}")
    return tuple(said)


def _short(text: str, length: int = 90) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def plain_name(text: str) -> str:
    """A name made from any text: lower case, and only what may stand in a file name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60] or "run"
