"""From settings to something that can run: the model's card, the chat format, the axis, and the manifest that names the run. No weights yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from drift_cli import models, transcripts
from drift_cli.analysis.missing import commands_for
from drift_cli.axis import Axis
from drift_cli.chat import Chat, chat_for
from drift_cli.chat.conversation import stand_in
from drift_cli.chat.placebo import filled
from drift_cli.errors import UsageError
from drift_cli.measuring.axis_layer import by_depth
from drift_cli.measuring.axis_use import Subject, Use, named, use
from drift_cli.models import ModelCard
from drift_cli.models.axes import axes_for, find
from drift_cli.models.identity import Say
from drift_cli.pool import MEAN, Pool
from drift_cli.running.existing import as_recorded, check_places
from drift_cli.settings.config import axes_folder
from drift_cli.settings.settings import Settings, keys
from drift_cli.spec import Cell, Condition, RunSpec, Sampling, Transcript, plain_name
from drift_cli.store.axes import read_axis
from drift_cli.store.line import LINES
from drift_cli.store.manifest import CellPlan, Manifest, ModelFacts, Setting
from drift_cli.store.merge import merge

if TYPE_CHECKING:
    from drift_cli.store.run import Run
    from drift_cli.transcripts import Loaded


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
    lacking: tuple[str, ...] = ()
    """What statistics, pictures and the report will lack, and what to do about it, one sentence each."""


def card_of(settings: Settings, say: Say | None = None) -> ModelCard:
    """The model that the settings name, with the adapter that they name. `say` is told what takes long."""
    return models.describe(settings.model, settings.revision, adapter=settings.adapter, say=say)


def prepare(settings: Settings, scripts: Sequence[Transcript] | None = None, say: Say | None = None) -> Experiment:
    """Settle everything that the settings ask for; every problem that can be seen before the weights are read is raised here.

    `scripts` are transcripts that come from no file; where given, the settings name none. `say` is told what takes long.
    """
    settings = with_layer(settings)
    card = card_of(settings, say)
    loaded = _load_transcripts(settings) if scripts is None else ()
    scripts = tuple(_by_name([one.transcript for one in loaded] if scripts is None else scripts).values())
    plans = tuple(
        CellPlan(Cell(script.name, condition.name, temperature), settings.samples)
        for script in scripts
        for condition in settings.conditions
        for temperature in settings.temperatures
    )
    axis = None if settings.axis is None else find(settings.axis, axes_folder())
    made = _assemble(settings, card, scripts, settings.conditions, plans, axis)
    said = tuple(f"transcript {one.transcript.name}: {notice}" for one in loaded for notice in one.notices)
    return replace(made, notices=(*said, *made.notices))


def with_layer(settings: Settings) -> Settings:
    """The settings with the layer that an axis such as `demo@3` names."""
    if settings.axis is None:
        return settings
    axis, layer = named(settings.axis, settings.layer)
    if axis == settings.axis:
        return settings
    return replace(settings, axis=axis, layer=layer, origins={**settings.origins, "layer": settings.origin("axis")})


def reopen(run: Run, settings: Settings, say: Say | None = None) -> Experiment:
    """The experiment of a run that exists, as its manifest has it; `settings` was read back from the manifest. `say` is told what takes long.

    Raises:
        DriftError: the model is not where it was.
        StoreError: the model, its chat template or anything else is no longer what it was; the difference is shown.
    """
    manifest = run.manifest
    if manifest.imported is not None:
        raise UsageError(f"run {run.paths.run_id} was imported and cannot be gone on with", mend="Start a new one: drift generate")
    check_places(run.paths.run_id, settings)
    here = Path(settings.model).expanduser().exists()
    found = models.describe(settings.model, None if here else manifest.spec.revision, adapter=settings.adapter, say=say)
    card, notice = as_recorded(found, manifest.spec)
    axis = read_axis(run.paths, manifest.axes[0]) if manifest.axes else None
    conditions = tuple(manifest.conditions.values())
    layer = manifest.axes[0].layer if manifest.axes else None
    made = _assemble(
        settings, card, tuple(manifest.transcripts.values()), conditions, manifest.cells, axis, name=manifest.spec.name, kept=layer
    )
    merge(manifest, made.manifest)
    return made if notice is None else replace(made, notices=(notice, *made.notices))


def settings_of(manifest: Manifest) -> Settings:
    """A run's settings as its manifest recorded them."""
    values = {key: recorded.value for key, recorded in manifest.settings.items()}
    return Settings.recorded(values, tuple(manifest.conditions.values()), f"run {manifest.spec.id}")


def _assemble(
    settings: Settings,
    card: ModelCard,
    scripts: Sequence[Transcript],
    conditions: Sequence[Condition],
    plans: tuple[CellPlan, ...],
    axis: Axis | None,
    name: str | None = None,
    kept: int | None = None,
) -> Experiment:
    chat = chat_for(card.tokenizer, settings.chat, date=settings.chat_date, options=settings.chat_options)
    conditions = filled(conditions, {one.name: one for one in conditions}, card.tokenizer)
    for condition in conditions:
        for script in scripts:
            chat.check(condition, stand_in(script))
    card = _with_end(card, chat)
    device = models.choose_device(settings.device)
    used = None
    if axis is not None:
        subject = Subject(card.name, card.identity, card.width, card.layers)
        used = use(axis, subject, settings.layer, foreign=settings.foreign_axis, kept=kept)
    layers = _layers(settings, card, used)
    spec = _spec(settings, card, chat, device, name)
    adds = {condition.name: text for condition in conditions if (text := chat.adds(condition)) is not None}
    manifest = Manifest(
        spec=spec,
        layers=layers,
        conditions={c.name: c for c in conditions},
        transcripts=_by_name(scripts),
        cells=plans,
        axes=() if used is None else (used.entry,),
        model=_facts(card),
        template_adds=adds,
        settings=_recorded(settings, card, spec, used),
        lines=LINES,
        pool=settings.pool,
        segments=chat.segmented,
    )
    said = (*_notices(card, adds, Pool.of(settings.pool)), *(used.notices() if used is not None else ()))
    return Experiment(manifest, card, chat, axis, device, said, _lacking(manifest) if used is None else ())


