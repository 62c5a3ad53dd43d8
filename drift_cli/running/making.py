"""Makes a run, from settings to its last turn, as events: what the library iterates over, and the steps that the commands share. Writes to no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from drift_cli.errors import DriftError
from drift_cli.running.events import Event, Finished, Notice, Outcome
from drift_cli.settings.settings import Settings
from drift_cli.spec import Transcript
from drift_cli.store.run import Run

if TYPE_CHECKING:
    from drift_cli.chat import Ask
    from drift_cli.engine.contract import Engine
    from drift_cli.models import LoadedModel
    from drift_cli.running.estimate import Fit
    from drift_cli.running.experiment import Experiment
    from drift_cli.store.paths import Store
    from drift_cli.workers.share import Share

Say = Callable[[str], object]


@dataclass(frozen=True)
class Made:
    """The run is there, with its plan, and nothing has been computed yet. The first event."""

    run: Run


def make(
    store: Store, settings: Settings, scripts: Sequence[Transcript] | None = None, users: Mapping[str, Ask] | None = None
) -> Iterator[Made | Event]:
    """Make the run that the settings name, or go on with it: `Made`, then what `runner.run_events` yields; `Finished` is the last.

    Who stops iterating stops the run: what was committed stays, and the same call goes on from there.

    Args:
        store: where the run is, or is to be.
        settings: what is asked for.
        scripts: transcripts that come from no file; where given, the settings name none.
        users: by transcript, the Python code that asks, for those whose user turns come from no script.

    Raises:
        DriftError: as `experiment.prepare`, `choice.choose` and `runner.run_events`; before any weight is read, where that can be.
    """
    from drift_cli.running.continued import prepare_for
    from drift_cli.running.runner import check_users

    said: list[str] = []
    experiment, _ = prepare_for(store, settings, scripts, said.append)
    check_users(experiment.manifest, users or {})
    notes = list(context_notes(experiment))
    run = open_run(store, experiment)
    yield Made(run)
    yield from map(Notice, (*said, *experiment.notices, *(f"WARNING: {text}" for text in experiment.lacking), *notes))
    yield from _take_part(run, experiment, settings, users or {})


def _take_part(run: Run, experiment: Experiment, settings: Settings, users: Mapping[str, Ask]) -> Iterator[Event]:
    from drift_cli.running.loading import load
    from drift_cli.workers.leases import WorkerState
    from drift_cli.workers.queue import correct_hints
    from drift_cli.workers.share import take_part

    states = run.states()
    correct_hints(run.paths, states)
    if all(state.ended for state in states):
        yield Notice(f"run {run.paths.run_id} is complete: nothing to do")
        yield Finished(Outcome(0, 0.0, interrupted=False))
        return
    with take_part(run) as share:
        share.turns = sum(state.total for state in states), sum(state.total if state.ended else state.done for state in states)
        queue = share.queue(run, 1)
        said: list[str] = []
        if not share.wait(said.append, queue, queue.is_open, lambda: False):
            yield Finished(Outcome(0, 0.0, interrupted=False, others=queue.others()))
            return
        share.presence.now(WorkerState.LOADING)
        model, engine = load(run, experiment, settings, said.append)
        if (remark := record_residuals(run, model)) is not None:
            said.append(remark)
        yield from map(Notice, said)
        yield from _made_with(run, experiment, engine, share, users)


def _made_with(run: Run, experiment: Experiment, engine: Engine, share: Share, users: Mapping[str, Ask]) -> Iterator[Event]:
    """The turns, and the run's own record of this call: how it began, and how it ended."""
    from drift_cli.running.machine import epoch_now
    from drift_cli.running.runner import run_events

    run.begin(epoch_now(experiment.device, engine.name, engine.batch, 1, run.manifest.spec.dtype))
    run.event("start", epoch=run.epoch())
    outcome: Outcome | None = None
    try:
        for event in run_events(
            run, engine, chat=experiment.chat, axis=experiment.axis, end_ids=experiment.card.end_ids, share=share, users=users
        ):
            if isinstance(event, Finished):
                outcome = event.outcome
            else:
                yield event
    finally:
        kind = "interrupted" if outcome is None or outcome.interrupted else "left" if outcome.others else "done"
        run.event(kind, **({} if outcome is None else {"turns": outcome.turns, "seconds": round(outcome.seconds, 3)}))
    if outcome is not None:
        if outcome.problems:
            raise outcome.problems[0]
        yield Finished(outcome)


def open_run(store: Store, experiment: Experiment) -> Run:
    """Create the run or add to it; whatever contradicts the run on disk is refused here, before any weight is read."""
    from drift_cli.running.existing import relocate

    run = Run.create(store, experiment.manifest)
    relocate(run, experiment)
    if experiment.axis is not None and not run.paths.axis(experiment.axis.name).exists():
        experiment.axis.save(run.paths.axis(experiment.axis.name))
    return run


def record_residuals(run: Run, model: LoadedModel) -> str | None:
    """Where a model's hidden states are not what they usually are, keep that with the run's settings, and return it in words."""
    from drift_cli.store.manifest import Setting

    remark = model.residuals.remark
    if remark is not None:
        run.update(replace(run.manifest, settings={**run.manifest.settings, "residuals": Setting(remark, "the model's network")}))
    return remark


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


def context_notes(experiment: Experiment) -> Iterator[str]:
    """Which cells will, or may, outgrow the model's context, a sentence each. Raises `DriftError` where none can have a single turn."""
    found, context = foreseen(experiment), experiment.card.context
    refuse_without_a_turn(experiment, found)
    return (text for fit in found if (text := _of_context(fit, experiment.manifest.spec.max_new_tokens, context)) is not None)


def _of_context(fit: Fit, reply: int, context: int) -> str | None:
    if fit.certain == 1:
        return (
            f"WARNING: no turn will be made of {fit.cell}: its first prompt of {fit.prompt_lengths[0]} tokens and a reply of up to "
            f"{reply} do not fit the context of {context} tokens"
        )
    if fit.certain is not None:
        return f"{fit.cell} will end before turn {fit.certain}: the context of {context} tokens is too short"
    if fit.possible is not None:
        return f"{fit.cell} may end before turn {fit.possible} if replies are long: context {context} tokens"
    return None
