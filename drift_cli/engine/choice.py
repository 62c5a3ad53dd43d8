"""Which engine runs a model: `slots` where it is exact, `reference` where it is not, and why."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from drift_cli.engine.attention import NotApplied, layout_of
from drift_cli.engine.contract import Engine, Incident, is_out_of_memory, no_memory
from drift_cli.engine.plain_passes import yardstick
from drift_cli.engine.plan import NoRoom
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.rollouts import SlotEngine
from drift_cli.engine.structure import refusal
from drift_cli.engine.trial import Trial, judge
from drift_cli.engine.trial_text import conversations, length, random_text
from drift_cli.errors import DriftError, UsageError
from drift_cli.models import LoadedModel
from drift_cli.pool import MEAN, Pool
from drift_cli.spec import Sampling

ROWS = {"cuda": 48, "cpu": 16}
"""Slots where no number is asked for: on a GPU as many as three conditions of 16 samples have, since a step's weights are read once for all of them."""

Report = Callable[[Incident], None]
T = TypeVar("T")


def rows(asked: int | None, device: str) -> int:
    """How many rollouts to generate together. Never what happens to be free: equal bits need equal rows."""
    return ROWS.get(device.partition(":")[0], 8) if asked is None else asked


@dataclass(frozen=True)
class Choice:
    """An engine, and what speaks for it."""

    engine: Engine
    refused: str | None
    """Why slots cannot run the model, in words; None where they run it, or were not asked for."""
    trial: Trial | None
    """What was measured, where slots came to a trial."""


def choose(
    asked: str,
    model: LoadedModel,
    *,
    layers: tuple[int, ...],
    filters: Sampling,
    max_new_tokens: int,
    batch: int,
    longest: int | None = None,
    segmented: bool = False,
    pool: Pool = MEAN,
    text: Sequence[int] = (),
    report: Report = lambda incident: None,
) -> Choice:
    """The engine for a model.

    Args:
        asked: one of `contract.ENGINES`.
        layers: residual layers to pool.
        filters: of the draw.
        max_new_tokens, batch: the longest reply; slots, or rows of a batch.
        longest: the most tokens that a conversation may come to have, where that is known.
        segmented: whether replies may have segments.
        pool: which tokens of a part stand for it.
        text: token ids of ordinary text for the trial; random ones where there are none.
        report: told of what was dealt with on the way.

    Raises `UsageError` where `slots` was asked for and cannot run this model exactly, `DriftError` where slots fail in a way that is no property of it.
    """
    reference = ReferenceEngine(model, layers, filters, max_new_tokens, batch, pool)
    if asked == "reference":
        return Choice(reference, None, None)
    engine = SlotEngine(model, layers, filters, max_new_tokens, batch, longest, segmented, pool)
    reason, trial = _judged(engine, model, list(text), report)
    if reason is not None and asked == "slots":
        raise UsageError(f"the slots engine cannot run {model.card.name}: {reason}", mend="Use --engine reference (or auto).")
    return Choice(engine if reason is None else reference, reason, trial)


def _judged(engine: SlotEngine, model: LoadedModel, text: list[int], report: Report) -> tuple[str | None, Trial | None]:
    """Why slots cannot run the model, None where they can; and the trial, where there was one. Slots that cannot are closed."""
    reason = refusal(model)
    if reason is not None:
        return reason, None
    trial = None
    try:
        trial = _tried(engine, text, report)
        reason = trial.problem
    except NotApplied as error:
        reason = error.what
    if reason is not None:
        engine.close()
    return reason, trial


def _tried(engine: SlotEngine, text: list[int], report: Report) -> Trial:
    """Hold slots against plain computations. On a GPU the slots stay made: it takes them many seconds to be compiled and captured."""
    model = engine.model
    tokens = _slots_do(model, lambda: length(model, layout_of(model), engine.longest))
    while True:
        given = conversations(text or random_text(model), tokens, engine.batch)
        try:
            against = yardstick(model, given)
            slots = _slots_do(model, lambda: engine.prepare(report))
            if slots.rows < len(given):  # memory allows fewer slots than conversations
                engine.close()
                continue
            trial = _slots_do(model, lambda: judge(model.dtype, slots, given, against))  # noqa: B023 (called at once)
        except NoRoom:
            engine.close()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            engine.close()
        else:
            if model.device.type != "cuda":
                engine.close()
            return trial
        gc.collect()
        if tokens <= _FEWEST:
            raise no_memory(f"a conversation of {tokens} tokens")
        tokens //= 2


_FEWEST = 40
"""Tokens of a conversation that is not made shorter for want of memory."""


def _slots_do(model: LoadedModel, work: Callable[[], T]) -> T:
    """What `work` returns. What slots raise that is neither a property of the model nor a lack of memory is a fault of drift, and said to be one."""
    try:
        return work()
    except (NoRoom, DriftError):
        raise
    except (TypeError, AttributeError, LookupError, ValueError, RuntimeError, AssertionError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        said = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise DriftError(
            f"the slots engine failed on {model.card.name}: {type(error).__name__}: {said}",
            mend="This is a fault of drift: please report it. --engine reference runs the model meanwhile.",
        ) from error
