"""An axis in use: on which model, at which layer, and what there is to say of that. `generate`, `measure` and reference lines settle it here."""

from __future__ import annotations

from dataclasses import dataclass

from drift_cli.axis import Axis, elsewhere
from drift_cli.errors import UsageError
from drift_cli.measuring.axis_layer import Chosen, choose_layer
from drift_cli.names import split_layer
from drift_cli.store.manifest import AxisEntry

KEPT = "as the run has it"


@dataclass(frozen=True)
class Subject:
    """The model that is measured."""

    model: str
    revision: str | None
    width: int
    """Of the residual stream."""
    blocks: int


@dataclass(frozen=True)
class Use:
    """An axis at a layer of a model."""

    axis: Axis
    chosen: Chosen
    subject: Subject
    foreign: str | None
    """The model that the axis was built on, where that is another one."""

    @property
    def entry(self) -> AxisEntry:
        """What a manifest says of it."""
        return AxisEntry(self.axis.name, self.chosen.layer, self.axis.digest, self.axis.note, self.foreign)

    @property
    def was_chosen(self) -> bool:
        """Whether the layer was one of several and nobody named it."""
        return len(self.axis.layers) > 1 and self.chosen.why not in ("asked for", KEPT)

    def notices(self) -> list[str]:
        """What was decided, and what makes the axis doubtful, one sentence each."""
        axis, said = self.axis, []
        if self.was_chosen:
            said.append(
                f"axis {axis.name} has {len(axis.layers)} layers: projecting at layer {self.chosen.layer}, {self.chosen.why} (--layer chooses)"
            )
        said += self._doubts()
        return [*said, f"axis {axis.name}: {axis.note}"] if axis.note else said

    def _doubts(self) -> list[str]:
        axis, subject = self.axis, self.subject
        if self.foreign is not None:
            return [f"{elsewhere(axis.name, self.foreign, subject.model)}: --foreign-axis allows it, and every table says so"]
        if subject.blocks > 1 and axis.layers == tuple(range(subject.blocks)):
            return [
                f"axis {axis.name} has a row for each of the {subject.blocks} blocks of {subject.model} and counts the first as the embeddings. If its "
                "file holds block outputs, it was imported one layer off: import it again with --convention blocks"
            ]
        if None not in (axis.model, axis.revision, subject.revision) and axis.revision != subject.revision:
            return [
                f"axis {axis.name} was built on revision {str(axis.revision)[:12]} of {axis.model}; this is {str(subject.revision)[:12]}"
            ]
        return []


def named(asked: str, layer: int | None) -> tuple[str, int | None]:
    """An axis by name or file, and the layer that was asked for: `demo@3` is axis demo at layer 3. `UsageError` where `layer` says another one."""
    name, at = split_layer(asked) if is_name(asked) else (asked, None)
    if layer is not None and at is not None and layer != at:
        raise UsageError(f"axis {asked} is at layer {at}, but layer {layer} is asked for", mend="Leave one of the two out.")
    return name, at if layer is None else layer


def is_name(asked: str) -> bool:
    """Whether an axis is given by name rather than by its file."""
    return "/" not in asked and not asked.endswith((".safetensors", ".pt", ".pth"))


def use(axis: Axis, subject: Subject, asked: int | None, *, foreign: bool = False, kept: int | None = None) -> Use:
    """Settle how an axis is used.

    Args:
        axis: the axis.
        subject: what is measured.
        asked: the layer that was asked for.
        foreign: accept an axis of another model of the same width.
        kept: the layer at which a run has the axis already.

    Raises:
        UsageError: axis, model and layer do not fit.
    """
    other = axis.check_model(subject.model, subject.width, subject.blocks, revision=subject.revision, foreign=foreign)
    chosen = choose_layer(axis, asked if kept is None else kept, subject.blocks)
    return Use(axis, chosen if kept is None else Chosen(kept, KEPT), subject, other)
