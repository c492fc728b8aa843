"""Contrast of the flatter of a pair's two images; an all-black image, for instance, has none."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ip2p.scoring.score import Batch, Score


def contrast(image: Image.Image) -> float:
    """Returns the standard deviation of the brightness, in [0, 0.5]; 0 for a flat image."""
    return float(np.asarray(image.convert("L"), dtype=np.float64).std() / 255)


def measure(batch: Batch) -> list[float]:
    """Returns the lesser contrast of the two images of each pair."""
    pairs = zip(batch.originals, batch.edited, strict=True)
    return [min(contrast(original), contrast(edited)) for original, edited in pairs]


SCORES = (
    Score(
        name="contrast",
        column="contrast",
        title="contrast",
        meaning="Contrast of the flatter image",
        unit="standard deviation of the brightness",
        too_low="flat picture",
        is_similarity=False,
        prepare=lambda _: measure,
        place=20,
    ),
)
