"""What is said, before a run, of prompts that do not fit the model's context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drift_cli.display import Display
from drift_cli.errors import DriftError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drift_cli.running.estimate import Fit
    from drift_cli.running.experiment import Experiment


def foreseen(experiment: Experiment) -> Sequence[Fit]:
    """Where every cell's prompts outgrow the model's context."""
    from drift_cli.running.estimate import fits

    return fits(experiment.manifest, experiment.chat, experiment.card.context)


def refuse_without_a_turn(experiment: Experiment, found: Sequence[Fit]) -> None:
    """Raise `DriftError` where no cell can have a single turn."""
    context, reply = experiment.card.context, experiment.manifest.spec.max_new_tokens
    if not found or any(fit.certain != 1 for fit in found):
        return
    shortest = min(fit.prompt_lengths[0] for fit in found)
    rest = f"--max-new-tokens {context - shortest} or less, or " if shortest < context else ""
    raise DriftError(
        f"no turn can be made: even the shortest first prompt, of {shortest} tokens, and a reply of up to {reply} do not fit "
        f"the context of {context} tokens of {experiment.card.name}",
        mend=f"Use {rest}a model with a longer context.",
    )


def warn_of_context(display: Display, experiment: Experiment) -> None:
    """Say which cells will, or may, outgrow the model's context. Raises `DriftError` where none can have a single turn."""
    found = foreseen(experiment)
    refuse_without_a_turn(experiment, found)
    for fit in found:
        if fit.certain == 1:
            display.note(
                f"WARNING: no turn will be made of {fit.cell}: its first prompt of {fit.prompt_lengths[0]} tokens and a reply of up to "
                f"{experiment.manifest.spec.max_new_tokens} do not fit the context of {experiment.card.context} tokens",
                kind="warning",
            )
        elif fit.certain is not None:
            display.note(f"{fit.cell} will end before turn {fit.certain}: the context of {experiment.card.context} tokens is too short")
        elif fit.possible is not None:
            display.note(f"{fit.cell} may end before turn {fit.possible} if replies are long: context {experiment.card.context} tokens")