def _spec(settings: Settings, card: ModelCard, chat: Chat, device: str, name: str | None) -> RunSpec:
    return RunSpec(
        name=name or settings.name or plain_name((card.name if card.adapter is None else card.adapter.name).rsplit("/", 1)[-1]),
        model=card.name,
        revision=card.revision,
        dtype=models.choose_dtype(settings.dtype.value, device),
        chat=chat.format,
        sampling=_sampling(settings, card),
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        adapter=None if card.adapter is None else card.adapter.digest,
    )


def _with_end(card: ModelCard, chat: Chat) -> ModelCard:
    """A reply also ends where the chat format closes it, should the model's own list of end tokens not have that token."""
    return replace(card, end_ids=chat.end_ids(card.end_ids))


def _sampling(settings: Settings, card: ModelCard) -> Sampling:
    asked = {key: getattr(card, key) if (given := getattr(settings, key)) is None else given for key in ("top_p", "top_k", "min_p")}
    given = {key: value for key, value in asked.items() if value is not None}
    return Sampling(**given, independent_noise=settings.independent_noise)


def _layers(settings: Settings, card: ModelCard, used: Use | None) -> tuple[int, ...]:
    """The layers whose residual means are stored, the one that is projected among them."""
    layer = used.chosen.layer if used is not None else settings.layer if settings.layer is not None else by_depth(card.layers)
    asked = settings.layers
    layers = {"auto": (layer,), "all": tuple(range(card.layers + 1))}.get(asked) if isinstance(asked, str) else tuple(asked)
    assert layers is not None
    if used is not None and layer not in layers:
        layers = (*layers, layer)
    beyond = [found for found in (*layers, layer) if not 0 <= found <= card.layers]
    if beyond:
        raise UsageError(f"layer {beyond[0]} does not exist in {card.name}", mend=f"It has layers 0 (embeddings) to {card.layers}.")
    return layers


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


def _load_transcripts(settings: Settings) -> tuple[Loaded, ...]:
    if not settings.transcripts:
        names = ", ".join(transcripts.builtin_names())
        raise UsageError("no transcript was given", mend=f"Name a file, or one of drift's own ({names}): --transcript NAME")
    return tuple(transcripts.read(source, strip_private=settings.strip_private, turns=settings.turns) for source in settings.transcripts)


def _recorded(settings: Settings, card: ModelCard, spec: RunSpec, used: Use | None) -> dict[str, Setting]:
    """Every setting as the manifest keeps it; what the model or the axis decided is recorded as theirs."""
    made = {}
    for key, value in settings.values.items():
        if not keys()[key].recorded and value == keys()[key].default:
            continue
        made[key] = Setting(list(value) if isinstance(value, tuple) else value, settings.origin(key))
    if card.folder is not None or card.adapter is not None:
        made["model"] = Setting(str(card.folder or card.name), settings.origin("model"))
    if card.adapter is not None:
        made["adapter"] = Setting(str(card.adapter.folder), settings.origin("adapter" if settings.adapter else "model"))
    for key in ("top_p", "top_k", "min_p"):
        own = getattr(card, key)
        if getattr(settings, key) is None:
            made[key] = Setting(getattr(spec.sampling, key), "default" if own is None else "the model's generation_config")
    if used is not None and used.was_chosen:
        made["layer"] = Setting(used.chosen.layer, used.chosen.why)
    return made


def _notices(card: ModelCard, adds: Mapping[str, str], pool: Pool) -> tuple[str, ...]:
    said = list(card.notices())
    if pool != MEAN:
        said.append(f"a reply is measured by {pool.words} (--pool {pool}), not by the mean of all its tokens")
    if card.ignored:
        said.append(
            f"not applied: {', '.join(card.ignored)} of the model's generation_config (drift samples with temperature, top-p, top-k, min-p)"
        )
    for text in dict.fromkeys(adds.values()):
        names = ", ".join(name for name, added in adds.items() if added == text)
        said.append(f"the chat template adds a prompt of its own in {names}: {_short(text)}")
    return tuple(said)


def _lacking(manifest: Manifest) -> tuple[str, ...]:
    """What becomes of a run without an axis."""
    layers, here = manifest.layers, axes_for(manifest.spec.model, axes_folder())
    use_now = f" (for this model there is: {', '.join(here)}; --axis {here[0]} projects on it from the beginning)" if here else ""
    said = [
        f"no axis{use_now}: `drift stats`, `plot` and `report` will have nothing to show of this run before this is done: {commands_for(manifest)}"
    ]
    if len(layers) == 1:
        said.append(
            f"residual means of layer {layers[0]} alone are stored, so that no other layer can be measured later: --layers all stores every layer"
        )
    return tuple(said)


def _short(text: str, length: int = 90) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")
