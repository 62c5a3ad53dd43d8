"""What drift makes of a model type: the verdict that `table.toml` keeps, measured.

    exact                  slots and the reference engine both give what the network gives
    reference: REASON      slots are refused, the reference engine gives what the network gives
    refused: REASON        drift says by name why it does not run it
    excluded: REASON       it could not be built here, or it is nothing that continues a text
    WRONG: WHAT            numbers that are not the network's

Behind the first two stands how the reference engine has to generate, where that is not its usual way.
"""

from __future__ import annotations

import re
import signal
import tempfile
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path

from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from breadth.build import NOT_BUILT, save
from breadth.measure import FILTERS, TOKENS, Measured, measure
from breadth.types import VARIANTS
from drift_cli import models
from drift_cli.engine.choice import choose
from drift_cli.engine.decoding import decoding
from drift_cli.engine.layout import layout_from
from drift_cli.engine.reference import ReferenceEngine
from drift_cli.engine.structure import refusal
from drift_cli.errors import DriftError
from drift_cli.models import LoadedModel

TABLE = Path(__file__).parent / "table.toml"
_SECONDS = 300
"""What one type may take."""
_ROWS = {"slots": 3, "reference": 4}
_NUMBER = re.compile(r"\d+\.\d+(e-?\d+)?")
"""Measured numbers differ from machine to machine; those of the configuration are whole."""


@dataclass(frozen=True)
class Verdict:
    """A verdict in the table's words, and what was measured."""

    name: str
    text: str
    detail: str = ""

    @property
    def kind(self) -> str:
        """Its first word."""
        return self.text.partition(":")[0].partition(";")[0]

    def agrees(self, expected: str | None) -> bool:
        """Whether it is what the table says. Why a type is excluded stands there in other words than the error's."""
        return expected is not None and (self.text == expected or self.kind == expected.partition(":")[0] == "excluded")


def table() -> dict[str, str]:
    """The verdicts that are expected, by type or variant."""
    found: dict[str, str] = tomllib.loads(TABLE.read_text())
    return found


def known_types() -> list[str]:
    """Every model type of the installed transformers that has a class which continues text, and our variants of those."""
    names = {
        **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    }
    return [*(name for name in names if name in CONFIG_MAPPING), *(name for name, (kind, _) in VARIANTS.items() if kind in CONFIG_MAPPING)]


def verdict(name: str, folder: Path) -> Verdict:
    """Build a type, load it as a user's folder is, and run both engines."""
    try:
        save(name, folder)
    except NOT_BUILT as error:
        return Verdict(name, f"excluded: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
    try:
        model = models.load(models.describe(str(folder)), dtype="float32", device="cpu")
        return _measured(name, model)
    except DriftError as error:
        return Verdict(name, f"refused: {_plain(error.what)}")


def alone(name: str) -> Verdict:
    """The verdict in a folder of its own, within the time that a type may take, whatever happens."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        with warnings.catch_warnings(action="ignore"), tempfile.TemporaryDirectory() as folder:
            return verdict(name, Path(folder) / "model")
    except TimeoutError:
        return Verdict(name, f"WRONG: not done in {_SECONDS} seconds")
    except Exception as error:  # noqa: BLE001 - the edge: one type must not end the run of all
        return Verdict(name, f"WRONG: {type(error).__name__}: {(str(error) or '?').splitlines()[0]}")
    finally:
        signal.alarm(0)


def _measured(name: str, model: LoadedModel) -> Verdict:
    layers = tuple(range(model.card.layers + 1))
    layout_from(model.card.config)
    chosen = choose("auto", model, layers=layers, filters=FILTERS, max_new_tokens=TOKENS, batch=_ROWS["slots"])
    said = chosen.refused
    reason = "exact" if said is None else f"reference: {_plain(refusal(model) or 'the trial of slots')}"
    found = {"slots": measure(model, chosen.engine)} if said is None else {}
    try:
        found["reference"] = measure(model, ReferenceEngine(model, layers, FILTERS, TOKENS, _ROWS["reference"]))
        how = decoding(model)
        ways = [way for way, why in (("one at a time", how.alone), ("without a cache", how.uncached)) if why is not None]
    except DriftError:
        if said is not None:
            raise
        ways = ["not on the reference engine"]
    detail = ", ".join(f"{kind}: {_spelled(result)}" for kind, result in found.items())
    wrong = [kind for kind, result in found.items() if not result.right]
    return Verdict(name, f"WRONG: {' and '.join(wrong)}" if wrong else "; ".join([reason, *ways]), detail)


def _spelled(result: Measured) -> str:
    return f"residuals off by {result.residual:.1e}, {result.wrong_tokens} of {result.tokens} tokens wrong"


def _plain(reason: str) -> str:
    return _NUMBER.sub("…", reason)
