"""Pairs of conditions as tables to read: on the primary measure, on the others, and over transcripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drift_cli.analysis.measure import added_rollout_measures
from drift_cli.analysis.results import Comparison, Correction, Measure, Options, Role, Test
from drift_cli.analysis.study import Study
from drift_cli.analysis.summary import percent
from drift_cli.display import Table
from drift_cli.results.tables.words import MOST_ROWS, interval, measure_name, number, p_value, where, with_error


def pairs_table(study: Study, which: str = "") -> Table:
    """Differences of rollout means."""
    return _comparisons(f"Differences of rollout means{which}", study.comparisons, study, study.scope)


def drift_table(study: Study, which: str = "") -> Table:
    """Differences of drift: the changes from the start first."""
    note = (
        "change: mean of the later turns less the first, so its difference between conditions is a difference of differences. A slope alone confounds time "
        "with the script: only differences between conditions speak of drift."
    )
    table = _comparisons(f"Differences of drift{which}", study.drift, study, study.scope, measures=True)
    return Table(table.title, table.heads, table.rows, [note, *table.notes])


def added_table(study: Study, which: str = "") -> Table:
    """Differences on measures that others added."""
    return _comparisons(f"Differences on added measures{which}", study.added, study, study.scope, measures=True)


def across_table(study: Study, which: str = "") -> Table:
    """Differences over transcripts."""
    scope = "Over transcripts: intervals and p values are about scripts like these, as far as these were chosen like others would be."
    return _comparisons(f"Differences over transcripts{which}", study.across, study, scope, measures=True)


def _comparisons(title: str, found: Sequence[Comparison], study: Study, scope: str, *, measures: bool = False) -> Table:
    options = study.options
    over = any(c.transcripts != 1 or c.transcript is None for c in found)
    rows = [_row(c, study, measures=measures, over=over) for c in found[:MOST_ROWS]]
    return Table(title, _heads(options, measures=measures, over=over), rows, list(_notes(found, scope, options)))


def _heads(options: Options, *, measures: bool, over: bool) -> list[str]:
    level = percent(options.level)
    heads = ["difference", *(["of"] if measures else []), "transcripts>" if over else "where", "n>", "estimate>", f"{level} interval>"]
    heads += ["statistic (df)>", "p>", "p adjusted>", f"Hedges' g [{level}]>"]
    heads += ["r>", "gain>", "p sign-flip>"] if options.test is Test.PAIRED else []
    return heads + ([f"p within ±{options.equivalence:g}>"] if options.equivalence is not None else [])


def _row(c: Comparison, study: Study, *, measures: bool, over: bool) -> list[str]:
    options = study.options
    return [
        f"{c.a} − {c.b}{' *' * c.starred}",
        *([measure_name(c.measure, study.first)] if measures else []),
        str(c.transcripts) if over else where(c),
        f"{c.n_a}, {c.n_b}",
        number(c.difference, sign=True),
        interval(c.low, c.high),
        "—" if c.statistic is None else f"{c.statistic:.4f}" + ("" if c.df is None else f" ({c.df:.2f})"),
        with_error(c.p, c.p_error),
        with_error(c.p_adjusted, c.p_adjusted_error) + (" P" if c.role is Role.PRIMARY and c.p_adjusted is not None else ""),
        "—" if c.hedges_g is None else f"{number(c.hedges_g, 2, sign=True)} {interval(c.g_low, c.g_high, 2)}",
        *([number(c.r, 2, sign=True), number(c.gain, 2), p_value(c.p_flip)] if options.test is Test.PAIRED else []),
        *([p_value(c.p_equivalence)] if options.equivalence is not None else []),
    ]


def _notes(found: Sequence[Comparison], scope: str, options: Options) -> Iterator[str]:
    yield from dict.fromkeys(c.method for c in found if c.p is not None)
    yield scope
    primary = sum(c.role is Role.PRIMARY and c.p is not None for c in found)
    if primary:
        yield f"P: primary, p adjusted by Holm over the {primary} primary comparisons."
    if any(c.role is Role.SECONDARY and c.p_adjusted is not None for c in found):
        yield _secondary(found, options)
    if any(c.p_error is not None or c.p_adjusted_error is not None for c in found):
        yield "± beside a p: Monte Carlo standard error of the resampling."
    if options.test is Test.PAIRED:
        yield "gain: variance of the difference without pairing, over that with it (2: pairing was worth twice the rollouts; below 1: it cost)."
    if len(found) > MOST_ROWS:
        yield f"The first {MOST_ROWS} of {len(found)} pairs; --against NAME, --format csv or --json for the others."
    yield from dict.fromkeys(f"{c.a} − {c.b}: {text}" for c in found[:MOST_ROWS] for text in (c.note, *worst_words(c)) if text)


def _secondary(found: Sequence[Comparison], options: Options) -> str:
    over, added = any(c.transcript is None for c in found), {measure.name for measure in added_rollout_measures()}
    how = {Correction.MAXT: "max-T", Correction.HOLM: "Holm", Correction.BH: "Benjamini-Hochberg", Correction.NONE: "nothing"}[
        options.correction
    ]
    family = "Holm over the comparisons over transcripts" if over else f"{how} over all pairs, turns and secondary measures together"
    if all(c.measure in added for c in found):
        family = "Holm over all pairs and added measures"
    return f"Not P: secondary, p adjusted by {family}; *: shown, which a secondary difference is only where a primary one is shown too."


def worst_words(c: Comparison) -> Iterator[str]:
    """What missing turns may hide, in words."""
    if c.worst is None:
        return
    missing = f"{100 * c.worst.share_a:.0f} and {100 * c.worst.share_b:.0f} % of the replies are missing"
    bounds = f"with each at the worst projection seen, the difference may lie anywhere in {interval(c.worst.low, c.worst.high)}"
    tipping = (
        ""
        if c.worst.tipping is None
        else f"; to reach 0, they would have to lie {number(c.worst.tipping)} from those that are there on average"
    )
    name = "" if c.measure == Measure.MEAN else f" ({c.measure})"
    yield f"{missing}{name}: {bounds}{tipping}."
