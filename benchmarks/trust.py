"""How far apart two computations in one dtype are from float32, and how near that the trial's limit is: `python benchmarks/trust.py [MODEL]`.

For conversations of ordinary text and of random ids: the share of what `engine/trial.py` allows slots to be off by that rounding alone takes. Then slots with
one planted error each, and what the trial says of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from drift_cli import models, transcripts
from drift_cli.engine import attention
from drift_cli.engine.kernels.torch import backend
from drift_cli.engine.plain_passes import yardstick
from drift_cli.engine.slots import make_slots
from drift_cli.engine.trial import Trial, judge
from drift_cli.engine.trial_text import conversations, length, random_text
from drift_cli.models import LoadedModel
from drift_cli.spec import Sampling


def tried(model: LoadedModel, text: list[int]) -> Trial:
    given = conversations(text, length(model, attention.layout_of(model), None), 3)
    against = yardstick(model, given)
    slots = make_slots(model, tuple(range(model.card.layers + 1)), Sampling(), 8, 3, backend="torch")
    try:
        return judge(model.dtype, slots, given, against)
    finally:
        slots.close()


@contextmanager
def planted(change: Callable[..., Any]) -> Iterator[None]:
    """`change` gets the arguments of every attention call of slots on torch kernels."""
    own = attention.installed

    def installed(model: LoadedModel, name: str, attend: Callable[..., Any]) -> Any:
        return own(model, name, lambda *given, **how: attend(*given, **change(how)))

    attention.installed = backend.installed = installed  # type: ignore[assignment]
    try:
        yield
    finally:
        attention.installed = backend.installed = own


ERRORS: dict[str, Callable[..., Any]] = {
    "a window one key too narrow": lambda how: {**how, "sliding_window": how["sliding_window"] - 1} if how.get("sliding_window") else how,
    "a window that is not applied": lambda how: {**how, "sliding_window": None},
    "a scale 2 % too large": lambda how: {**how, "scaling": how["scaling"] * 1.02},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--dtypes", default="bfloat16,float16")
    asked = parser.parse_args()
    card = models.describe(asked.model)
    said = card.tokenizer.encode("\n".join(transcripts.load("lonely").users), add_special_tokens=False)
    for dtype in asked.dtypes.split(","):
        model = models.load(card, dtype=dtype, device=models.choose_device("auto"))
        rounding(model, said, asked.draws)
        for what, change in ERRORS.items():
            with planted(change):
                found = tried(model, said)
            print(f"  {what}: {found.problem or 'not seen'}", flush=True)


def rounding(model: LoadedModel, said: list[int], draws: int) -> None:
    """What rounding alone takes of what is allowed."""
    ids = random_text(model)
    of = f"{model.card.name} {model.dtype}, {draws} draws of"
    for kind in ("text", "random ids"):
        shares = []
        for draw in range(draws):
            text = np.roll(said, -31 * draw) if kind == "text" else np.random.default_rng(draw).permutation(ids)
            shares.append(tried(model, text.tolist()).rounding.share)
        print(f"{of} {kind}: rounding takes {np.median(shares):.2f} of what is allowed (median), {max(shares):.2f} at most", flush=True)


if __name__ == "__main__":
    main()
