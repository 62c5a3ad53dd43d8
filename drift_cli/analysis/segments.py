"""Which part of a reply is measured, and how that is said: in titles, under tables, in captions.

A run whose chat format keeps reasoning apart from the answer is measured on the answer unless something else is asked for. Of any other run, replies are all
answer, and nothing is said. A reply that lacks the part is a missing turn: never 0, and never another part instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift_cli.analysis.flags import Flag, Recital, flag_reply, flag_segments
from drift_cli.errors import UsageError
from drift_cli.segments import Part, spans
from drift_cli.spec import Finish

if TYPE_CHECKING:
    from drift_cli.analysis.table import RunTable
    from drift_cli.spec import Turn
    from drift_cli.store.manifest import Manifest

MANY = 0.05
"""Share of replies without an answer from which on the sentence about them is a warning: those that reason longest are no random sample of replies."""
_SAID = {
    Part.ANSWER: "Measured: the answers, without the reasoning before them.",
    Part.REASONING: "Measured: the reasoning, without the answers.",
    Part.ALL: "Measured: whole replies, reasoning and answer together.",
}
_LACKING = {
    Part.ANSWER: "no answer within the limit",
    Part.REASONING: "no reasoning",
    Part.ALL: "no token",
}


def measured(manifest: Manifest, asked: Part) -> Part | None:
    """The part that is measured of a run's replies; None where they have no segments. `UsageError` for reasoning that the run does not have."""
    if manifest.segments:
        return asked
    if asked is Part.REASONING:
        raise UsageError(
            f"run {manifest.spec.id} has no reasoning apart from its answers: its chat format has no segments",
            mend="Leave --segment out: whole replies are measured.",
        )
    return None


def of_words(segment: Part | None) -> str:
    """For a label: ` of the answer`; nothing where replies have no segments."""
    return "" if segment is None else f" of {segment.words}"


def sentence(segment: Part | None) -> str:
    """For under a table, with a space behind; nothing where replies have no segments."""
    return "" if segment is None else f"{_SAID[segment]} "


def text_of(turn: Turn, part: Part) -> str:
    """The text of a part of a reply."""
    texts = {Part.ANSWER: turn.text, Part.REASONING: turn.reasoning or ""}
    return texts[part] if part in texts else "\n".join(text for text in (turn.reasoning, turn.text) if text)


def has_part(turn: Turn, part: Part) -> bool:
    """Whether a reply has a part with tokens; one without segments is all answer."""
    return bool(spans(turn.segments, part)) if turn.segments else part is not Part.REASONING


def flags_of(turn: Turn, part: Part, prompts: Sequence[Recital]) -> frozenset[Flag]:
    """A reply's flags, those of a text on the part that is measured; a part that is not there has no text to judge."""
    if has_part(turn, part):
        return flag_segments(turn) | flag_reply(text_of(turn, part), turn.finish, prompts)
    return flag_segments(turn) | ({Flag.LENGTH} if turn.finish is Finish.LENGTH else set())


def lacking(table: RunTable) -> NDArray[np.bool_]:
    """(R, T): replies that are there and lack the part that is measured; all False where replies have no segments."""
    there: NDArray[np.bool_] = (table.finish != "") & ~np.isfinite(table.projections) & ~table.flags.suspect
    return there & (table.segment is not None)


def lacking_note(table: RunTable, rows: NDArray[np.bool_]) -> str | None:
    """The sentence on such replies of the rollouts `rows` (R,), or None."""
    count, replies = int(lacking(table)[rows].sum()), int((table.finish[rows] != "").sum())
    if table.segment is None or not count:
        return None
    return f"{count} of {replies} replies have {_LACKING[table.segment]}: those turns are missing."


def remark(table: RunTable) -> str | None:
    """The sentence on replies without an answer, and on reasoning that was cut; None where replies have no segments or none is there."""
    replies = int((table.finish != "").sum())
    if table.segment is None or not replies:
        return None
    missing, cut = int(table.flags.no_answer.sum()), int(table.flags.reasoning_cut.sum())
    return (
        f"{missing} of {replies} replies ({100 * missing / replies:.1f} %) have no answer within the limit, "
        f"{cut} ({100 * cut / replies:.1f} %) were cut while reasoning. A reply without the part that is measured is a missing turn"
        + (": so many of them can bias comparisons, and a larger --max-new-tokens would spare them." if missing > MANY * replies else ".")
    )
