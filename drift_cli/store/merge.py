"""How a run may grow: it may gain conditions, transcripts, cells, samples, axes measured later and epochs.

Anything else that differs would make its results incomparable, and is refused with the difference shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from drift_cli.errors import StoreError
from drift_cli.spec import RunSpec, Transcript
from drift_cli.store.epoch import Epoch
from drift_cli.store.manifest import AxisEntry, CellPlan, Imported, Manifest


def merge(old: Manifest, new: Manifest) -> Manifest:
    """The run `old` as `new` asks for it.

    It may gain conditions, transcripts, cells, samples, measured axes and epochs (one that is known is the same epoch); settings that are known stay.

    Raises:
        StoreError: something else differs. The message lists every difference, stored and asked.
    """
    found = [*_differences(old, new)]
    if found:
        lines = "".join(f"\n  {field}: stored {stored}, asked {asked}" for field, stored, asked in found)
        raise StoreError(f"run {old.spec.id} is not what is asked for:{lines}", mend=_mend(old, new, [field for field, _, _ in found]))
    samples = {plan.cell: plan.samples for plan in old.cells}
    for plan in new.cells:
        samples[plan.cell] = max(plan.samples, samples.get(plan.cell, 0))
    known = {entry.name for entry in (*old.axes, *old.measured)}
    return replace(
        old,
        conditions={**new.conditions, **old.conditions},
        transcripts={**new.transcripts, **old.transcripts},
        cells=tuple(CellPlan(cell, number) for cell, number in samples.items()),
        measured=(*old.measured, *(entry for entry in new.measured if entry.name not in known)),
        template_adds={**new.template_adds, **old.template_adds},
        settings={**new.settings, **old.settings},
        epochs=_epochs(old.epochs, new.epochs),
        imported=_imported(old.imported, new.imported),
        plan=old.plan or new.plan,
    )


def _mend(old: Manifest, new: Manifest, differing: list[str]) -> str:
    """What to do instead. Another axis, or the same at another layer, needs neither a new run nor the model where the layer is stored."""
    general = "Use another --name for a new run, or put it back as stored."
    if "axes" not in differing or not set(differing) <= {"axes", "layers"} or len(new.axes) != 1 or not old.layers:
        return general
    (entry,) = new.axes
    if any(known.axis == entry.name and known.digest != entry.digest for known in (*old.axes, *old.measured)):
        return general
    layer = entry.layer if entry.layer in old.layers else old.layers[0]
    rest = "" if layer == entry.layer else f" (it stores no residual means of layer {entry.layer})"
    return (
        "A run keeps the axis that it was begun with; a new run needs another --name. But what is stored can be measured on another axis or at another "
        f"layer without the model: drift measure {old.spec.id} --axis {entry.name} --layer {layer}{rest}"
    )


def _epochs(old: tuple[Epoch, ...], new: tuple[Epoch, ...]) -> tuple[Epoch, ...]:
    if new[: len(old)] == old:
        return new
    for epoch in new:
        old = old if epoch in old else (*old, epoch)
    return old


def _imported(old: Imported | None, new: Imported | None) -> Imported | None:
    return old if old is None or new is None else replace(old, labels={**new.labels, **old.labels})


_Difference = tuple[str, str, str]


def spec_differences(old: RunSpec, new: RunSpec) -> Iterator[_Difference]:
    """Field, stored, asked, for everything that makes two runs different ones, their names aside."""
    same = ("model",) if old.by_content and old.revision == new.revision else ()  # the folder has another name now
    yield from _fields("", old, new, but=("name", "chat", "sampling", *same))
    yield from _fields("chat.", old.chat, new.chat)
    yield from _fields("sampling.", old.sampling, new.sampling)


def _differences(old: Manifest, new: Manifest) -> Iterator[_Difference]:
    """Field, stored, asked, for everything that makes the two incomparable."""
    yield from _one("name", old.spec.name, new.spec.name)
    yield from spec_differences(old.spec, new.spec)
    if new.plan is not None and old.plan is not None:
        yield from _one("plan", old.plan.digest, new.plan.digest)
    yield from _one("layers", old.layers, new.layers)
    yield from _one("pool", old.pool, new.pool)
    yield from _one("segments (reasoning apart from the answer)", old.segments, new.segments)
    yield from _fields("model.", old.model, new.model, but=("note", "adapter"))
    yield from _fields("imported.", old.imported, new.imported, but=("labels",))
    yield from _shared("imported.labels", *(manifest.imported.labels if manifest.imported else {} for manifest in (old, new)))
    yield from _one("axes", *(", ".join(_spelled(entry) for entry in manifest.axes) for manifest in (old, new)))
    yield from _shared("axes", *({entry.name: _spelled(entry) for entry in found} for found in ((*old.axes, *old.measured), new.measured)))
    yield from _shared("transcripts", *({name: _said(t) for name, t in m.transcripts.items()} for m in (old, new)))
    for name in (name for name in new.conditions if name in old.conditions):
        yield from _fields(f"condition {name}: ", old.conditions[name], new.conditions[name])
        yield from _one(f"condition {name}: the template's own prompt", old.template_adds.get(name), new.template_adds.get(name))


def _said(transcript: Transcript) -> str:
    """A transcript's user turns, for a comparison."""
    return "\n\n".join(transcript.users) if transcript.user is None else f"{transcript.total} turns of {transcript.user}"


def _spelled(entry: AxisEntry) -> str:
    return f"{entry.name} at layer {entry.layer} ({entry.digest[:12]})"


def _fields(prefix: str, old: Any, new: Any, but: tuple[str, ...] = ()) -> Iterator[_Difference]:
    if old is None or new is None:
        yield from _one(prefix.rstrip("."), old, new)
        return
    for field_ in fields(old):
        if field_.name not in but:
            yield from _one(prefix + field_.name, getattr(old, field_.name), getattr(new, field_.name))


def _shared(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[_Difference]:
    for name in sorted(old.keys() & new.keys()):
        yield from _one(f"{what}.{name if name.isprintable() else repr(name)}", old[name], new[name])


def _one(what: str, old: object, new: object) -> Iterator[_Difference]:
    if old != new:
        at = 0
        if isinstance(old, str) and isinstance(new, str):
            at = next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        yield what, _shortened(old, at), _shortened(new, at)


def _shortened(value: object, at: int) -> str:
    """A value for a message; of a long text, what is around character `at`, where the difference begins."""
    if value is None:
        return "none"
    if not isinstance(value, str) or len(value) <= 80:
        return repr(value)
    first, last = max(0, at - 20), at + 50
    return ("…" if first else "") + repr(value[first:last]) + ("…" if last < len(value) else "")
