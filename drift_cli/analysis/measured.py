"""A run's table of a measure of replies, in place of projections. The run needs no axis for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from drift_cli.analysis import segments
from drift_cli.analysis.measure import Reply, ReplyMeasure, find_reply_measure
from drift_cli.analysis.table import FloatArray, RunTable, filled
from drift_cli.spec import Part
from drift_cli.store.manifest import AxisEntry

if TYPE_CHECKING:
    from drift_cli.store.reader import RolloutRecord
    from drift_cli.store.run import Run


def load_measure(run: Run, name: str, part: Part = Part.ANSWER) -> RunTable:
    """Measure a run's committed replies: the table that `table.load` makes, whose values are the measure's.

    Raises `UsageError` where there is no such measure, `DriftError` where it fails on a reply, `StoreError` where a file is damaged.
    """
    measure, segment = find_reply_measure(name), segments.measured(run.manifest, part)
    table = filled(run, AxisEntry(measure.name, -1, ""), segment, lambda record: _taken(run, record, measure, segment or Part.ANSWER))
    return replace(table, measure=measure.words)


def _taken(run: Run, record: RolloutRecord, measure: ReplyMeasure, part: Part) -> FloatArray:
    """The measure's numbers (turns,) of a rollout's replies; NaN where a reply has none, or lacks the part."""
    script = run.manifest.transcripts[record.rollout.cell.transcript]
    values = np.full(len(record.turns), np.nan)
    for place, turn in enumerate(record.turns):
        if segments.has_part(turn, part):
            text = segments.text_of(turn, part)
            user = (turn.user if turn.user is not None else script.asked(turn.index)) or ""
            tokens = None if turn.ids is None else len(turn.ids)
            values[place] = measure.take(Reply(record.rollout, turn.index, user, text, turn.reasoning, turn.finish, tokens))
    return values
