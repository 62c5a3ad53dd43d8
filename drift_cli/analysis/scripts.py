"""What a difference can be generalized to: these scripts and wordings, or scripts and wordings like these.

Of K transcripts and W wordings of one prompt (a condition and its variants), every pair has a difference from the baseline, d_kw = mean of its rollouts
less the baseline's on that transcript. Their average is the estimate throughout; what differs is the standard error, that is, what could have come out
otherwise:

- *these*: transcripts and wordings are what they are, only sampling varies. SE² = Σ s²_kw / n_kw / (KW)² + Σ s²_k0 / n_k0 / K², Satterthwaite's degrees of
  freedom.
- *scripts like these* (K ≥ 2): transcripts are drawn from a population. t over the K transcripts' differences; sampling noise is in their spread.
- *wordings like these* (W ≥ 2): so are wordings. Variance of the W wordings' means over W, and the baseline's own sampling variance beside it; Satterthwaite.
- *both* (K, W ≥ 2): crossed random factors. SE² = (M_s + M_w - M_sw) / (KW), at least the larger of M_s / (KW) and M_w / (KW), with the mean squares of the
  two-way table of d_kw; Satterthwaite.

Variance components come from the same mean squares, negative ones as 0. With them the variance of the estimate at other numbers is

    σ_s² / K + σ_w² / W + σ_sw² / (KW) + (σ² / n) (1 / (KW) + 1 / K)

and the *advice* is which of K, W and n, grown so that there are as many rollouts more, lowers it most. A component that one transcript or one wording cannot
show is not known, and that is said: it is never taken for 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from drift_cli.analysis.measures import both, sample
from drift_cli.analysis.results import Options
from drift_cli.analysis.summary import plain
from drift_cli.analysis.table import FloatArray, RunTable
from drift_cli.spec import Cell

MORE = 1.25
"""By how much the advice lets the number of rollouts grow."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The difference as of one population."""

    population: str
    """`these scripts and wordings`, `scripts like these`, …"""
    low: float | None
    high: float | None
    p: float | None
    df: float | None


@dataclass(frozen=True, kw_only=True)
class Reach:
    """One prompt, in all its wordings, against the baseline, over all transcripts that have both."""

    condition: str
    temperature: float
    wordings: tuple[str, ...]
    """The conditions that are its wordings, the first one's own name first."""
    transcripts: tuple[str, ...]
    rollouts: int
    """In each cell, on average."""
    difference: float
    inferences: tuple[Inference, ...]
    between_scripts: float | None
    """σ_s²; None where one transcript cannot show it."""
    between_wordings: float | None
    interaction: float | None
    sampling: float | None
    """σ² of a rollout."""
    advice: str
    """What the next hour is best spent on: `transcripts`, `wordings`, `samples`; nothing where nothing can be said."""
    unknown: tuple[str, ...]
    """What nothing is known of: `other transcripts`, `other wordings`."""


def reaches(table: RunTable, baseline: str, variants: Mapping[str, str], options: Options) -> tuple[Reach, ...]:
    """Of every prompt at every temperature. `variants` says of which condition a condition is another wording. Empty for one transcript and one wording."""
    seen = table if options.turns is None else table.window(*options.turns)
    made = []
    for temperature in dict.fromkeys(cell.temperature for cell in seen.cells):
        for name in (name for name in seen.conditions if name not in variants and name != baseline):
            words = (name, *(other for other, of in variants.items() if of == name and other in seen.conditions))
            found = _reach(seen, baseline, words, temperature, options)
            if found is not None and (len(found.transcripts) > 1 or len(found.wordings) > 1):
                made.append(found)
    return tuple(made)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Differences and their sampling, (K, W) and (K,)."""

    d: FloatArray
    noise: FloatArray
    """Squared standard error of each condition's mean."""
    base: FloatArray
    """(K,): of the baseline's mean."""
    df: FloatArray
    base_df: FloatArray
    n: float


def _reach(table: RunTable, baseline: str, words: Sequence[str], temperature: float, options: Options) -> Reach | None:
    scripts = [
        script
        for script in dict.fromkeys(cell.transcript for cell in table.cells)
        if all(Cell(script, name, temperature) in table.cells for name in (baseline, *words))
    ]
    cells = {script: [_observed(table, script, name, baseline, temperature, options.primary) for name in words] for script in scripts}
    kept = [script for script in scripts if all(min(len(a), len(b)) >= 2 for a, b in cells[script])]
    if not kept:
        return None
    grid = _grid([cells[script] for script in kept])
    k, w = grid.d.shape
    scripts_var, words_var, mixed_var, noise = _components(grid)
    return Reach(
        condition=words[0],
        temperature=temperature,
        wordings=tuple(words),
        transcripts=tuple(kept),
        rollouts=round(grid.n),
        difference=float(grid.d.mean()),
        inferences=tuple(_inferences(grid, options.level)),
        between_scripts=scripts_var,
        between_wordings=words_var,
        interaction=mixed_var,
        sampling=noise,
        advice=advise((k, w, grid.n), (scripts_var, words_var, mixed_var, noise)),
        unknown=(*(("other transcripts",) if k == 1 else ()), *(("other wordings",) if w == 1 else ())),
    )


def _observed(table: RunTable, script: str, name: str, baseline: str, temperature: float, measure: str) -> tuple[FloatArray, FloatArray]:
    pair = both(measure, *(sample(table, Cell(script, one, temperature)) for one in (name, baseline)))
    return tuple(values[np.isfinite(values)] for values in pair)  # type: ignore[return-value]


