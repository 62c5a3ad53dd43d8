"""These scripts and wordings, or some like them: what can vary is in the interval, what nobody varied is said, and the advice follows the components."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli import drift
from scipy import stats

from drift_cli.analysis.results import Options
from drift_cli.analysis.scripts import Reach, advise, reaches, variance
from drift_cli.analysis.table import RunTable
from drift_cli.errors import UsageError
from drift_cli.settings.config import resolve
from drift_cli.spec import Cell, Condition
from drift_cli.store.decode import plain


def _reach(
    scripts: int, wordings: int, *, between: tuple[float, float] = (0.0, 0.0), n: int = 10, effect: float = 1.0, seed: int = 1
) -> Reach:
    rng = np.random.default_rng(seed)
    of_script, of_word = between[0] * rng.normal(size=scripts), between[1] * rng.normal(size=wordings)
    cells = {}
    for k in range(scripts):
        cells[Cell(f"s{k}", "baseline", 0.7)] = rng.normal(k, 1, (n, 3))
        for w in range(wordings):
            cells[Cell(f"s{k}", "firm" if w == 0 else f"firm.{w + 1}", 0.7)] = rng.normal(k + effect + of_script[k] + of_word[w], 1, (n, 3))
    variants = {f"firm.{w + 1}": "firm" for w in range(1, wordings)}
    (found,) = reaches(RunTable.from_arrays("r", "x", cells), "baseline", variants, Options())
    return found


def _width(found: Reach, population: str) -> float:
    row = next(one for one in found.inferences if one.population == population)
    assert row.low is not None
    assert row.high is not None
    return row.high - row.low


def test_an_interval_is_as_wide_as_what_could_have_come_out_otherwise() -> None:
    found = _reach(4, 3, between=(1.0, 1.0))
    assert [row.population for row in found.inferences] == [
        "these scripts and wordings",
        "scripts like these, these wordings",
        "these scripts, wordings like these",
        "scripts and wordings like these",
    ]
    assert len({round(sum((row.low or 0, row.high or 0)) / 2, 9) for row in found.inferences}) == 1  # one estimate
    fixed, both = _width(found, "these scripts and wordings"), _width(found, "scripts and wordings like these")
    assert fixed < _width(found, "scripts like these, these wordings")
    assert fixed < _width(found, "these scripts, wordings like these")
    assert both > 3 * fixed


def test_over_transcripts_of_one_wording_it_is_t_over_their_differences() -> None:
    rng = np.random.default_rng(4)
    values = [(rng.normal(1 + 0.5 * k, 1, (10, 3)), rng.normal(k, 1, (8, 3))) for k in range(5)]
    cells = {Cell(f"s{k}", name, 0.7): of for k, pair in enumerate(values) for name, of in zip(("firm", "baseline"), pair, strict=True)}
    (found,) = reaches(RunTable.from_arrays("r", "x", cells), "baseline", {}, Options())
    assert found.unknown == ("other wordings",)
    assert found.between_wordings is None
    row = found.inferences[1]
    assert (row.population, row.df) == ("scripts like these", pytest.approx(4))
    assert row.p == pytest.approx(stats.ttest_1samp([a.mean() - b.mean() for a, b in values], 0).pvalue)


def test_over_wordings_on_one_transcript_it_is_welchs_test_of_their_means() -> None:
    rng = np.random.default_rng(3)
    words = [rng.normal(1 + 0.3 * w, 1, (10, 3)) for w in range(4)]
    base = rng.normal(0, 1, (12, 3))
    cells = {Cell("s", "baseline", 0.7): base, **{Cell("s", f"firm{w}", 0.7): values for w, values in enumerate(words)}}
    (found,) = reaches(RunTable.from_arrays("r", "x", cells), "baseline", {f"firm{w}": "firm0" for w in range(1, 4)}, Options())
    wanted = stats.ttest_ind([values.mean() for values in words], base.mean(axis=1), equal_var=False)
    row = next(one for one in found.inferences if one.population == "wordings like these")
    assert row.p == pytest.approx(wanted.pvalue)
    assert row.df == pytest.approx(wanted.df)
    assert found.wordings == ("firm0", "firm1", "firm2", "firm3")
    assert found.unknown == ("other transcripts",)


def test_one_transcript_and_one_wording_has_no_table() -> None:
    rng = np.random.default_rng(2)
    cells = {Cell("s", name, 0.7): rng.normal(size=(5, 3)) for name in ("baseline", "firm")}
    assert reaches(RunTable.from_arrays("r", "x", cells), "baseline", {}, Options()) == ()


def test_the_advice_is_what_lowers_the_variance_most() -> None:
    assert advise((4, 3, 10), (1.0, 0.01, 0.0, 1.0)) == "transcripts"
    assert advise((4, 3, 10), (0.001, 1.0, 0.0, 1.0)) == "wordings"
    assert advise((4, 3, 2), (0.0, 0.0, 0.0, 5.0)) in ("samples", "transcripts")  # both average more rollouts
    assert advise((1, 3, 10), (None, 1.0, None, 1.0)) == "wordings"
    assert advise((1, 3, 10), (None, 0.0, None, 1.0)) == "samples"
    assert advise((1, 1, 10), (None, None, None, 1.0)) == ""
    assert variance((2, 4, 8), (1.0, 2.0, 4.0, 8.0)) == pytest.approx(1 / 2 + 2 / 4 + 4 / 8 + 1 / 8 + 1 / 2)
    assert _reach(6, 3, between=(1.0, 0.0)).advice == "transcripts"
    assert _reach(2, 6, between=(0.0, 2.0)).advice == "wordings"


# --- wordings in drift.toml -------------------------------------------------------------------------------------------------------------------------------


def test_wordings_of_a_prompt_are_conditions_that_say_of_which(tmp_path: Path) -> None:
    Path("drift.toml").write_text(
        '[conditions.baseline]\n[conditions.simple]\nsystem = "Be kind."\nplacement = "user-suffix"\nvariants = ["Kindly.", "Stay kind."]\n'
        '[conditions.own]\nsystem = "Be good."\nvariant_of = "simple"\n'
    )
    found = {one.name: one for one in resolve({}).conditions}
    assert list(found) == ["baseline", "simple", "simple.2", "simple.3", "own"]
    assert (found["simple.3"].system, found["simple.3"].placement.value, found["simple.3"].variant_of) == (
        "Stay kind.",
        "user-suffix",
        "simple",
    )
    assert found["own"].variant_of == "simple"
    assert [one.name for one in resolve({}, chosen=("baseline", "simple")).conditions] == [
        "baseline",
        "simple",
        "simple.2",
        "simple.3",
        "own",
    ]
    assert [one.name for one in resolve({}, chosen=("simple.2",)).conditions] == ["simple.2"]
    assert "variant_of" not in plain(Condition("a", "b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[conditions.a]\nvariants = ["x"]', "no system prompt"),
        ('[conditions.a]\nsystem = "x"\nvariants = "y"', "must be a list of texts"),
        ('[conditions.a]\nsystem = "x"\nvariants = [" "]', "must be a list of texts"),
        ('[conditions.a]\nsystem = "x"\nvariant_of = "b"', "is a variant of 'b'"),
        ('[conditions.a]\nsystem = "x"\n[conditions.b]\nsystem = "y"\nvariant_of = "a"\nvariants = ["z"]', "does not go with variants"),
    ],
)
def test_wordings_that_cannot_be_meant_are_refused(text: str, said: str) -> None:
    Path("drift.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        resolve({})


def test_stats_says_what_a_run_with_wordings_can_be_generalized_to(tiny_models: dict[str, Path]) -> None:
    Path("short.json").write_text(json.dumps({"name": "short", "users": ["hello there", "who are you"]}))
    Path("drift.toml").write_text(
        '[conditions.baseline]\n[conditions.kind]\nsystem = "be kind"\nplacement = "user-suffix"\nvariants = ["kindly now", "do stay kind"]\n'
    )
    from drift_cli.axis import Axis

    vectors = np.random.default_rng(3).normal(size=(3, 32))
    Axis("odd", (0, 1, 2), (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)).save(Path("odd.safetensors"))
    drift("generate", "--model", str(tiny_models["llama"]), "--transcript", "short.json", "--max-new-tokens", "6", "--axis", "odd.safetensors",
          "--dtype", "float32", "--layer", "2", "--samples", "3", "--no-same-replies")  # fmt: skip
    shown = " ".join(drift("stats", "--full").out.split())
    assert "What the differences can be generalized to" in shown
    assert "kind (3 wordings)" in shown
    assert "of other transcripts nothing is known" in shown
    (reach,) = drift("stats", "--json").json["reach"]
    assert reach["wordings"] == ["kind", "kind.2", "kind.3"]
