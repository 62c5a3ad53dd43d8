"""Every kind of picture against a small kept one: what it looks like as a whole, whatever the fonts' last pixel does.

`make baselines` writes the kept ones anew; look at them before they are committed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from pictures_data import KINDS, flagged
from PIL import Image

from drift_cli.results.figures.canvas import render
from drift_cli.results.figures.palette import STYLES

KEPT = Path(__file__).parent / "baselines"
WRITE = bool(os.environ.get("DRIFT_WRITE_BASELINES"))
WIDTH = 240
"""Pixels of a kept picture."""
TOLERANCE = 4.0
"""Mean difference of a pixel's channels, of 255, after a blur: another version's hinting gives 1 or 2, a missing band or another colour over 5."""
PICTURES = [(kind, "paper") for kind in KINDS] + [("trajectory", "dark"), ("heatmap", "talk-dark"), ("tokens", "dark")]


@pytest.mark.parametrize(("kind", "style"), PICTURES)
def test_a_picture_looks_as_it_did(kind: str, style: str, tmp_path: Path) -> None:
    made = _small(render(KINDS[kind](flagged(), STYLES[style]), ".png", dpi=60))
    path = KEPT / f"{kind}-{style}.png"
    if WRITE:
        made.quantize(48).save(path, optimize=True)
    kept = Image.open(path).convert("RGB")
    assert abs(kept.height - made.height) <= 0.06 * kept.height, "another shape"
    difference = _difference(kept, made)
    if difference > TOLERANCE:
        made.save(tmp_path / "made.png")
    assert difference <= TOLERANCE, f"see {tmp_path / 'made.png'}"


def test_the_tolerance_tells_a_picture_from_the_same_without_its_bands() -> None:
    kept = Image.open(KEPT / "difference-paper.png").convert("RGB")
    figure = KINDS["difference"](flagged())
    for band in [artist for artist in figure.findobj() if str(artist.get_gid()).startswith("band-")]:
        band.remove()
    assert _difference(kept, _small(render(figure, ".png", dpi=60))) > TOLERANCE


def _small(png: bytes) -> Image.Image:
    made = Image.open(io.BytesIO(png)).convert("RGB")
    return made.resize((WIDTH, round(made.height * WIDTH / made.width)), Image.Resampling.BOX)


def _difference(kept: Image.Image, made: Image.Image) -> float:
    """Mean absolute difference at a quarter of the size, in which letters are shades of grey."""
    size = (WIDTH // 4, kept.height // 4)
    first, second = (np.asarray(image.resize(size, Image.Resampling.BOX), dtype=float) for image in (kept, made))
    return float(np.abs(first - second).mean())