def _grid(rows: Sequence[Sequence[tuple[FloatArray, FloatArray]]]) -> _Grid:
    d = np.array([[a.mean() - b.mean() for a, b in row] for row in rows])
    noise = np.array([[a.var(ddof=1) / len(a) for a, _ in row] for row in rows])
    df = np.array([[len(a) - 1.0 for a, _ in row] for row in rows])
    base = np.array([row[0][1].var(ddof=1) / len(row[0][1]) for row in rows])
    base_df = np.array([len(row[0][1]) - 1.0 for row in rows])
    sizes = [len(values) for row in rows for pair in row for values in pair]
    return _Grid(d, noise, base, df, base_df, float(np.mean(sizes)))


def _squares(d: FloatArray) -> tuple[float | None, float | None, float | None]:
    """Mean squares of scripts, of wordings, and of both together; None where there is one row or column."""
    k, w = d.shape
    rows, columns, middle = d.mean(axis=1), d.mean(axis=0), d.mean()
    of_rows = float(w * ((rows - middle) ** 2).sum() / (k - 1)) if k > 1 else None
    of_columns = float(k * ((columns - middle) ** 2).sum() / (w - 1)) if w > 1 else None
    rest = d - rows[:, None] - columns + middle
    return of_rows, of_columns, float((rest**2).sum() / ((k - 1) * (w - 1))) if k > 1 and w > 1 else None


def _inferences(grid: _Grid, level: float) -> Iterator[Inference]:
    k, w = grid.d.shape
    fixed = [(grid.noise / (k * w) ** 2, grid.df), (grid.base / k**2, grid.base_df)]
    yield _inference("these scripts and wordings" if w > 1 else "these scripts", grid.d.mean(), fixed, level)
    of_scripts, of_words, together = _squares(grid.d)
    if of_scripts is not None:
        name = "scripts like these, these wordings" if w > 1 else "scripts like these"
        yield _inference(name, grid.d.mean(), [(np.array(of_scripts / (k * w)), np.array(k - 1.0))], level)
    if of_words is not None:
        parts = [(np.array(of_words / (k * w)), np.array(w - 1.0)), (grid.base / k**2, grid.base_df)]
        yield _inference("these scripts, wordings like these" if k > 1 else "wordings like these", grid.d.mean(), parts, level)
    if of_scripts is not None and of_words is not None and together is not None:
        total = max(of_scripts + of_words - together, of_scripts, of_words) / (k * w)
        weights = [(of_scripts, k - 1), (of_words, w - 1), (together, (k - 1) * (w - 1))]
        df = (total * k * w) ** 2 / sum(value**2 / free for value, free in weights) if total > 0 else float("nan")
        df = max(df, float(min(k, w) - 1))
        yield _inference("scripts and wordings like these", grid.d.mean(), [(np.array(total), np.array(df))], level)


def _inference(population: str, middle: float, parts: Sequence[tuple[FloatArray, FloatArray]], level: float) -> Inference:
    """t with the sum of these squared standard errors and Satterthwaite's degrees of freedom."""
    total = float(sum(values.sum() for values, _ in parts))
    if total <= 0:
        return Inference(population=population, low=None, high=None, p=None, df=None)
    df = total**2 / float(sum((values**2 / free).sum() for values, free in parts))
    half = float(stats.t.ppf((1 + level) / 2, df)) * total**0.5
    return Inference(
        population=population,
        low=plain(middle - half),
        high=plain(middle + half),
        p=plain(2 * stats.t.sf(abs(middle) / total**0.5, df)),
        df=plain(df),
    )


def _components(grid: _Grid) -> tuple[float | None, float | None, float | None, float | None]:
    """σ_s², σ_w², σ_sw² and σ², from the mean squares less what sampling puts into them."""
    k, w = grid.d.shape
    of_scripts, of_words, together = _squares(grid.d)
    noise, base = float(grid.noise.mean()), float(grid.base.mean())
    sampling = float(np.concatenate([grid.noise.ravel(), grid.base]).mean() * grid.n)
    interaction = None if together is None else max(together - noise, 0.0)
    inside = noise + (interaction or 0.0)
    scripts = None if of_scripts is None else max((of_scripts - inside) / w - base, 0.0)
    words = None if of_words is None else max((of_words - inside) / k, 0.0)
    return scripts, words, interaction, sampling


Components = tuple[float | None, float | None, float | None, float | None]


def variance(sizes: tuple[float, float, float], components: Components) -> float:
    """Of the estimate, at K transcripts, W wordings and n samples a cell; what is not known counts as nothing."""
    (k, w, n), (scripts, words, together, noise) = sizes, (part or 0.0 for part in components)
    return scripts / k + words / w + together / (k * w) + noise / n * (1 / (k * w) + 1 / k)


def advise(sizes: tuple[int, int, float], components: Components) -> str:
    """What of transcripts, wordings and samples lowers the estimate's variance most, for as many rollouts more; of those whose share is known."""
    k, w, n = sizes
    choices: dict[str, tuple[float, float, float]] = {"samples": (k, w, n * MORE)}
    if components[0] is not None:
        choices["transcripts"] = (k * MORE, w, n)
    if components[1] is not None:
        choices["wordings"] = (k, (w + 1) * MORE - 1, n)
    if len(choices) == 1 or components[3] is None:
        return ""
    found = {name: variance(size, components) for name, size in choices.items()}
    return min(found, key=lambda name: found[name])
