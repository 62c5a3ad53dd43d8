"""What limits the answer, in words, the most harmful first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from drift_cli.analysis.looks import Kind
from drift_cli.analysis.quality import Quality
from drift_cli.analysis.results import Measure, Test
from drift_cli.analysis.verdict import Answer
from drift_cli.results.tables.phrases import HARD, Namer, evidence, half_width, joined, namer, p_words, signed, turned
from drift_cli.results.tables.words import number


def cautions(answer: Answer) -> Iterator[str]:
    """What limits the answer, the most harmful first."""
    several = len({(one.transcript, one.temperature) for one in answer.judgements}) > 1
    name = namer(several)
    yield from _looks(answer)
    yield from _incomplete(answer, name)
    yield from _distinct(answer, name)
    if answer.remark is not None:
        yield answer.remark
    if answer.presence.note is not None:
        yield answer.presence.note
    yield from _placebos(answer, name)
    yield from _baseline(answer, name)
    yield from _counted(answer, name, "cut at the length limit", lambda q: q.cut)
    yield from _layers(answer)
    yield from _at_first(answer, name)
    yield from _length(answer, name)
    yield from _axis(answer, name)
    yield from _controls(answer)
    yield from _broken(answer)
    yield from _groups(answer, name)
    yield from _counted(
        answer,
        name,
        "flagged (empty, repeating, reciting the prompt)",
        lambda q: q.flagged.suspect - q.flagged.context - q.flagged.template,
    )
    yield from _counted(answer, name, "word for word an earlier reply of their rollout", lambda q: q.repeated)
    yield from _counted(answer, name, "of one or two words", lambda q: q.near_empty)
    yield from _counted(answer, name, "with marks of a chat template or role labels", lambda q: q.template)
    yield from _noise(answer, name)
    yield from _later(answer)


def _looks(answer: Answer) -> Iterator[str]:
    """How often the data were looked at, which interval applies, and what a single look would say."""
    found = answer.looked
    if found is None:
        return
    if found.departures:
        yield f"Not as planned: {'; '.join(found.departures)}."
    kinds, looks = set(found.kinds), ", ".join(map(str, found.planned))
    if Kind.NOT_PLANNED in kinds:
        yield f"This look is not planned (looks at {looks} complete rollouts of every condition): nothing can be shown here, whatever p is."
    if found.only:
        return
    earlier = f" (fewer were seen at {', '.join(map(str, found.earlier))} rollouts)" if found.earlier else ""
    if Kind.ALWAYS in kinds:
        yield f"Look {found.number} at these data{earlier}: the always-valid interval and p apply, not those of a single look."
    elif Kind.PLANNED in kinds:
        yield f"Look {found.number} of the plan{earlier}: the repeated interval and p apply; α is spent over looks at {looks}."
    single = [
        f"{name} {signed((low + high) / 2)}{HARD}±{HARD}{half_width((high - low) / 2)} (p{HARD}{p_words(p)})"
        for name, low, high, p in found.single
    ]
    evidence_of = [f"{name} {number(one.e_value, 2)}" for name, one in found.standings if one.e_value is not None]
    yield f"Of a single look they would be: {joined(single)}. e-values: {joined(evidence_of)}."


def _later(answer: Answer) -> Iterator[str]:
    """What will hold if more rollouts follow this look."""
    found = answer.looked
    if found is None or not found.only or not found.standings:
        return
    wide = [
        f"{name} ±{HARD}{half_width((one.always_high - one.always_low) / 2)} (e{HARD}={HARD}{number(one.e_value, 2)})"
        for name, one in found.standings
        if one.always_low is not None and one.always_high is not None
    ]
    yield f"First look at these data: the usual interval applies. If rollouts are added after it, always-valid ones do, here {joined(wide)}."


def _incomplete(answer: Answer, name: Namer) -> Iterator[str]:
    if not answer.finished:
        planned, complete = (sum(getattr(one.quality, field) for one in answer.judgements) for field in ("planned", "complete"))
        begun = sum(one.quality.begun for one in answer.judgements)
        yield f"Unfinished: {complete} of {planned} rollouts are complete, {planned - begun} have not begun. All numbers will change."
    for one in answer.judgements:
        worst = None if one.level is None else one.level.worst
        if one.level is not None and worst is not None:
            early = f", {one.quality.early} rollouts ended early" if one.quality.early else ""
            bounds = f"[{signed(worst.low)},{HARD}{signed(worst.high)}]"
            tipping = (
                "" if worst.tipping is None else f"; missing replies {number(worst.tipping, 2)} off the others at their turn would undo it"
            )
            yield (
                f"{name(one)}: {100 * worst.share_a:.0f} % of its replies are missing ({100 * worst.share_b:.0f} % of {answer.baseline}'s){early}: "
                f"at the worst its difference lies in {bounds}{tipping}."
            )


def _distinct(answer: Answer, name: Namer) -> Iterator[str]:
    found = [
        f"{name(one)} {one.quality.distinct} of {one.quality.begun}"
        for one in answer.judgements
        if one.quality.distinct < one.quality.begun
    ]
    if found:
        yield f"Rollouts that are word for word the same count once: distinct are {joined(found)}."


def _placebos(answer: Answer, name: Namer) -> Iterator[str]:
    if not any(one.verdict is not None for one in answer.judgements):
        return
    if not answer.has_placebo:
        yield "No condition is a placebo: what any prompt of this length would do is not told apart."
    if answer.unmatched:
        yield f"No placebo of the same length and placement (placebo_of in drift.toml makes one): {joined(answer.unmatched)}."
    for one in answer.judgements:
        if one.placebo is not None and not one.placebo.starred and one.placebo.difference is not None:
            row = one.placebo if one.placebo.a == one.condition else turned(one.placebo)
            yield f"{name(one)} is not shown to differ from {row.b}: {evidence(row)}."


def _baseline(answer: Answer, name: Namer) -> Iterator[str]:
    for base in answer.judgements:
        others = [
            one
            for one in answer.judgements
            if one.verdict is not None and (one.transcript, one.temperature) == (base.transcript, base.temperature)
        ]
        if base.verdict is None and others and not base.fell:
            yield f"{name(base)} is not shown to fall from its own start: there was no drift to hold against."


def _axis(answer: Answer, name: Namer) -> Iterator[str]:
    several = len({(one.transcript, one.temperature) for one in answer.axis_errors}) > 1
    found = []
    for one in answer.axis_errors:
        if one.measure is Measure.MEAN:
            where = f" ({one.transcript}, T{HARD}{one.temperature:g})" if several else ""
            found.append(f"{one.condition}{where} {signed((one.low + one.high) / 2)}{HARD}±{HARD}{half_width((one.high - one.low) / 2)}")
    if found:
        yield f"With the axis's own uncertainty ({answer.axis_errors[0].personas} personas drawn again) the level differs by {joined(found)}."
    units = [f"{name(one)} {signed(one.units)}" for one in answer.judgements if one.units is not None]
    if units:
        yield f"In persona units (the other personas 0, the assistant 1) the level differs by {joined(units)}."


def _layers(answer: Answer) -> Iterator[str]:
    """How far the differences hang on the layer."""
    several = len({(one.transcript, one.temperature) for one in answer.moves}) > 1
    found = []
    for one in answer.moves:
        if one.span is not None and one.here is not None:
            where = f" ({one.transcript}, T{HARD}{one.temperature:g})" if several else ""
            sign = ", its sign changes" if one.span[0] < 0 < one.span[1] else ""
            found.append(f"{one.condition}{where} {signed(one.span[0])} to {signed(one.span[1])} (here {signed(one.here)}{sign})")
    if found:
        first = answer.moves[0]
        of = "the words' part of the level" if all(one.words for one in answer.moves) else "the difference in level"
        yield f"Over layers {first.layers[0]} to {first.layers[-1]}, the third around {first.layer}, {of} goes in {first.units}: {joined(found)}."


def _controls(answer: Answer) -> Iterator[str]:
    for kind in dict.fromkeys(one.kind for one in answer.controls):
        found = [
            f"{one.a} {100 * one.smaller:.0f} % of {one.count}" for one in answer.controls if one.kind == kind and one.smaller is not None
        ]
        if found:
            yield f"On {kind} control axes the difference is smaller than on this one for {joined(found)}."


def _broken(answer: Answer) -> Iterator[str]:
    if not any(row.broken for row in answer.breaks):
        return
    several = len({(row.transcript, row.temperature) for row in answer.breaks}) > 1
    found = []
    for row in answer.breaks:
        where = f" ({row.transcript}, T{HARD}{row.temperature:g})" if several else ""
        p = "" if row.p_adjusted is None else f" (p{HARD}{p_words(row.p_adjusted)})"
        found.append(f"{row.condition}{where} {row.broken} of {row.n}{p}")
    threshold = answer.breaks[0].threshold
    midpoint = ", the personas' midpoint," if answer.scale is not None and threshold == answer.scale.midpoint else ""
    yield f"Rollouts that break (below {number(threshold, 2)}{midpoint} to the end): {joined(found)}."


def _groups(answer: Answer, name: Namer) -> Iterator[str]:
    groups = [name(one) for one in answer.judgements if one.quality.two_groups]
    if groups:
        yield f"Rollouts look like two groups, or one lies far out: {joined(groups)}. Tests of means can be wrong there at few rollouts."


def _counted(answer: Answer, name: Namer, what: str, count: Callable[[Quality], int]) -> Iterator[str]:
    found = [f"{name(one)} {count(one.quality)} of {one.quality.replies}" for one in answer.judgements if count(one.quality)]
    if found:
        yield f"Replies {what}: {joined(found)}."


def _at_first(answer: Answer, name: Namer) -> Iterator[str]:
    found = [
        f"{name(one)} {signed(one.confounds.first)} of {signed(one.level.difference)}"
        for one in answer.judgements
        if one.confounds is not None and one.confounds.first is not None and one.level is not None and one.level.difference is not None
    ]
    if found:
        yield f"There at turn {answer.first} already (a prompt's presence, not drift): {joined(found)}."


def _length(answer: Answer, name: Namer) -> Iterator[str]:
    found = [
        f"{name(one)} {signed(c.adjusted)}{HARD}±{HARD}{half_width((c.adjusted_high - c.adjusted_low) / 2)}"
        for one in answer.judgements
        if (c := one.confounds) is not None and c.adjusted is not None and c.adjusted_low is not None and c.adjusted_high is not None
    ]
    for r in answer.correlations:
        if r.length is not None:
            position = "" if r.position is None else f", with position r{HARD}={HARD}{signed(r.position)}"
            where = "" if len(answer.correlations) == 1 else f" ({r.transcript}, T{HARD}{r.temperature:g})"
            at = f" At equal length the level differs by {joined(found)}." if found and r is answer.correlations[0] else ""
            what = "projection" if answer.quantity.startswith("projection") else "measure"
            yield f"Within turns{where} the {what} goes with reply length r{HARD}={HARD}{signed(r.length)}{position}.{at}"


def _noise(answer: Answer, name: Namer) -> Iterator[str]:
    shared = [one for one in answer.judgements if one.confounds is not None and one.confounds.r is not None]
    found = [f"{name(one)} r{HARD}={HARD}{signed(one.confounds.r)} (×{number(one.confounds.gain, 2)})" for one in shared if one.confounds]
    if found and answer.test is Test.PAIRED:
        yield f"Samples share their noise and are compared in pairs; variance without pairing, over that with it: {joined(found)}."
        return
    if found:
        yield f"Samples share their noise; variance without pairing, over that with it (--test paired): {joined(found)}."
    against = [name(one) for one in shared if one.confounds and (one.confounds.r or 0.0) < -0.1]
    if against:
        yield f"The noise goes against the baseline's for {joined(against)}: unpaired intervals are too narrow there; use --test paired."
