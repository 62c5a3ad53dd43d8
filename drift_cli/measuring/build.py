"""Builds an axis out of a run in which every persona answered every question.

The run is of the ordinary kind, so that it resumes like any other: a condition for each persona, a transcript of one turn for each question, residual means of
all layers. A persona's mean is over its replies, each counting the same whatever its length; the axis is the contrast of those means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drift_cli.axis import Axis
from drift_cli.errors import DriftError
from drift_cli.measuring.contrast import contrast, sides_of, unit
from drift_cli.measuring.personas import Personas
from drift_cli.names import digest_of
from drift_cli.spec import Condition, Placement, Transcript
from drift_cli.store.run import RolloutState, Run


def transcripts(personas: Personas) -> tuple[Transcript, ...]:
    """One for each question. Named after what they ask, so that a changed or a new question is another transcript of the same run."""
    return tuple(Transcript(f"q{digest_of(question)[:8]}", (question,)) for question in personas.questions)


def conditions(personas: Personas, placement: Placement) -> tuple[Condition, ...]:
    """One for each persona."""
    return tuple(Condition(p.name, p.system, placement if p.system is not None else Placement.START) for p in personas.personas)


def pool(run: Run, personas: Personas, samples: int) -> NDArray[np.float64]:
    """Means (personas, layers, width) over each persona's replies. `DriftError` where a persona has none that says anything."""
    wanted = {script.name for script in transcripts(personas)}
    chosen: dict[str, list[RolloutState]] = {persona.name: [] for persona in personas.personas}
    for state in run.states():
        cell = state.rollout.cell
        if cell.transcript in wanted and state.rollout.sample < samples and state.done and cell.condition in chosen:
            chosen[cell.condition].append(state)
    return np.stack([_mean(run, name, states) for name, states in chosen.items()])


def _mean(run: Run, persona: str, states: Sequence[RolloutState]) -> NDArray[np.float64]:
    """(layers, width) over the replies of these rollouts that have a residual mean: of the answer alone where there is reasoning (an empty one has none)."""
    found = [
        turn.residual.astype(np.float64)
        for state in states
        for turn in run.record(state.rollout, residuals=True).turns
        if turn.residual is not None
    ]
    if not found:
        if run.manifest.segments:
            raise DriftError(
                f"persona {persona} gave no answer with a single token, only reasoning",
                mend="Try a larger --max-new-tokens, so that replies come to their answer, or more --samples.",
            )
        raise DriftError(f"persona {persona} gave no reply with a single token", mend="Try more --samples, or another prompt for it.")
    return np.asarray(np.mean(found, axis=0))


def made_from(run: Run, personas: Personas, samples: int, name: str) -> Axis:
    """The axis of a run in which these personas were asked."""
    means = pool(run, personas, samples)
    names = tuple(persona.name for persona in personas.personas)
    sides = sides_of(names, personas.assistants, f"run {run.paths.run_id}")
    replies = "a reply" if samples == 1 else f"{samples} replies"
    only = ", answers only (without the reasoning before them)" if run.manifest.segments else ""
    return Axis(
        name=name,
        layers=run.manifest.layers,
        vectors=unit(contrast(means, sides), f"run {run.paths.run_id}"),
        model=run.manifest.spec.model,
        revision=run.manifest.spec.identity,
        source=f"drift axis build: {replies} of {len(names)} personas to each of {len(personas.questions)} questions, run {run.paths.run_id}{only}",
        note=None if run.manifest.model is None else run.manifest.model.note,
        personas=names,
        means=means.astype(np.float32),
        assistants=personas.assistants,
        personas_digest=personas.digest,
    )
